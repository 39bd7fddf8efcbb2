"""The modulation of a linear head together with its cross-entropy, for many classes."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from agm import ops
from agm.modulation import unfused
from agm.modulation.checks import check_settings, check_step
from agm.modulation.scores import find_score
from agm.modulation.state import ModulationState
from agm.modulation.unfused import Settings
from agm.ops import _checks, reference
from agm.ops._autocast import autocasts
from agm.ops._derivatives import once_differentiable

__all__ = ["fused_modulate_linear_cross_entropy"]

_FEWEST = 128  # samples, or classes, of a chunk: fewer would leave a product with W waiting for W


class _LinearCrossEntropy(torch.autograd.Function):
    """The loss forward; backward, the gradients of the hidden features, of the weight and of the bias."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        loss: Tensor,
        target: Tensor,
        normalizer: Tensor,
        count: Tensor,
        subset_scales: Tensor,
        settings: dict[str, Any],
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, target, normalizer, count, subset_scales)
        ctx.settings = settings
        return loss.view(())

    @staticmethod
    @once_differentiable(
        "fused_modulate_linear_cross_entropy",
        "For a gradient penalty take the cross-entropy of the head on hidden[-1], whose gradient is not modulated.",
    )
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grads = ops.modulate_linear_cross_entropy_backward(grad_loss, *ctx.saved_tensors, **ctx.settings)
        needed = (grad if need else None for grad, need in zip(grads, ctx.needs_input_grad, strict=False))
        return *needed, *[None] * 6


