"""What a step costs in Python, counted: the functions that it calls once it is steady."""

import pytest
import torch

from bench.overhead import FORMS, calls, step_of

CPU = torch.device("cpu")

# Close above what there is: 124 of a joint step, 323 of the joint pass and two masked ones without any modulation.
BOUNDS = {
    "one piece": 510,
    "paths, exact": 722,
    "paths, shared": 732,
    "paths, refreshed": 795,
    "protocol, exact": 710,
    "protocol, shared": 717,
}


@pytest.mark.parametrize("variant", FORMS)
def test_python_calls_of_a_step(variant: str) -> None:
    assert calls(step_of(variant, CPU)) <= BOUNDS[variant]


def test_a_step_that_repeats_itself_costs_the_same() -> None:
    """Nothing is looked for anew in a later step, and nothing piles up."""
    step = step_of("paths, shared", CPU)
    assert len({calls(step) for _ in range(5)}) == 1
