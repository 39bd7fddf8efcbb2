"""Splits that everybody gets alike: drawn by a hash of names, never by a generator or the order of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agm.data.layouts.layout import Sample

__all__ = ["by_group", "completed", "hold_out", "ninety_percent"]


def _order(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def hold_out(
    splits: dict[str, list[Sample]], share: float, *, least: int = 0, grouped: bool = True
) -> dict[str, list[Sample]]:
    """`splits` with a validation split: their own, or of each class in train the share whose groups' hashes are least.

    Args:
        splits: samples by split.
        share: of the groups of a class.
        least: groups at least, where a class has two or more.
        grouped: keep samples of one group (clips of one video) together; else by their names alone.
    """
    train = splits.get("train", [])
    if splits.get("validation") or not train:
        return splits

    def unit(sample: Sample) -> str:
        return sample.group if grouped and sample.group else sample.name

    by_class: dict[int, set[str]] = {}
    for sample in train:
        by_class.setdefault(sample.label, set()).add(unit(sample))
    held: set[str] = set()
    for units in by_class.values():
        number = max(round(share * len(units)), min(least, len(units) - 1))
        held.update(sorted(units, key=_order)[:number])
    kept = [sample for sample in train if unit(sample) not in held]
    return {**splits, "train": kept, "validation": [sample for sample in train if unit(sample) in held]}


def completed(splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """`splits` with test and validation: their own, or a tenth of train each, drawn by a hash of names."""
    if not splits.get("test"):
        held = hold_out({"train": splits.get("train", [])}, 0.1, least=1)
        splits = {**splits, "train": held["train"], "test": held.get("validation", [])}
    return hold_out(splits, 0.1)


def by_group(samples: Iterable[Sample], validation: float = 0.1, test: float = 0.2) -> dict[str, list[Sample]]:
    """Whole groups (actors, persons) to test and to validation, those whose hashes are least; the others train.

    Shares are of the groups, one at least each. No group is in two splits.
    """
    samples = list(samples)
    groups = sorted({sample.group for sample in samples}, key=_order)
    tested = max(1, round(test * len(groups)))
    held = max(1, round(validation * len(groups)))
    part = {
        group: "test" if n < tested else "validation" if n < tested + held else "train"
        for n, group in enumerate(groups)
    }
    made: dict[str, list[Sample]] = {"train": [], "validation": [], "test": []}
    for sample in samples:
        made[part[sample.group]].append(sample)
    return made


def ninety_percent(splits: dict[str, list[Sample]]) -> dict[str, list[Sample]]:
    """As AGM's authors cut: the first 90 % of train and of test, and as "dep" what is left of both.

    They measure competition strength on "dep". Validation samples, which they have not, stay with train.
    """
    train, test = [*splits.get("train", []), *splits.get("validation", [])], splits.get("test", [])
    of_train, of_test = int(len(train) * 0.9), int(len(test) * 0.9)
    return {"train": train[:of_train], "test": test[:of_test], "dep": [*train[of_train:], *test[of_test:]]}
