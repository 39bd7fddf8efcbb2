import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import CML, Draws

from .networks import NAMES, assert_same, batch_of, early, gradients, gradients_of, late, take


class Order(Draws):
    def __init__(self, *places):
        self.places = places

    def permutation(self, count, device):
        assert count == len(self.places)
        return torch.tensor(self.places, device=device)


def chain_by_hand(network, inputs, target, removed, weight, met):
    """The loss, a sample at a time; `met` counts what became of the rises of confidence."""
    features = {m: network.encoders[m](inputs[m]) for m in inputs}
    present = dict(features)
    logits = [network.fuse(features)]
    network.eval()
    for name in removed:
        present = {**present, name: torch.zeros_like(features[name])}
        logits.append(network.fuse(present))
    network.train()
    total = sum(F.cross_entropy(z, target) for z in logits) / len(logits)
    for before, after in itertools.pairwise(logits):
        for i, y in enumerate(target.tolist()):
            rise = after[i].softmax(0).max() - before[i].softmax(0).max()
            righted = int(after[i].argmax()) == y and int(before[i].argmax()) != y
            met["fallen" if rise <= 0 else "righted" if righted else "risen"] += 1
            if rise > 0 and not righted:
                total = total + weight * rise / len(target)
    return total


@pytest.mark.parametrize(("build", "places"), [(late, (1, 0)), (early, (0, 1)), (late, (2, 0, 1)), (early, (1, 2, 0))])
def test_a_rise_of_confidence_costs(build, places):
    network = build(len(places)).double()
    inputs, target = batch_of(len(places), samples=40)
    inputs = {m: x.double() for m, x in inputs.items()}
    with torch.no_grad():
        for encoder in network.encoders.values():  # predictions that differ from sample to sample
            encoder.linear.weight *= 10
            encoder.linear.bias.zero_()
    met = {"fallen": 0, "righted": 0, "risen": 0}
    removed = [NAMES[place] for place in places[:-1]]
    copied = copy.deepcopy(network)
    expected = gradients_of(copied, lambda: chain_by_hand(copied, inputs, target, removed, 1.5, met))
    assert all(met.values()), met
    strategy = CML(network, weight=1.5)
    strategy.draws = Order(*places)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)


def test_all_modalities_take_their_turn():
    network, (inputs, target) = late(), batch_of()
    strategy = CML(network)
    seen = []
    strategy.parts.with_only = lambda present, *_: seen.append(tuple(present)) or torch.zeros(8, 4)
    for _ in range(20):
        take(strategy, inputs, target)
    assert set(seen) == {("audio",), ("image",)}


def test_window_and_settings():
    network, (inputs, target) = late(), batch_of()
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(CML(network, start=1), inputs, target)
    assert_same(gradients(network), plain)
    with pytest.raises(ValueError, match="`weight`"):
        CML(network, weight=-1)