def fused_modulate_linear_cross_entropy(
    hidden: Tensor,  # (2**M - 1, B, ..., D)
    weight: Tensor,  # (C, D)
    target: Tensor,  # (B, ...)
    state: ModulationState,
    bias: Tensor | None = None,  # (C,)
    *,
    alpha: float = 1.0,
    max_gap: float | None = 10.0,
    floor: float = 1e-8,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    update: bool = True,
    process_group: ProcessGroup | None = None,
    chunk_rows: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """`fused_modulate_cross_entropy` of `hidden @ weight.T + bias` without these logits: for large class counts.

    The mono-modal responses of a linear head are linear in what it is given,
    `phi_m = W (sum_S w(m, S) h_S) + b / M`, and sum to the joint logits; the gradient of every masked row is c_S times
    one `g W`, that of W is `g^T sum_S c_S h_S` (Li et al., "Boosting Multi-modal Model Performance with Adaptive
    Gradient Modulation", ICCV 2023, eq. 3-10, for `z_S = h_S W^T + b`). So M products with W forward and three backward
    suffice, whatever 2**M is, a few samples or classes at a time, and the masked logits never exist::

        hidden = torch.stack([decoder(audio, None), decoder(None, text), decoder(audio, text)])  # (3, B, T, D)
        loss = agm.fused_modulate_linear_cross_entropy(hidden, lm_head.weight, tokens, state, alpha=1.5)

    The scores are those of `fused_modulate` up to rounding: of 16-bit features the mixture `sum_S w(m, S) h_S` is
    rounded to 16 bits before it is multiplied.

    Args:
        hidden: what the head is given for every subset, in the order of masked logits, the joint pass last. Under
            autocast it is cast as for `torch.nn.functional.linear`, with weight and bias.
        weight, bias: of the linear head, of one dtype with `hidden`. The bias counts in every subset.
        target: class indices in [0, C), or `ignore_index`.
        state, alpha, max_gap, floor, ignore_index, update, process_group, backend: as in `fused_modulate`.
        label_smoothing: in [0, 1], of the loss alone, as in `torch.nn.functional.cross_entropy`.
        chunk_rows: samples (tokens) whose logits exist at a time; the backward takes classes for as many numbers. None:
            as many as make no more logits than a subset has hidden numbers, and at least 128.

    Returns:
        The mean cross-entropy of the joint logits, () float32 (float64 for float64). If every target is ignored it is
        NaN, and its gradient 0. A wrong class index where that is no error (on a GPU, in a compiled graph) makes it
        NaN.

    Raises:
        TypeError, ValueError, RuntimeError: as in `fused_modulate`, and for a weight or bias that does not fit.
    """
    gap = check_settings(state, alpha, max_gap, floor, ignore_index, update, process_group)
    _checks.check_label_smoothing(label_smoothing)
    _check_hidden(hidden, state.num_modalities)
    _check_head(hidden, weight, bias)
    shape = (*hidden.shape[1:-1], weight.shape[0])
    check_step(target, state, shape, hidden.device, ignore_index, find_score("cross_entropy"))
    if any(part is not None and part.requires_grad for part in (hidden, weight, bias)):
        _checks.check_kept(hidden=hidden, weight=weight, bias=bias, target=target)
    if chunk_rows is not None and not (_checks.is_whole(chunk_rows) and chunk_rows >= 1):
        raise ValueError(
            f"Expected argument `chunk_rows` to be a number of samples, 1 or more, but got {chunk_rows!r}."
        )
    if autocasts(hidden.device) and hidden.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check_dtypes(hidden, weight, bias)

    hidden, target = hidden.flatten(1, -2), target.long().flatten()
    batch, classes = hidden.shape[1], weight.shape[0]
    rows = max(_FEWEST, -(-batch * hidden.shape[2] // classes)) if chunk_rows is None else chunk_rows
    modulation = Settings(float(alpha), gap, float(floor), ignore_index, update)
    of_loss: dict[str, Any] = {"label_smoothing": float(label_smoothing), "backend": backend}

    def step(values: Tensor, counts: Tensor, modulation: Settings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        options: dict[str, Any] = {**modulation._asdict(), **of_loss, "chunk_rows": rows}
        return ops.modulate_linear_cross_entropy(hidden, weight, bias, target, values, counts, **options)

    if process_group is None:
        loss, subset_scales, normalizer, count = step(state.values, state.counts, modulation)
    else:
        coefficients, own = unfused.shared_step(step, state.values, state.counts, modulation, process_group)
        loss, _, normalizer, count = own
        subset_scales = reference.subset_scales(coefficients)
    parts = [one for one in (hidden, weight, bias) if one is not None]
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in parts)):
        return loss
    at_once = max(_FEWEST if chunk_rows is None else 1, rows * classes // max(batch, 1))
    settings = {
        "ignore_index": ignore_index,
        "label_smoothing": float(label_smoothing),
        "chunk_classes": at_once,
        "backend": backend,
    }
    result: Tensor = _LinearCrossEntropy.apply(
        hidden, weight, bias, loss, target, normalizer, count, subset_scales, settings
    )
    return result


def _check_hidden(hidden: Tensor, modalities: int) -> None:
    _checks.check_tensor("hidden", hidden)
    _checks.check_floating("hidden", hidden)
    if hidden.dim() < 3 or hidden.shape[0] != 2**modalities - 1:
        raise ValueError(
            f"Expected argument `hidden` to have shape ({2**modalities - 1}, batch, ..., size), one row for each "
            f"subset of the {modalities} modalities of the state, but got {tuple(hidden.shape)}. Stack what the head "
            "is given for each, the joint pass last."
        )


def _check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None or name == "weight":
            _checks.check_tensor(name, part, hidden.device, "`hidden` is")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or weight.shape[0] < 1:
        raise ValueError(
            f"Expected argument `weight` to have shape (classes, {hidden.shape[-1]}), as the linear head of `hidden` "
            f"{tuple(hidden.shape)}, but got {tuple(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"Expected argument `bias` to have shape ({weight.shape[0]},), one number a class, but got "
            f"{tuple(bias.shape)}."
        )


def _check_dtypes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.dtype != hidden.dtype:
            raise TypeError(
                f"Expected argument `{name}` to be {hidden.dtype}, as `hidden` is, but got {part.dtype}. "
                "Convert it with .to(dtype), or use autocast."
            )
