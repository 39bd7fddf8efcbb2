"""The schemas of every op, and the loading of the native library that fills their dispatch keys.

The schemas live in Python, so the ops exist (served by the reference) where no binary was built. Each op
has the overloads `default`, whose keys CPU and CUDA the native library fills, `triton`, and `reference`.
"""

import importlib
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from agm.ops import reference

_STEP = (
    "Tensor target, Tensor(a!) values, Tensor(b!) counts, {}float alpha, float max_gap, float floor, int ignore_index, "
)

_SIGNATURES = {
    "modulate": "(Tensor masked_logits, " + _STEP.format("") + "bool update) -> Tensor",
    "modulate_backward": "(Tensor grad, Tensor subset_scales) -> Tensor",
    "modulate_cross_entropy": (
        "(Tensor masked_logits, " + _STEP.format("Tensor? weight, ") + "float label_smoothing, bool update)"
        " -> (Tensor loss, Tensor subset_scales, Tensor normalizer, Tensor sums)"
    ),
    "modulate_cross_entropy_backward": (
        "(Tensor grad_loss, Tensor? grad_logits, Tensor joint_logits, Tensor target, Tensor? weight, Tensor normalizer,"
        " Tensor sums, Tensor subset_scales, int ignore_index, float label_smoothing) -> Tensor"
    ),
    "modulate_linear_cross_entropy": (
        "(Tensor hidden, Tensor weight, Tensor? bias, "
        + _STEP.format("")
        + "float label_smoothing, bool update, SymInt chunk_rows)"
        " -> (Tensor loss, Tensor subset_scales, Tensor normalizer, Tensor count)"
    ),
    "modulate_linear_cross_entropy_backward": (
        "(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor normalizer, Tensor count,"
        " Tensor subset_scales, int ignore_index, float label_smoothing, SymInt chunk_classes)"
        " -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
    ),
    "modulate_additive": (
        "(Tensor present, Tensor absent, Tensor? bias, Tensor? joint_logits, " + _STEP.format("") + "bool update)"
        " -> (Tensor logits, Tensor scales)"
    ),
    "modulate_additive_backward": "(Tensor grad, Tensor scales, bool given_joint) -> Tensor",
    "expand_subsets": "(Tensor[] present, Tensor[] absent, bool concatenate) -> Tensor",
    "expand_subsets_backward": (
        "(Tensor grad, SymInt[] widths, SymInt batch, bool concatenate) -> (Tensor grad_present, Tensor grad_absent)"
    ),
    "batch_norm_rows": (
        "(Tensor input, Tensor? running_mean, Tensor? running_var, Tensor? weight, Tensor? bias, SymInt train_rows,"
        " float momentum, float eps, Tensor? batches=None)"
        " -> (Tensor output, Tensor updated_mean, Tensor updated_var, Tensor mean, Tensor invstd)"
    ),
    "batch_norm_rows_backward": (
        "(Tensor grad, Tensor input, Tensor? weight, Tensor mean, Tensor invstd, Tensor updated_mean,"
        " Tensor updated_var, SymInt train_rows, float eps)"
        " -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
    ),
    "dropout_rows": "(Tensor input, float p, SymInt train_rows) -> (Tensor output, Tensor mask)",
    "dropout_rows_backward": "(Tensor grad, Tensor mask, float p) -> Tensor",
    "scale_gradients_": "(Tensor(a!)[] grads, int[] groups, Tensor coefficients, Tensor? seed) -> ()",
}


