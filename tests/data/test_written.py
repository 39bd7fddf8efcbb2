"""Digits in words."""

import itertools
from random import Random

import numpy as np
import pytest

from agm.data.written import LETTERS, SPELLINGS, encode, held_out, mistype


def test_every_digit_has_spellings_of_its_own():
    assert len(SPELLINGS) == 10
    assert min(map(len, SPELLINGS)) >= 18
    words = list(itertools.chain(*SPELLINGS))
    assert len(set(words)) == len(words)
    assert {letter for word in words for letter in word} <= set(LETTERS)
    english = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert all(word in spellings for word, spellings in zip(english, SPELLINGS, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_spellings_are_parted_and_none_is_lost(seed):
    for spellings in SPELLINGS:
        training, testing = held_out(spellings, 1 / 3, Random(seed))
        assert len(testing) == round(len(spellings) / 3)
        assert sorted(training + testing) == list(spellings)
    assert held_out(("a", "b"), 0.01, Random(0))[1] in {("a",), ("b",)}
    assert held_out(SPELLINGS[0], 1 / 3, Random(0)) != held_out(SPELLINGS[0], 1 / 3, Random(1))


class Scripted(Random):
    """Gives the numbers that a test wants."""

    def __init__(self, *numbers: float) -> None:
        super().__init__(0)
        self.numbers = iter(numbers)

    def random(self) -> float:
        return next(self.numbers)


@pytest.mark.parametrize(("mistake", "typed"), [(0.1, "zaro"), (0.3, "zro"), (0.6, "zaero"), (0.9, "zreo")])
def test_each_mistake(mistake, typed):
    untouched = (0.99, 0.0, 0.0)
    random = Scripted(*untouched, 0.1, mistake, 0.0, *untouched, *untouched)
    assert mistype("zero", 0.5, random) == typed


def test_swapping_the_last_letter_and_omitting_all():
    assert mistype("no", 1.0, Scripted(0.9, 0.3, 0.0, 0.9, 0.9, 0.0)) == "o"
    assert mistype("no", 1.0, Scripted(*[0.0, 0.3, 0.0] * 2)) == ""
    assert mistype("seven", 0.0, Random(0)) == "seven"


def test_as_many_letters_are_mistyped_as_asked_for():
    random = Random(0)
    words = [mistype("a" * 9, 0.2, random) for _ in range(3000)]
    changed = np.mean([word != "a" * 9 for word in words])
    # Exchanging equal letters shows nothing, nor does one replacement or insertion in 26.
    assert changed == pytest.approx(1 - (1 - 0.2 * (0.25 + 0.5 * 25 / 26)) ** 9, abs=0.04)
    assert {len(word) for word in words} >= {7, 8, 9, 10, 11}


def test_more_mistakes_come_on_top():
    def mistakes(typos):
        random = Random(5)
        return [mistype("seitseman", typos, random) != "seitseman" for _ in range(200)]

    few, many = mistakes(0.05), mistakes(0.2)
    assert sum(few) < sum(many)
    assert all(more for less, more in zip(few, many, strict=True) if less)


def test_letters_become_vectors():
    letters = encode(["ab", "", "zzz"], 2)
    assert letters.shape == (3, 2, 26)
    assert [tuple(place) for place in np.argwhere(letters).tolist()] == [(0, 0, 0), (0, 1, 1), (2, 0, 25), (2, 1, 25)]
    assert letters.max() == 1.0
