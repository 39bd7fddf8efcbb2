"""What was probably meant where an array or a split has another name than the layout says."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["misnamed", "other_split_names"]

_ALSO_CALLED = {
    "target": ("targets", "label", "labels", "y", "class", "classes"),
    "split": ("splits", "fold", "set", "subset", "partition"),
}
_ALSO_NAMED = {
    "train": ("training", "trn"),
    "validation": ("val", "valid", "dev", "development"),
    "test": ("testing", "tst", "eval"),
}


def misnamed(required: str, found: Collection[str]) -> str:
    """Advice where an array that is missing seems to be there under another name; "" otherwise.

    >>> misnamed("target", ["image", "labels", "split"])
    'Rename `labels` to `target`.'
    >>> misnamed("target", ["image_train", "image_test", "y_train", "y_test"])
    'Join the arrays of the splits into one array per modality and one `target`, and add `split`.'
    """
    if not found:
        return "Give one .npz file of arrays, or a folder with one .npy file per array."
    for name in found:
        if name.lower() in _ALSO_CALLED[required]:
            return f"Rename `{name}` to `{required}`."
    if any(name.lower().endswith("_train") for name in found) and any(name.lower().endswith("_test") for name in found):
        return "Join the arrays of the splits into one array per modality and one `target`, and add `split`."
    return ""


def other_split_names(unknown: Sequence[object]) -> str:
    """Advice about entries of `split` that are known by another name; "" where one is not.

    >>> print(other_split_names(["Train", "val"]))
    Write "train" for 'Train', "validation" for 'val'.
    """
    meant = {}
    for name in unknown:
        said = str(name).lower()
        fitting = [split for split, others in _ALSO_NAMED.items() if said == split or said in others]
        if not fitting:
            return ""
        meant[name] = fitting[0]
    return "Write " + ", ".join(f'"{split}" for {name!r}' for name, split in meant.items()) + "." if meant else ""
