"""The gradients of parameters, rescaled between `backward` and the optimizer's step."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from agm import ops
from agm.modulation.gradient_checks import check_coefficients, check_generator, check_gradients
from agm.ops._checks import check_flag

__all__ = ["scale_gradients_"]


@torch.no_grad()
def scale_gradients_(
    gradients: Sequence[Iterable[Tensor | None]],  # G groups
    coefficients: Tensor | Sequence[float],  # (G,)
    *,
    noise: bool = False,
    generator: torch.Generator | None = None,
    backend: str = "auto",
) -> None:
    """Multiplies each group of gradients by its own coefficient, in place; adds noise to them if wanted.

    Strategies against modality imbalance that work on the gradients of parameters use it: one group an encoder, one
    coefficient a group, here with the noise of OGM-GE (Peng et al., "Balanced Multimodal Learning via On-the-fly
    Gradient Modulation", CVPR 2022):

        loss.backward()
        encoders = [[p.grad for p in encoder.parameters()] for encoder in (audio, visual)]
        agm.scale_gradients_(encoders, coefficients, noise=True)
        optimizer.step()

    Every gradient g becomes `k * g`, k being the coefficient of its group. With `noise` it becomes `k * g + n`, n
    normal with mean 0 and the standard deviation that g had (unbiased, over all elements of that one tensor; 0 for a
    single element) plus 1e-8. All is computed in float32 (float64 for float64) and rounded once.

    No call synchronises with a GPU while `coefficients` is a tensor: gradients of one dtype take one launch a 128
    tensors (two with noise, and one for the seed), and the call can be captured in a CUDA graph, whose every replay
    draws fresh noise. A gradient with gaps between its elements, or with noise any that is not contiguous, costs two
    copies more. Numbers that are not finite are not looked at: they propagate within their own tensor, and NaN stays
    NaN under a coefficient of 0.

    The noise follows from a seed, drawn from `generator`, from the place of the gradient among all entries of
    `gradients`, None included, and from the place of the element in its tensor. So it does not depend on the number of
    threads or the memory format, nor on which other parameters have a gradient; between backends it agrees up to
    rounding.

    Args:
        gradients: G groups of tensors of any shape and memory format, in float32, bfloat16, float16 or float64, also
            mixed. They are written in place. None, a parameter without a gradient, is left out.
        coefficients: (G,) floating tensor where the gradients are, or G numbers. Numbers are copied to the device,
            which waits for it and cannot be captured in a CUDA graph.
        noise: whether to add noise.
        generator: gives the noise's seed, on the device of the gradients; None for torch's default one.
        backend: "auto", or the name of one in `agm.backends()`, which is then used or raises.

    Raises:
        TypeError: an entry is neither a tensor nor None, or has a dtype or a layout (sparse) that does not serve.
        ValueError: the number, shape or device of something cannot be, a gradient requires a gradient itself, or two
            share memory (of one with gaps only the first element is compared, and `torch.compile` sees one tensor
            passed twice only). Nothing has been written then.
        RuntimeError: a backend asked for by name cannot serve here.
    """
    entries = check_gradients(gradients)
    present = [grad for grad, _ in entries if grad is not None]
    device = present[0].device if present else None
    factors = check_coefficients(coefficients, len(gradients), device)
    check_generator(generator, device)
    check_flag("noise", noise)
    if device is None:
        return
    factors = factors.to(device)
    seed = None
    if noise:
        seed = torch.randint(-(2**63), 2**63 - 1, (1,), generator=generator, device=device)
        # An entry without a gradient keeps its number, and with it its random numbers.
        entries = [(factors.new_empty(0) if grad is None else grad, group) for grad, group in entries]
    grads = [grad for grad, _ in entries if grad is not None]
    groups = [group for grad, group in entries if grad is not None]
    ops.scale_gradients_(grads, groups, factors, seed, backend=backend)
    torch.autograd.graph.increment_version(present)
