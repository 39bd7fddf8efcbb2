"""Steps on tensors without numbers, fake or on the meta device: shapes come out, and nothing of them stays."""

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import agm
from agm.modulation.unfused import _bits_on
from agm.shapley.weights import weights_on

PRESENT = [[True, True, False]] * 4


def step(form: str, device: str = "cpu") -> Tensor:
    state = agm.ModulationState(3, device=device)
    logits = torch.ones(7, 4, 5, device=device, requires_grad=True)
    target = torch.zeros(4, dtype=torch.long, device=device)
    if form == "loss":
        result = agm.fused_modulate_cross_entropy(logits, target, state)[0]
    elif form == "linear":
        result = agm.fused_modulate_linear_cross_entropy(logits, torch.ones(6, 5, device=device), target, state)
    elif form == "presence":
        result = agm.fused_modulate(logits, target, state, present=torch.tensor(PRESENT, device=device))
    elif form == "probabilities":
        labels = torch.full((4, 5), 0.2, device=device)
        result = agm.fused_modulate(logits, labels, state, score="soft_cross_entropy")
    else:
        result = agm.fused_modulate(logits, target, state)
    result.sum().backward()
    assert logits.grad is not None
    return state.scores


FORMS = ["logits", "loss", "linear", "presence", "probabilities"]


@pytest.mark.parametrize("first", ["fake", "real"])
@pytest.mark.parametrize("form", FORMS)
def test_a_fake_step_leaves_nothing_to_a_real_one(form: str, first: str) -> None:
    """Tables that are kept on a device were fake for the rest of the process, if the first step was."""
    for table in (weights_on, _bits_on):
        table.cache_clear()  # type: ignore[attr-defined]
    if first == "real":
        step(form)
    with FakeTensorMode():
        assert step(form).shape == (3,)
    assert type(step(form)) is Tensor


@pytest.mark.parametrize("form", FORMS)
def test_a_step_on_the_meta_device(form: str) -> None:
    assert step(form, "meta").is_meta


def gradients_on(device: str) -> list[list[Tensor]]:
    return [[torch.ones(3, device=device)], [torch.ones(2, device=device)]]


@pytest.mark.parametrize(("mode", "device"), [(torch.no_grad, "meta"), (FakeTensorMode, "cpu")])
def test_gradients_without_memory_share_none(mode: type[AbstractContextManager[object]], device: str) -> None:
    with mode():
        agm.scale_gradients_(gradients_on(device), torch.ones(2, device=device))
        one = torch.ones(3, device=device)
        with pytest.raises(ValueError, match="among `gradients` twice"):
            agm.scale_gradients_([[one], [one]], torch.ones(2, device=device))
