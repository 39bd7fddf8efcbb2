import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import AMCo, Draws

from .networks import assert_same, batch_of, gradients, gradients_of, late, take


class Orders(Draws):
    """Permutations written down before, in the order in which they are asked for."""

    def __init__(self, *orders):
        self.orders = list(orders)

    def permutation(self, count, device):
        order = torch.tensor(self.orders.pop(0), device=device)
        assert len(order) == count
        return order


def shares(network, inputs, kept):
    """p_m, a sample at a time, by the terms of the split head on masked features."""
    weight, bias = network.classifier.weight, network.classifier.bias
    with torch.no_grad():
        features = {m: network.encoders[m](inputs[m]) * kept[m] for m in inputs}
        totals = dict.fromkeys(inputs, 0.0)
        for i in range(8):
            logits = [weight[:, 5 * k : 5 * k + 5] @ features[m][i] + bias / len(inputs) for k, m in enumerate(inputs)]
            whole = sum(float(z.exp().sum()) for z in logits)
            for m, z in zip(inputs, logits, strict=True):
                totals[m] += float(z.exp().sum()) / whole / 8
    return totals


@pytest.mark.parametrize("modalities", [2, 3])
def test_more_and_more_is_masked_of_the_dependent_modality(modalities):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    with torch.no_grad():
        network.classifier.weight[:, 5:10] *= 20  # the network depends on the second one
    strategy = AMCo(network, sigma=0.6, eps=0.3, rate=0.05, weight=0.5)
    order, other = [3, 0, 4, 1, 2], [0, 1, 2, 3, 4]
    everything = dict.fromkeys(inputs, torch.ones(5, dtype=torch.float64))

    def loss(kept):
        features = {m: network.encoders[m](inputs[m]) * kept[m] for m in inputs}
        alone = network.unimodal_logits(features).values()
        return F.cross_entropy(network.fuse(features), target) + 0.5 * sum(F.cross_entropy(u, target) for u in alone)

    assert shares(network, inputs, everything)["image"] > 0.6
    strategy.begin_epoch(2)  # l = 0.05 * 2 * t
    for step, part in enumerate((0.0, math.sin(math.pi / 6), math.sin(math.pi / 3), 1.0)):
        kept = dict(everything)
        if step:
            zeros = int(part * 5)
            assert zeros == (0, 2, 4, 5)[step]
            mask = torch.tensor([float(rank >= zeros) for rank in order], dtype=torch.float64)
            kept["image"] = mask / max(1 - part, 0.1)
        expected = gradients_of(network, lambda kept=kept: loss(kept))
        strategy.draws = Orders(*([order if m == "image" else other for m in inputs] if step else []))
        take(strategy, inputs, target)
        assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)
        told = strategy.statistics()
        assert told["score"].tolist() == pytest.approx(list(shares(network, inputs, kept).values()), rel=1e-4)
        assert told["coefficient"].tolist() == [float(m == "image") for m in inputs]
    again = AMCo(late(modalities).double())  # goes on in the midst of an epoch
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.dependent, strategy.dependent)
    assert again._batches == 4
    strategy.begin_epoch(3)  # begins anew
    assert not strategy.dependent.any()
    expected = gradients_of(network, lambda: loss(everything))
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)


def test_the_first_of_several_dependent_ones_is_masked():
    network, (inputs, target) = late(3), batch_of(3)
    strategy = AMCo(network, rate=1.0)
    strategy.begin_epoch(1)
    take(strategy, inputs, target)
    strategy.dependent.copy_(torch.tensor([False, True, True]))
    take(strategy, inputs, target)  # the mask is whole
    for m, encoder in network.encoders.items():
        assert encoder.linear.weight.grad.any() == (m != "image"), m


def test_nothing_is_masked_in_the_first_epoch_or_outside_the_window():
    network, (inputs, target) = late(), batch_of()
    for settings, epoch in (({}, 0), ({"start": 2}, 2), ({"start": 2}, 1), ({"stop": 1}, 1)):
        strategy = AMCo(network, **settings)
        strategy.begin_epoch(epoch)
        strategy.draws = Orders()
        strategy.dependent.fill_(True)
        for _ in range(3):
            take(strategy, inputs, target)
    for name in ("eps", "sigma"):
        with pytest.raises(ValueError, match=f"`{name}` to be .*above 0"):
            AMCo(network, **{name: 0})
