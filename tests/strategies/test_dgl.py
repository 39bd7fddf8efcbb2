import copy

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import DGL, linear_heads

from .networks import NAMES, assert_same, batch_of, early, gradients, late, take


def by_hand(network, inputs, target, alpha):
    """The gradient of each parameter, one loss at a time; those of one feature alone in eval mode."""
    network = copy.deepcopy(network)
    features = {m: network.encoders[m](inputs[m]) for m in inputs}
    joint = F.cross_entropy(network.fuse(features), target)
    fusion = {n: p for n, p in network.named_parameters() if not n.startswith("encoders.")}
    expected = dict(zip(fusion, torch.autograd.grad(joint, list(fusion.values()), retain_graph=True), strict=True))
    network.eval()
    for m in inputs:
        absent = {j: torch.zeros_like(h) for j, h in features.items()}
        own = F.cross_entropy(network.fuse({**absent, m: features[m]}), target)
        group = {n: p for n, p in network.named_parameters() if n.startswith(f"encoders.{m}.")}
        found = torch.autograd.grad(own, list(group.values()), retain_graph=True)
        expected |= {n: alpha * g for n, g in zip(group, found, strict=True)}
    return expected


@pytest.mark.parametrize("build", [late, early, lambda n: late(n, combine="sum")])
@pytest.mark.parametrize("modalities", [2, 3])
def test_encoders_learn_from_unimodal_losses_and_the_fusion_from_the_joint_one(build, modalities):
    network, (inputs, target) = build(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    expected = by_hand(network, inputs, target, 2.5)
    outcome = take(DGL(network, alpha=2.5), inputs, target)
    assert_same(gradients(network), expected, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(outcome.loss, F.cross_entropy(outcome.logits, target))


def test_the_bias_is_whole_in_a_unimodal_prediction():
    """As in the released code; an equal share of it is what other strategies take."""
    network, (inputs, target) = late(), batch_of()
    with torch.no_grad():
        network.classifier.bias.copy_(torch.tensor([3.0, -2.0, 1.0, 0.0]))
    strategy = DGL(network)
    take(strategy, inputs, target)
    h = network.encoders["image"](inputs["image"])
    whole = F.cross_entropy(h @ network.classifier.weight[:, 5:].T + network.classifier.bias, target)
    torch.testing.assert_close(strategy.statistics()["score"][1], whole.detach())


def test_heads_learn_from_the_unimodal_losses():
    network, (inputs, target) = early(), batch_of()
    heads = linear_heads(network.widths, 4)
    take(DGL(network, heads=heads, alpha=3.0), inputs, target)
    for m in inputs:
        own = F.cross_entropy(heads[m](network.encoders[m](inputs[m])), target)
        parameters = [*network.encoders[m].parameters(), *heads[m].parameters()]
        for p, g in zip(parameters, torch.autograd.grad(own, parameters), strict=True):
            torch.testing.assert_close(p.grad, 3.0 * g, rtol=1e-4, atol=1e-6)


def test_outside_the_window_all_learn_from_the_joint_loss():
    network, (inputs, target) = late(), batch_of()
    take(DGL(network, start=1), inputs, target)
    found = gradients(network)
    network.zero_grad()
    F.cross_entropy(network(**inputs), target).backward()
    assert_same(found, gradients(network))


def test_frozen_parts_are_left_alone():
    network, (inputs, target) = late(), batch_of()
    network.encoders.requires_grad_(False)
    take(DGL(network), inputs, target)
    assert network.classifier.weight.grad is not None
    assert all(p.grad is None for p in network.encoders.parameters())
    assert set(inputs) == set(NAMES[:2])
    with pytest.raises(ValueError, match="`alpha` to be a number >= 0"):
        DGL(network, alpha=-1)
