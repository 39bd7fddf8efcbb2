"""Checks of arguments, made before anything is computed. None of them synchronises with a GPU."""

import math
import sys
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from agm.shapley.weights import num_modalities

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # what the ops compute with


def check_modulation(alpha: float, max_gap: float | None, floor: float) -> float:
    """Checks the settings of the modulation; returns `max_gap` as a float (None: infinite)."""
    if not (is_number(alpha) and 0 <= alpha < math.inf):  # a compiler that makes it a symbol cannot ask isfinite
        raise ValueError(
            f"Expected argument `alpha` to be a finite number >= 0, but got {alpha!r}. "
            "0 is plain joint training; the paper uses 1.5 to 4."
        )
    gap = math.inf if max_gap is None else max_gap
    if not (is_number(gap) and gap >= 0):
        raise ValueError(f"Expected argument `max_gap` to be a number >= 0, or None for no bound, but got {max_gap!r}.")
    if not (is_number(floor) and 0 <= floor < 1):
        raise ValueError(f"Expected argument `floor` to be a probability in [0, 1), but got {floor!r}.")
    return float(gap)


def is_number(value: object) -> bool:
    """Whether it is one that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        return False
    return not isinstance(value, int) or abs(value) <= sys.float_info.max


def is_whole(value: object) -> bool:
    """Whether it is an integer of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def check_tensor(name: str, value: object, device: torch.device | None = None, beside: str = "the logits are") -> None:
    """A dense tensor, on `device` if one is given, where other arguments are."""
    if not isinstance(value, Tensor):
        raise TypeError(f"Expected argument `{name}` to be a tensor, but got {type(value).__name__}.")
    if value.layout != torch.strided:
        raise TypeError(
            f"Expected argument `{name}` to be dense, but its layout is {value.layout}. Pass {name}.to_dense()."
        )
    if device is not None and value.device != device:
        raise ValueError(
            f"Expected argument `{name}` to be on {device}, where {beside}, but it is on {value.device}. "
            f"Move it with {name}.to({str(device)!r})."
        )


def check_floating(name: str, tensor: Tensor, advice: str = "Convert it with .to(dtype).") -> None:
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"Expected argument `{name}` to be float32, bfloat16, float16 or float64, but got {tensor.dtype}. {advice}"
        )


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"Expected argument `{name}` to be True or False, but got {value!r}.")


def check_train_rows(train_rows: int) -> None:
    """A size, which a compiler may have made a symbol."""
    if isinstance(train_rows, bool) or not isinstance(train_rows, (int, torch.SymInt)):
        raise TypeError(f"Expected argument `train_rows` to be an integer, but got {train_rows!r}.")


