"""What a step costs in Python, counted: the functions that it calls once it is steady."""

import threading

import pytest
import torch
import torch.nn.functional as F

import agm
from bench.overhead import FORMS, ByHand, Paths, calls, step_of

CPU = torch.device("cpu")

# Close above what there is: 124 of a joint step, 323 of the joint pass and two masked ones without any modulation.
BOUNDS = {
    "one piece": 565,
    "paths, exact": 790,
    "paths, shared": 800,
    "paths, refreshed": 858,
    "protocol, exact": 784,
    "protocol, shared": 789,
}


@pytest.mark.parametrize("variant", FORMS)
def test_python_calls_of_a_step(variant: str) -> None:
    assert calls(step_of(variant, CPU)) <= BOUNDS[variant]


@pytest.mark.parametrize("variant", FORMS)
def test_python_calls_of_a_step_beside_another_thread(variant: str) -> None:
    """As data loaders and progress bars have them: the network is refused to these."""
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert calls(step_of(variant, CPU)) <= BOUNDS[variant]
    finally:
        done.set()
        thread.join()


def test_a_step_that_repeats_itself_costs_the_same() -> None:
    """Nothing is looked for anew in a later step, and nothing piles up."""
    step = step_of("paths, shared", CPU)
    assert len({calls(step) for _ in range(5)}) == 1


def test_the_step_by_hand_is_that_of_a_model() -> None:
    """The floor that the table shows computes what `agm.AGM` does."""
    torch.manual_seed(0)
    audio, visual = torch.randn(2, 8, 8)
    target = torch.randint(0, 4, (8,))
    networks = [Paths(), Paths()]
    networks[1].load_state_dict(networks[0].state_dict())
    model = agm.AGM(networks[0], ("audio", "visual"), **FORMS["paths, shared"][1])
    by_hand = ByHand(networks[1], CPU)
    for _ in range(3):
        for own in (model(audio=audio, visual=visual, target=target), by_hand(audio, visual, target)):
            F.cross_entropy(own, target).backward()
        for one, other in zip(*(network.parameters() for network in networks), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
            with torch.no_grad():
                one -= 0.5 * one.grad
                other -= 0.5 * other.grad
    torch.testing.assert_close(by_hand.state.values, model.modulator.state.values)
    assert (by_hand.state.coefficients - 1).abs().max() > 1e-3
