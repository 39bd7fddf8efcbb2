"""What is to be predicted, as it stands in files: classes, labels or numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

__all__ = ["decoded", "read_target", "stored_target"]

_TASKS = ("classes", "labels", "numbers")


def decoded(array: np.ndarray) -> np.ndarray:
    """Bytes as text; anything else as it is."""
    return np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array


def stored_target(target: torch.Tensor) -> dict[str, np.ndarray]:
    """The arrays from which `read_target` makes this target again."""
    stored = {"target": target.cpu().numpy()}
    return stored | {"task": np.array("numbers")} if target.is_floating_point() else stored


def read_target(
    path: Path, target: np.ndarray, training: np.ndarray, names: np.ndarray | None, task: np.ndarray | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The target as `Split` has it, and the names of the classes, labels or numbers.

    Args:
        path: for messages.
        target: (N, ...).
        training: (N,) bool, the samples of the training split.
        names: what the file says of these, if anything.
        task: the same of the task.

    Raises:
        ValueError: the target is of no task, or of another than the file says.
    """
    kind = _task(path, target, task)
    if kind == "classes":
        return _classes(path, target, training, names)
    width = target.shape[1] if target.ndim == 2 else 1
    found = [f"{kind[:-1]}{i + 1}" for i in range(width)] if names is None else [str(x) for x in decoded(names).ravel()]
    if len(found) != width or len(set(found)) != width:
        raise ValueError(
            f"Expected `class_names` in {path} to hold {width} distinct names, one of the {kind}, but got {found[:5]}. "
            "Name each once."
        )
    if kind == "labels":
        return torch.from_numpy(target.astype(bool)), tuple(found)
    values = np.ascontiguousarray(target.reshape(len(target), width), dtype=np.float32)
    if not (finite := np.isfinite(values).all(axis=1)).all():
        raise ValueError(
            f"Expected `target` in {path} to be finite, but got NaN or infinity (as float32) in {int((~finite).sum())} "
            f"rows, first in row {int(np.argmin(finite))}. Remove these samples."
        )
    return torch.from_numpy(values), tuple(found)


def _task(path: Path, target: np.ndarray, task: np.ndarray | None) -> str:
    said = None if task is None else str(decoded(task).reshape(-1)[0]) if task.size == 1 else f"{task.size} entries"
    if said not in (*_TASKS, None):
        raise ValueError(f"Expected `task` in {path} to be one of {', '.join(_TASKS)}, but got {said!r}. Correct it.")
    kind, dims = target.dtype.kind, target.ndim
    truths = kind == "b" or (kind in "iu" and said == "labels" and bool(np.isin(target, (0, 1)).all()))
    fitting = {
        "classes": dims == 1 and kind in "iuU",
        "labels": dims == 2 and target.shape[1] > 0 and truths,
        "numbers": dims in (1, 2) and target.shape[-1] > 0 and kind in "fiu",
    }
    if said is not None and fitting[said]:
        return said
    # Floating numbers that are all whole may be class indices by mistake.
    whole = kind == "f" and bool((target == np.round(target)).all())
    shown = [name for name in ("classes", "labels") if fitting[name]]
    shown += ["numbers"] if fitting["numbers"] and kind == "f" and not whole else []
    if said is None and shown:
        return shown[0]
    advice = "Give one label a sample, or true or false for each of L labels."
    if said is None and dims == 2 and _is_one_hot(target):
        advice = (
            "If each row marks the one class of its sample (one-hot), store target.argmax(1). Of several labels, store "
            'true and false, or integers 0 and 1 with `task` = "labels"; else add `task` = "numbers".'
        )
    elif said is None and dims == 2:
        advice = (
            'Of labels, store true and false, or integers 0 and 1 with `task` = "labels"; else add `task` = "numbers".'
        )
    elif said is None and whole:
        advice = 'Add `task` = "numbers" if they are to be predicted as numbers, or store class indices as integers.'
    raise ValueError(
        f"Expected `target` in {path} to be of shape (N,), integers or strings, (N, L) bool, or numbers with "
        f"fractions, but got {target.dtype} of shape {target.shape}{f' for task {said}' if said else ''}. {advice}"
    )


def _is_one_hot(target: np.ndarray) -> bool:
    marked = target == 1
    return bool(((target == 0) | marked).all() and (marked.sum(1) == 1).all())


def _classes(
    path: Path, labels: np.ndarray, in_training: np.ndarray, class_names: np.ndarray | None
) -> tuple[torch.Tensor, tuple[str, ...]]:
    are_names = labels.dtype.kind == "U"
    if class_names is not None:
        names = [str(name) for name in decoded(class_names).ravel()]
        source = "class_names"
    elif are_names:
        names = np.unique(labels[in_training]).tolist()
        source = "the training labels"
    else:
        largest = int(labels[in_training].max())
        if largest >= len(labels):  # not indices; a name for each integer below could fill the memory
            raise ValueError(
                f"Expected `target` in {path} to hold class indices counted from 0, but got {largest} "
                f"among {len(labels)} samples. Give the labels as strings, or add `class_names`."
            )
        names = [str(index) for index in range(max(largest, 0) + 1)]
        source = "the training labels"
    position = {name: index for index, name in enumerate(names)}
    if are_names:
        target = np.array([position.get(label, -1) for label in labels.tolist()], dtype=np.int64)
    else:
        target = labels.astype(np.int64)
    wrong = np.flatnonzero((target < 0) | (target >= len(names)))
    if len(wrong):
        raise ValueError(
            f"Expected `target` in {path} to hold the {len(names)} classes of {source}, "
            f"but got {labels[wrong[0]].item()!r} in row {wrong[0]}. "
            "Correct the label, or list every class in `class_names`."
        )
    return torch.from_numpy(target), tuple(names)
