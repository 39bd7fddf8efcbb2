import pytest
import torch
import torch.nn.functional as F

import agm
from agm.strategies import AGM

from .networks import assert_same, batch_of, belongs, early, gradients, late, take


def twins(build, inputs, seed):
    """Two equal networks whose running statistics are those of the batch, as they are after some training."""
    torch.manual_seed(seed)
    first, second = build(), build()
    with torch.no_grad():
        for _ in range(40):
            first(**inputs)
    second.load_state_dict(first.state_dict())
    return first, second


def lead(state):
    """As if the audio had been far ahead in the steps so far: this batch's smaller lead calls for a strong push."""
    state.running_scores.copy_(torch.tensor([0.0, 1.2]))
    state.step.fill_(5)
    return state


def parts_of(network, inputs, target, masked, alpha):
    """Gradients through the joint pass and through the masked ones."""
    state = lead(agm.ModulationState(2))
    logits = agm.masked_logits(network, inputs, masked=masked)
    agm.fused_modulate(logits.detach(), target, state, alpha=alpha)
    audio, image = state.coefficients.tolist()
    scales = [(audio - image) / 2, (image - audio) / 2, (audio + image) / 2]
    (grad,) = torch.autograd.grad(F.cross_entropy(logits[-1], target), logits, retain_graph=True)
    rows = torch.stack([scale * grad[-1] for scale in scales])
    found = []
    for chosen in (rows * torch.tensor([0, 0, 1.0]).view(3, 1, 1), rows * torch.tensor([1.0, 1, 0]).view(3, 1, 1)):
        network.zero_grad()
        logits.backward(chosen, retain_graph=True)
        found.append(gradients(network))
    network.zero_grad()
    return found


def norm(found, modality) -> float:
    return sum(float(g.double().square().sum()) for name, g in found.items() if belongs(name, modality)) ** 0.5


@pytest.mark.parametrize("build", [late, early])
@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("bound", [0.0, 0.3, 1e9])
def test_the_masked_part_of_each_encoder_is_bounded(build, masked, bound):
    inputs, target = batch_of()
    first, second = twins(build, inputs, 4)
    joint, others = parts_of(second, inputs, target, masked, alpha=0.8)
    expected, bit = {}, []
    for name in joint:
        share = 1.0
        for modality in inputs:
            if belongs(name, modality):
                share = min(1.0, bound * norm(joint, modality) / norm(others, modality))
                bit.append(share < 1)
        expected[name] = joint[name] + share * others[name]
    strategy = AGM(first, alpha=0.8, masked=masked, bound=bound)
    lead(strategy.module.modulator.state)
    take(strategy, inputs, target)
    assert_same(gradients(first), expected, rtol=1e-3, atol=1e-6)
    assert any(bit) == (bound < 1)
    for name, value in second.state_dict().items():
        torch.testing.assert_close(first.state_dict()[name], value)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_a_bound_that_is_never_reached_is_the_published_step(smoothing):
    first, second = twins(early, batch_of()[0], 4)
    bounded, plain = (
        AGM(network, alpha=2.0, bound=bound, smoothing=smoothing) for network, bound in ((first, 1e9), (second, None))
    )
    for step in range(3):
        batch = batch_of(seed=step)
        left, right = take(bounded, *batch), take(plain, *batch)
        torch.testing.assert_close(left.logits, right.logits)
        assert_same(gradients(first), gradients(second), rtol=1e-3, atol=1e-6)
    assert torch.equal(bounded.module.modulator.state.step, plain.module.modulator.state.step)
    torch.testing.assert_close(bounded.statistics(), plain.statistics())


def test_no_update_turns_around_where_the_published_one_does():
    """A strong modulation of a lagging response sends the eval-mode gradient against the joint one."""
    turned = 0
    for seed in range(6):
        inputs, target = batch_of(seed=seed)
        first, second = twins(late, inputs, seed)
        joint, others = parts_of(second, inputs, target, "exact", alpha=0.8)
        strategy = AGM(first, alpha=0.8, bound=0.5)
        lead(strategy.module.modulator.state)
        take(strategy, inputs, target)
        found = gradients(first)
        for modality in inputs:
            names = [name for name in joint if belongs(name, modality)]
            turned += sum(float(((joint[n] + others[n]) * joint[n]).sum()) for n in names) < 0
            product = sum(float((found[n] * joint[n]).sum()) for n in names)
            assert product >= 0.499 * norm(joint, modality) ** 2
    assert turned


def test_outside_the_window_and_in_eval_mode_it_is_plain():
    network, (inputs, target) = late(), batch_of()
    strategy = AGM(network, bound=0.5, start=1)
    strategy.begin_epoch(0)
    take(strategy, inputs, target)
    found = gradients(network)
    network.zero_grad()
    F.cross_entropy(network(**inputs), target).backward()
    assert_same(found, gradients(network))
    assert int(strategy.module.modulator.state.step) == 0
    with pytest.raises(ValueError, match="`bound` to be a number >= 0"):
        AGM(network, bound=-1.0)
    with pytest.raises(RuntimeError, match="forward before each backward"):
        AGM(network, bound=1.0)._bounded.backward(torch.zeros(()))
