import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import BSS, Draws

from .networks import batch_of, late


@torch.no_grad()
def by_hand(network, inputs, target):
    network.eval()
    features = {name: network.encoders[name](inputs[name]) for name in inputs}
    alone = network.unimodal_logits(features)
    joint, rows = network.fuse(features), []
    for i in range(len(target)):
        shares = [u[i].softmax(0) for u in alone.values()]
        pairs = [float(a @ b / a.norm() / b.norm()) for k, a in enumerate(shares) for b in shares[k + 1 :]]
        loss = sum(float(F.cross_entropy(u[i : i + 1], target[i : i + 1])) for u in (joint, *alone.values()))
        rows.append((max(pairs), loss))
    network.train()
    columns = []
    for column in zip(*rows, strict=True):
        low, high = min(column), max(column)
        columns.append([(value - low) / (high - low) for value in column])
    return [a - b for a, b in zip(*columns, strict=True)]


@pytest.mark.parametrize("modalities", [2, 3])
def test_scores_and_the_growing_share(modalities):
    network, (inputs, target) = late(modalities), batch_of(modalities, samples=10)
    expected = by_hand(network, inputs, target)
    strategy = BSS(network, first=0.4, growth=3)
    order = torch.randperm(10)
    places = torch.randperm(10)
    train = [({m: x[p] for m, x in inputs.items()}, target[p], p) for p in places.split(4)]
    for epoch, count in enumerate((4, 6, 8, 10, 10)):
        strategy.begin_epoch(epoch, train=train)
        assert strategy.sample_scores.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)
        best = sorted(range(10), key=lambda i: -expected[i])[:count]
        assert strategy.draw(order).index.tolist() == [i for i in order.tolist() if i in best]


def test_the_learned_schedule_draws_by_score():
    weights = []

    class Seen(Draws):
        def by_weight(self, values, drawn):
            weights.append(values)
            return super().by_weight(values, drawn)

    network, (inputs, target) = late(), batch_of()
    strategy = BSS(network, schedule="learned", every=2)
    strategy.draws = Seen()
    strategy.begin_epoch(0, train=[(inputs, target, torch.arange(8))])
    draw = strategy.draw(torch.randperm(8))
    assert len(draw.index) == 8
    assert weights[0].tolist() == pytest.approx([math.exp(s) for s in by_hand(network, inputs, target)], rel=1e-3)
    strategy.begin_epoch(1)  # none is due
    again = BSS(late(), schedule="learned")
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.sample_scores, strategy.sample_scores)
    strategy.begin_epoch(0, train=[(inputs, target, torch.arange(8))])
    with pytest.raises(ValueError, match="BSS needs the train split"):
        strategy.begin_epoch(2)
