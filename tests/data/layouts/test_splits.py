"""Splits that hang on names alone, and keep together what belongs together."""

import random

import pytest

from agm.data.layouts import Sample
from agm.data.layouts.splits import by_group, completed, hold_out, ninety_percent


def samples(number: int, groups: int = 0, classes: int = 3) -> list[Sample]:
    return [
        Sample(f"clip {n}", "train", n % classes, group=f"video {n // classes % groups}" if groups else "")
        for n in range(number)
    ]


def names(splits):
    return {split: {sample.name for sample in listed} for split, listed in splits.items()}


def test_a_tenth_of_each_class_whatever_the_order():
    listed = samples(300)
    made = hold_out({"train": listed}, 0.1)
    assert [sum(sample.label == label for sample in made["validation"]) for label in range(3)] == [10, 10, 10]
    assert made["train"] == [sample for sample in listed if sample not in made["validation"]]  # in their order
    shuffled = random.Random(0).sample(listed, len(listed))
    assert names(hold_out({"train": shuffled}, 0.1)) == names(made)
    more = hold_out({"train": [*listed, Sample("another", "train", 0)]}, 0.1)
    moved = names(more)["validation"] ^ names(made)["validation"]
    assert len(moved) <= 2  # a sample more changes next to nothing


def test_groups_stay_together():
    listed = samples(300, groups=20)
    made = hold_out({"train": listed}, 0.1)
    groups = {split: {sample.group for sample in part} for split, part in made.items()}
    assert not groups["train"] & groups["validation"]
    assert len(groups["validation"]) == 2
    apart = hold_out({"train": listed}, 0.1, grouped=False)
    assert {sample.group for sample in apart["validation"]} & {sample.group for sample in apart["train"]}


def test_splits_of_their_own_are_kept():
    own = {"train": samples(10), "validation": samples(5), "test": samples(3)}
    assert hold_out(own, 0.1) is own
    assert completed(own) == own


@pytest.mark.parametrize("number", [6, 9, 60, 600])
def test_what_is_missing_is_held_out(number):
    made = completed({"train": samples(number)})
    parts = names(made)
    assert sum(map(len, parts.values())) == number == len(set.union(*parts.values()))
    assert len(parts["test"]) >= 3  # one a class at least
    assert len(parts["test"]) == max(3, number // 10)


def test_groups_to_each_split():
    made = by_group(samples(300, groups=20))
    groups = [{sample.group for sample in part} for part in made.values()]
    assert [len(part) for part in groups] == [14, 2, 4]
    assert len(set.union(*groups)) == 20


def test_ninety_percent_is_the_front_of_each_list():
    train, test = samples(19), samples(11)
    made = ninety_percent({"train": train, "test": test})
    assert made == {"train": train[:17], "test": test[:9], "dep": train[17:] + test[9:]}
