"""Checks of gradients that are to be rescaled in place, and of their coefficients, made before anything is written."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from agm.ops._checks import FLOATING, check_tensor, is_number

__all__ = ["check_coefficients", "check_generator", "check_gradients"]


def check_gradients(gradients: Sequence[Iterable[Tensor | None]]) -> list[tuple[Tensor | None, int]]:
    """Checks groups of gradients that are to be written; returns (gradient, group) of every entry."""
    if isinstance(gradients, Tensor) or not isinstance(gradients, Sequence):
        raise TypeError(
            "Expected argument `gradients` to be a sequence of groups of tensors, "
            f"but got {type(gradients).__name__}. Wrap one group into a list."
        )
    entries: list[tuple[Tensor | None, int]] = []
    names: list[str] = []
    for group, members in enumerate(gradients):
        if isinstance(members, Tensor) or not isinstance(members, Iterable):
            raise TypeError(
                "Expected argument `gradients` to hold one sequence of tensors a group, "
                f"but entry {group} is {type(members).__name__}. Wrap one group into a list."
            )
        for place, grad in enumerate(members):
            entries.append((grad, group))
            names.append(f"gradients[{group}][{place}]")
    device = next((grad.device for grad, _ in entries if isinstance(grad, Tensor)), None)
    for (grad, _), name in zip(entries, names, strict=True):
        if grad is not None:
            _check_gradient(grad, name, device)
    _check_memory([(grad, name) for (grad, _), name in zip(entries, names, strict=True) if grad is not None])
    return entries


def _check_gradient(grad: Tensor, name: str, device: torch.device | None) -> None:
    if not isinstance(grad, Tensor):
        raise TypeError(f"Expected `{name}` to be a tensor or None, but got {type(grad).__name__}.")
    if grad.layout != torch.strided:
        raise TypeError(
            f"Expected `{name}` to be dense, but its layout is {grad.layout}. Use an embedding with sparse=False."
        )
    if grad.dtype not in FLOATING:
        raise TypeError(
            f"Expected `{name}` to be float32, bfloat16, float16 or float64, but got {grad.dtype}. "
            "Leave out what is not a gradient."
        )
    if grad.device != device:
        raise ValueError(
            f"Expected all gradients to be on one device, but `{name}` is on {grad.device} and the first one on "
            f"{device}. Call once a device."
        )
    if grad.requires_grad:
        raise ValueError(
            f"Expected `{name}` to be a gradient, but it requires one itself. Pass parameter.grad instead of the "
            "parameter, or detach what backward(create_graph=True) gave."
        )


def _check_memory(grads: list[tuple[Tensor, str]]) -> None:
    """That no two gradients share memory, and no gradient repeats its own."""
    if torch.compiler.is_compiling() or any(grad.is_meta or is_fake(grad) for grad, _ in grads):  # no addresses
        if len({id(grad) for grad, _ in grads}) < len(grads):
            raise ValueError(
                "Expected every gradient to have its own memory, but one is among `gradients` twice and would be "
                "scaled twice. Pass shared parameters once."
            )
        return
    spans = []
    for grad, name in grads:
        size = grad.numel()
        if size == 0:
            continue
        if not grad.is_contiguous():
            steps = sorted((step, count) for step, count in zip(grad.stride(), grad.shape, strict=True) if count > 1)
            extent = 1
            for step, count in steps:
                if step < extent:
                    raise ValueError(
                        f"Expected every element of `{name}` to have its own memory, but its strides are "
                        f"{grad.stride()}. Pass {name}.clone()."
                    )
                extent = step * (count - 1) + extent
            # Of a tensor with gaps only the start is looked at: the gaps may belong to another one.
            size = size if extent == size else 1
        start = grad.data_ptr()
        spans.append((start, start + size * grad.element_size(), name))
    spans.sort()
    end, owner = 0, ""
    for start, stop, name in spans:
        if start < end:
            raise ValueError(
                f"Expected every gradient to have its own memory, but `{name}` and `{owner}` share theirs and would "
                "be scaled twice. Pass shared parameters once."
            )
        end, owner = stop, name


def check_coefficients(coefficients: Tensor | Sequence[float], groups: int, device: torch.device | None) -> Tensor:
    """Checks the coefficients of groups of gradients on a device (None: there are none); returns (G,) float64."""
    if not isinstance(coefficients, Tensor):
        if not isinstance(coefficients, Sequence) or not all(map(is_number, coefficients)):
            raise TypeError(
                "Expected argument `coefficients` to be a tensor or a sequence of numbers, but got "
                f"{coefficients!r}. Pass one number a group of gradients."
            )
        coefficients = torch.tensor(coefficients, dtype=torch.float64)
        device = None
    check_tensor("coefficients", coefficients, device, "the gradients are")
    if not coefficients.is_floating_point():
        raise TypeError(
            f"Expected argument `coefficients` to have a floating dtype, but got {coefficients.dtype}. "
            "Convert it with coefficients.double()."
        )
    if coefficients.shape != (groups,):
        raise ValueError(
            f"Expected argument `coefficients` to have shape ({groups},), one number a group of gradients, "
            f"but got {tuple(coefficients.shape)}."
        )
    return coefficients.detach().double()


def check_generator(generator: torch.Generator | None, device: torch.device | None) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"Expected argument `generator` to be a torch.Generator or None, but got {type(generator).__name__}. "
            "Make one with torch.Generator(device).manual_seed(seed)."
        )
    if device is not None and generator.device.type != device.type:
        raise ValueError(
            f"Expected argument `generator` to be on {device}, where the gradients are, but it is on "
            f"{generator.device}. Make it with torch.Generator({str(device)!r})."
        )