def _accumulate(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.new_empty(shape, dtype=reference.accumulation_dtype(tensor.dtype))


def _fake_modulate(masked_logits: Tensor, *_: object) -> Tensor:
    return masked_logits.new_empty(masked_logits.shape[0], dtype=torch.float64)


def _fake_modulate_backward(grad: Tensor, subset_scales: Tensor) -> Tensor:
    return grad.new_empty((subset_scales.shape[0], *grad.shape))


def _fake_modulate_cross_entropy(masked_logits: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, batch, _classes = masked_logits.shape
    wide = torch.float64
    return (
        _accumulate(masked_logits),
        masked_logits.new_empty(rows, dtype=wide),
        _accumulate(masked_logits, 2, batch),
        masked_logits.new_empty(2, dtype=wide),
    )


def _fake_modulate_cross_entropy_backward(
    grad_loss: Tensor,
    grad_logits: Tensor | None,
    joint_logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    normalizer: Tensor,
    sums: Tensor,
    subset_scales: Tensor,
    *_: object,
) -> Tensor:
    return joint_logits.new_empty((subset_scales.shape[0], *joint_logits.shape))


def _fake_modulate_linear_cross_entropy(hidden: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64
    return (
        _accumulate(hidden),
        hidden.new_empty(hidden.shape[0], dtype=wide),
        _accumulate(hidden, 2, hidden.shape[1]),
        hidden.new_empty((), dtype=wide),
    )


def _fake_modulate_linear_cross_entropy_backward(
    grad_loss: Tensor, hidden: Tensor, weight: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0])


def _fake_modulate_additive(
    present: Tensor, absent: Tensor, bias: Tensor | None, joint_logits: Tensor | None, *_: object
) -> tuple[Tensor, Tensor]:
    modalities, batch, classes = present.shape
    logits = present.new_empty((batch if joint_logits is None else 0, classes))
    return logits, present.new_empty((2, modalities + 1), dtype=torch.float64)


def _fake_modulate_additive_backward(grad: Tensor, scales: Tensor, given_joint: bool) -> Tensor:
    batch, classes = grad.shape
    return grad.new_empty(((scales.shape[1] - 1) * (batch + 1) + (batch if given_joint else 0) + 1, classes))


def _fake_expand_subsets(present: list[Tensor], absent: list[Tensor], concatenate: bool) -> Tensor:
    batch, width = present[0].shape
    total = sum(part.shape[1] for part in present) if concatenate else width
    return present[0].new_empty(((2 ** len(present) - 2) * batch, total))


def _fake_expand_subsets_backward(
    grad: Tensor, widths: list[int], batch: int, concatenate: bool
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(sum(widths) * batch), grad.new_empty(sum(widths))


def _fake_batch_norm_rows(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, *_: object, **__: object
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = input.shape[1]
    output = torch.empty_like(input, memory_format=reference.memory_format(input))
    if running_mean is None or running_var is None:
        saved = _accumulate(input, 2, channels), _accumulate(input, 2, channels)
        return output, _accumulate(input, 0), _accumulate(input, 0), *saved
    return (
        output,
        torch.empty_like(running_mean, memory_format=torch.contiguous_format),
        torch.empty_like(running_var, memory_format=torch.contiguous_format),
        _accumulate(input, channels),
        _accumulate(input, channels),
    )


def _fake_batch_norm_rows_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor, updated_mean: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    own = updated_mean.dtype if weight is None else weight.dtype
    return (
        torch.empty_like(input, memory_format=reference.memory_format(input)),
        input.new_empty(input.shape[1], dtype=own),
        input.new_empty(input.shape[1], dtype=own),
    )


def _fake_dropout_rows(input: Tensor, p: float, train_rows: int) -> tuple[Tensor, Tensor]:
    mask = torch.empty_like(input[:train_rows], dtype=torch.bool if input.is_cuda else input.dtype)
    return torch.empty_like(input), mask


def _fake_dropout_rows_backward(grad: Tensor, *_: object) -> Tensor:
    return torch.empty_like(grad)


def _fake_scale_gradients_(*_: object) -> None:
    return None


OPS = tuple(_SIGNATURES)

# A compiler may neither drop nor merge what draws random numbers.
_RANDOM = ("dropout_rows",)

library = torch.library.Library("agm", "DEF")
for _op, _signature in _SIGNATURES.items():
    _tags = (torch.Tag.pt2_compliant_tag, *((torch.Tag.nondeterministic_seeded,) if _op in _RANDOM else ()))
    for _overload in ("", ".triton", ".reference"):
        library.define(f"{_op}{_overload}{_signature}", tags=_tags)
        torch.library.register_fake(f"agm::{_op}{_overload}", globals()[f"_fake_{_op}"], lib=library)
    for _overload in ("", ".reference"):
        library.impl(_op + _overload, getattr(reference, _op), "CompositeExplicitAutograd")


def _build_note() -> str:
    """What setup.py left to say of a native library that is not there, or that has no CUDA kernels."""
    note = Path(__file__).parent.parent / "_native.txt"
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def _load_native() -> tuple[ModuleType | None, str | None]:
    """The native module, or the reason why there is none."""
    try:
        return importlib.import_module("agm._C"), None
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "agm._C":
            note = _build_note() or "install with a C++ compiler and --no-build-isolation"
            return None, f"agm._C is not built: {note}"
        # Built, but against something that is not here.
        return None, f"agm._C does not load: {type(error).__name__}: {error}"


native, native_error = _load_native()
cuda_note = "" if native is None else _build_note()  # why the native library has no CUDA kernels


def has_native_kernel(op: str, dispatch_key: str) -> bool:
    """Whether the native library filled `dispatch_key` ("CPU" or "CUDA") of `op`."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"agm::{op}", dispatch_key)