def check_kept(**tensors: Tensor | None) -> None:
    """Tensors that a backward reads: autograd keeps none that was made in inference mode."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.is_inference():
            raise ValueError(
                f"Expected argument `{name}` to be a tensor that autograd can keep for the backward, but got one made "
                f"in torch.inference_mode(). Pass {name}.clone()."
            )


def _check_logits(name: str, logits: Tensor) -> None:
    check_floating(name, logits, "Pass logits, not predictions, and convert them with .to(dtype).")
    if logits.shape[-1] < 1:
        raise ValueError(f"Expected argument `{name}` to have at least one class, but its last size is 0.")


def check_logits_stack(masked_logits: Tensor) -> None:
    """Masked logits of any subsets: (R, B, ..., C)."""
    check_tensor("masked_logits", masked_logits)
    if masked_logits.dim() < 3:
        raise ValueError(
            "Expected argument `masked_logits` to have shape (2**M - 1, batch, ..., classes), "
            f"but got {tuple(masked_logits.shape)}. Stack one (batch, classes) row a subset, the joint logits last."
        )
    _check_logits("masked_logits", masked_logits)


def check_masked_logits(masked_logits: Tensor, modalities: int) -> None:
    check_logits_stack(masked_logits)
    if num_modalities(masked_logits.shape[0]) != modalities:
        raise ValueError(
            f"Expected argument `masked_logits` to have {2**modalities - 1} rows for the {modalities} modalities of "
            f"the state, but got {masked_logits.shape[0]}."
        )


def check_present(present: Tensor | Sequence[Tensor], modalities: int) -> Tensor:
    """What each modality adds to the logits; returns the tensor, or the first of the sequence stacked alone.

    That is (M or 1, B, ..., C).
    """
    if not isinstance(present, Tensor):
        parts = _check_parts("present", present)
        for part in parts:
            check_tensor("present", part, parts[0].device, "its first tensor is")
        if parts[0].dim() < 2 or any([part.shape != parts[0].shape for part in parts]):
            raise ValueError(
                "Expected argument `present` to hold tensors of one shape (batch, ..., classes), "
                f"but got {[tuple(part.shape) for part in parts]}."
            )
        for part in parts:
            _check_logits("present", part)
        if any([part.dtype != parts[0].dtype for part in parts]):
            raise TypeError(
                f"Expected argument `present` to hold tensors of one dtype, but got {[part.dtype for part in parts]}. "
                "Cast them with .to(dtype)."
            )
    else:
        check_tensor("present", present)
        if present.dim() < 3:
            raise ValueError(
                f"Expected argument `present` to have shape (M, batch, classes), but got {tuple(present.shape)}. "
                "Stack what each modality adds to the logits, or pass a list of them."
            )
        _check_logits("present", present)
    if len(present) != modalities:
        raise ValueError(
            f"Expected argument `present` to have one row for each of the {modalities} modalities of the state, "
            f"but got {len(present)}."
        )
    return present if isinstance(present, Tensor) else parts[0].unsqueeze(0)


def check_absent(absent: Tensor | Sequence[Tensor], modalities: int, present: Tensor) -> None:
    """What each modality adds when it is absent, beside `present` (..., B, *rest), rest = (..., C)."""
    parts = [absent] if isinstance(absent, Tensor) else _check_parts("absent", absent)
    for part in parts:
        check_tensor("absent", part, present.device, "`present` is")
        check_floating("absent", part)
    rest = tuple(present.shape[2:])
    if isinstance(absent, Tensor):
        right = absent.shape == (modalities, *rest) or absent.shape == (modalities, 1, *rest)
    else:
        right = len(parts) == modalities and all([part.shape in (rest, (1, *rest)) for part in parts])
    if not right:
        got = [tuple(part.shape) for part in parts]
        raise ValueError(
            f"Expected argument `absent` to have shape {(modalities, *rest)}, one row a modality, or to be a "
            f"sequence of {modalities} tensors {rest}, "
            f"but got {got[0] if isinstance(absent, Tensor) else f'a sequence of {got}'}. "
            "What a modality adds when it is absent is the same for every sample."
        )


def check_bias(bias: Tensor, present: Tensor, given_joint: bool) -> None:
    """The bias of the joint logits, beside `present` (..., B, ..., C)."""
    check_tensor("bias", bias, present.device, "`present` is")
    if given_joint:
        raise ValueError(
            "Expected argument `bias` to be None beside `joint_logits`, but got a tensor. "
            "The joint logits contain their bias, and its gradient flows through them."
        )
    check_floating("bias", bias)
    if bias.shape != present.shape[-1:]:
        raise ValueError(
            f"Expected argument `bias` to have shape ({present.shape[-1]},), one number a class, "
            f"but got {tuple(bias.shape)}."
        )


def check_joint_logits(joint_logits: Tensor, present: Tensor) -> None:
    """The logits of a joint pass of its own, beside `present` (M or 1, B, ..., C)."""
    check_tensor("joint_logits", joint_logits, present.device, "`present` is")
    if joint_logits.shape != present.shape[1:]:
        raise ValueError(
            f"Expected argument `joint_logits` to have shape {tuple(present.shape[1:])}, (batch, classes) as in "
            f"`present`, but got {tuple(joint_logits.shape)}."
        )
    if joint_logits.dtype != present.dtype:
        raise TypeError(
            f"Expected argument `joint_logits` to have the dtype of `present`, {present.dtype}, "
            f"but got {joint_logits.dtype}. Cast one of them with .to(dtype)."
        )


def _check_parts(name: str, parts: Sequence[Tensor]) -> list[Tensor]:
    if not isinstance(parts, (list, tuple)) or not parts or not all([isinstance(part, Tensor) for part in parts]):
        raise TypeError(
            f"Expected argument `{name}` to be a tensor, or a list or tuple with a tensor for each modality, "
            f"but got {type(parts).__name__}."
        )
    return list(parts)


def check_target(target: Tensor, shape: Sequence[int], device: torch.device, classes: int | None = None) -> None:
    """The type, shape (B, ...) and device of class indices; with the number of classes the advice is better."""
    check_tensor("target", target, device)
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"Expected argument `target` to hold class indices (int64), but got {target.dtype}. "
            f"{_instead_of_indices(target)}"
        )
    if target.shape != tuple(shape):
        first = classes is not None and len(shape) > 1 and target.shape == (*shape[:1], *shape[2:], classes)
        raise ValueError(
            f"Expected argument `target` to have shape {tuple(shape)}, one class index a sample, "
            f"but got {tuple(target.shape)}."
            + (" If dimension 1 of the logits has the classes, say class_dim=1, or move it last." if first else "")
            + (" Of one-hot targets pass target.argmax(-1)." if target.shape == (*shape, classes) else "")
        )


def _instead_of_indices(target: Tensor) -> str:
    """What to do with a target that holds other things."""
    if target.dim() == 1:
        return "Where these are class indices, pass target.long(); for other tasks set `score`."
    return (
        "For probabilities of the classes (soft labels, mixup) set score='soft_cross_entropy', for several labels a "
        "sample 'binary_cross_entropy'; of one-hot targets pass target.argmax(-1)."
    )


def can_be_read(tensor: Tensor) -> bool:
    """Whether there are numbers in it that may be looked at.

    On a CPU only: elsewhere that would be a synchronisation. A compiled graph cannot branch on values, and fake tensors
    have none.
    """
    return not (tensor.device.type != "cpu" or tensor.numel() == 0 or torch.compiler.is_compiling() or is_fake(tensor))


def check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """The range of the class indices, where they can be read.

    Elsewhere a wrong index makes the scores NaN, so that the step leaves the running scores alone.
    """
    if not can_be_read(target):
        return
    target = target.long()  # a narrow dtype would wrap the numbers that it is compared with
    lowest, highest = target.aminmax()
    if lowest.item() >= 0 and highest.item() < classes:
        return
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(
            f"Expected argument `target` to hold class indices in [0, {classes}), or ignore_index={ignore_index}, "
            f"but got {int(target[place])} at row {place[0] if len(place) == 1 else list(place)}."
        )


def check_modalities(modalities: Iterable[str]) -> tuple[str, ...]:
    """Their names, in order.

    Raises:
        TypeError: they have no order.
        ValueError: they are fewer than two, not distinct, or no names that a modality may have.
    """
    if isinstance(modalities, (set, frozenset)):  # another order in every process
        raise TypeError(
            f"Expected argument `modalities` to be in an order, which numbers the subsets, but got a "
            f"{type(modalities).__name__}. Give a tuple."
        )
    names = (modalities,) if isinstance(modalities, str) else tuple(modalities)
    if len(names) < 2 or len(set(names)) != len(names) or not all(isinstance(n, str) and n for n in names):
        raise ValueError(
            f"Expected argument `modalities` to be two or more different names, but got {modalities!r}, "
            'for example ("audio", "visual").'
        )
    taken = {"target": "the class indices' name", "present": "the name of which samples have which modalities"}
    for name in taken.keys() & set(names):
        raise ValueError(f"Expected argument `modalities` not to name one {name!r}: that is {taken[name]}.")
    return names


def check_label_smoothing(label_smoothing: float) -> None:
    if not (is_number(label_smoothing) and 0 <= label_smoothing <= 1):
        raise ValueError(f"Expected argument `label_smoothing` to be a number in [0, 1], but got {label_smoothing!r}.")


def check_ignore_index(ignore_index: int) -> None:
    if not is_whole(ignore_index):
        raise TypeError(f"Expected argument `ignore_index` to be an integer of 64 bits, but got {ignore_index!r}.")


def check_class_weight(weight: Tensor, masked_logits: Tensor) -> None:
    check_tensor("weight", weight, masked_logits.device)
    check_floating("weight", weight)
    if weight.shape != masked_logits.shape[-1:]:
        raise ValueError(
            f"Expected argument `weight` to have shape ({masked_logits.shape[-1]},), one number a class, but got "
            f"{tuple(weight.shape)}."
        )
