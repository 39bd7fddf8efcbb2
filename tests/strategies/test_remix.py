import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import Remix, linear_heads

from .networks import assert_same, batch_of, early, gradients, gradients_of, late, take


@torch.no_grad()
def least_certain(network, alone, inputs):
    """The place of the modality whose prediction is nearest to uniform, in bits, a sample at a time."""
    network.eval()
    logits = alone({m: network.encoders[m](inputs[m]) for m in inputs})
    network.train()
    found = []
    for i in range(len(next(iter(inputs.values())))):
        bits = [sum(p * math.log2(4 * p) for p in logits[m][i].softmax(0).tolist()) for m in inputs]
        found.append(bits.index(min(bits)))
    return found


def numbered(inputs, target, size=5):
    places = torch.randperm(len(target), generator=torch.Generator().manual_seed(1))
    return [({m: x[p] for m, x in inputs.items()}, target[p], p) for p in places.split(size)]


@pytest.mark.parametrize("modalities", [2, 3])
def test_every_sample_goes_to_the_modality_that_is_least_certain_of_it(modalities):
    torch.manual_seed(8)
    network, (inputs, target) = late(modalities), batch_of(modalities, samples=60)
    with torch.no_grad():
        for encoder in network.encoders.values():  # more certain of some samples than of others
            encoder.linear.weight.normal_(std=3)
            encoder.linear.bias.zero_()
    expected = least_certain(network, network.unimodal_logits, inputs)
    counts = [expected.count(place) for place in range(modalities)]
    assert min(counts) > 1
    strategy = Remix(network, warmup=2)
    order = torch.randperm(60)
    strategy.begin_epoch(1)
    assert torch.equal(strategy.draw(order).index, order)
    strategy.begin_epoch(2, train=numbered(inputs, target))
    assert strategy.assigned.tolist() == expected
    draw = strategy.draw(order)
    assert draw.index.tolist() == [i for place in range(modalities) for i in order.tolist() if expected[i] == place]
    assert draw.present.sum(1).tolist() == [1] * 60
    assert draw.present.long().argmax(1).tolist() == [expected[i] for i in draw.index.tolist()]
    assert list(draw.cuts) == [sum(counts[: k + 1]) for k in range(modalities - 1)]


@pytest.mark.parametrize(
    ("counts", "cuts"),
    [
        ((4, 5), (4,)),
        ((0, 9), ()),
        ((9, 0), ()),
        ((1, 8), ()),
        ((8, 1), ()),
        ((3, 0, 6), (3,)),
        ((1, 1, 7), (2,)),
        ((3, 5, 1), (3,)),
    ],
)
def test_no_batch_of_a_single_sample_is_cut(counts, cuts):
    strategy = Remix(late(len(counts)))
    strategy.assigned = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert strategy.draw(torch.randperm(9)).cuts == cuts


@pytest.mark.parametrize("build", [late, early])
def test_losses(build):
    network, (inputs, target) = build().double(), batch_of()
    inputs = {m: x.double() for m, x in inputs.items()}
    heads = {m: head.double() for m, head in linear_heads(network.widths, 4).items()}
    strategy = Remix(network, heads=heads, warmup=1, warmup_weight=0.3, weight=0.7)

    def warm():
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        own = sum(F.cross_entropy(heads[m](features[m]), target) for m in inputs)
        return F.cross_entropy(network.fuse(features), target) + 0.3 * own

    def remixed():
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        left = {m: h * present[:, place : place + 1] for place, (m, h) in enumerate(features.items())}
        own = torch.stack(
            [
                heads["audio" if present[i, 0] else "image"](
                    features["audio" if present[i, 0] else "image"][i : i + 1]
                )[0]
                for i in range(8)
            ]
        )
        return F.cross_entropy(network.fuse(left), target) + 0.7 * F.cross_entropy(own, target)

    expected = gradients_of(network, warm)
    strategy.begin_epoch(0)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)
    strategy.begin_epoch(1, train=numbered(inputs, target))
    one_modality = torch.tensor([[True, False]] * 8)
    mixed = torch.tensor([[True, False], [False, True]] * 4)
    for present in (one_modality, ~one_modality, mixed):
        expected = gradients_of(network, remixed)
        take(strategy, inputs, target, present=present)
        assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)


def test_outside_the_window_nothing_is_remixed():
    network, (inputs, target) = late(), batch_of()
    strategy = Remix(network, warmup=0, stop=1)
    with pytest.raises(ValueError, match="Remix needs the train split"):
        strategy.begin_epoch(0)
    strategy.begin_epoch(0, train=numbered(inputs, target))
    assert strategy.assigned is not None
    strategy.begin_epoch(1)
    order = torch.randperm(8)
    assert torch.equal(strategy.draw(order).index, order)
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(strategy, inputs, target)
    assert_same(gradients(network), plain)
    with pytest.raises(ValueError, match="`heads`"):
        Remix(early())
