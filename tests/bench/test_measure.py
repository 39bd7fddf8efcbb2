"""Timing in turns, and what may be said of the times."""

import time
from collections import Counter
from itertools import pairwise

import pytest
import torch

from bench.measure import interleaved, is_noisy, summary, turns, verdict
from bench.memory import resident, step_peak

CPU = torch.device("cpu")
MB = 2**20


def test_variants_take_turns() -> None:
    called: list[str] = []
    delay = 0.003  # longer than what is called several times in a row

    def variant(name: str) -> None:
        called.append(name)
        time.sleep(delay)

    seconds = interleaved({name: lambda name=name: variant(name) for name in "abc"}, 4, CPU)
    rounds = ["".join(called[-12:][start : start + 3]) for start in range(0, 12, 3)]
    assert rounds == ["abc", "bca", "cab", "cba"]
    assert all(len(values) == 4 and min(values) >= delay for values in seconds.values())


def test_every_variant_begins_and_follows_every_other() -> None:
    rounds = [turns(list("abc"), number) for number in range(6)]
    assert Counter(order[0] for order in rounds) == {"a": 2, "b": 2, "c": 2}
    assert {(a, b) for order in rounds for a, b in pairwise(order)} == {(a, b) for a in "abc" for b in "abc" if a != b}


def test_what_is_short_is_called_several_times() -> None:
    calls = [0]

    def short() -> None:
        calls[0] += 1

    (seconds,) = interleaved({"short": short}, 2, CPU).values()
    assert calls[0] > 1000
    assert max(seconds) < 1e-4


def test_ratios_are_taken_round_by_round() -> None:
    """A machine that is slower in some rounds is so for all variants."""
    row = summary([2.0, 20.0, 2.2], [1.0, 10.0, 1.1])
    assert row["ratio"] == row["ratio_20"] == row["ratio_80"] == pytest.approx(2)
    assert row["seconds"] == 2.2
    assert not is_noisy(row)
    assert is_noisy(summary([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([1.79, 1.80, 1.81], "holds"),
        ([1.88, 1.90, 1.91], "holds"),  # little noise: the median decides
        ([1.91, 1.95, 1.99], "broken"),
        ([1.00, 1.20, 1.50], "holds"),  # noisy, but all rounds agree
        ([2.00, 2.50, 3.00], "broken"),
        ([1.20, 1.80, 2.60], "too noisy"),
        ([1.20, 2.00, 2.60], "too noisy"),
    ],
)
def test_verdicts(ratios: list[float], said: str) -> None:
    assert verdict(summary(ratios, [1.0] * len(ratios)), 1.9) == said


def test_peak_memory_on_a_cpu() -> None:
    """What lives at a time counts, not what is allocated in all; what is inside an operation's result counts too."""
    kept = torch.ones(MB // 4)

    def step() -> None:
        for _ in range(3):
            first = kept + 1
            second = first + 1  # two are alive
            del first
            second += 1
            del second

    assert 2 * MB <= step_peak(step, CPU) < 2.2 * MB


def test_peak_memory_holds_activations() -> None:
    weight = torch.ones(256, 256, requires_grad=True)

    def step(layers: int) -> None:
        x = torch.ones(256, 256)
        for _ in range(layers):
            x = (x @ weight).tanh()
        x.sum().backward()
        weight.grad = None

    size = 256 * 256 * 4
    few, many = step_peak(lambda: step(2), CPU), step_peak(lambda: step(12), CPU)
    assert 10 * size <= many - few <= 11 * size


def test_what_stays_is_counted_once() -> None:
    whole = torch.ones(100)
    assert resident([whole, whole[:10], whole.view(10, 10), torch.ones(5)]) == 420
