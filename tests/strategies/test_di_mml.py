import pytest
import torch
import torch.nn.functional as F
from torch import nn

import agm
from agm.strategies import DIMML, linear_heads
from agm.strategies.di_mml import effective_dimensions

from .networks import assert_same, batch_of, early, gradients, gradients_of, late
from .test_shapes import Paths


def case(modalities=2, network=None, **settings):
    network = late(modalities).double() if network is None else network
    inputs, target = batch_of(modalities)
    heads = linear_heads(dict.fromkeys(inputs, 5), 4)
    strategy = DIMML(network, heads=heads, widths=dict.fromkeys(inputs, 5), num_classes=4, **settings).double()
    return strategy, network, {m: x.double() for m, x in inputs.items()}, target


def heads_of(strategy, inputs):
    return [strategy.heads[m] for m in inputs]


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_the_first_stage_number_by_number(modalities, epoch):
    """With the contrast from epoch 1 on."""
    strategy, network, inputs, target = case(modalities, contrast_from=1, shared=0.7, temperature=3.0)
    strategy.begin_epoch(epoch, train=[(inputs, target)])
    kept = strategy.effective.clone()
    if epoch:  # whatever was measured, dimensions that make a difference
        kept = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [1, 0, 1, 1, 0]], dtype=torch.bool)[:modalities]
        strategy.effective.copy_(kept)

    def loss() -> torch.Tensor:
        features = [network.encoders[m](inputs[m]) for m in inputs]
        total = sum(F.cross_entropy(h(f), target) for h, f in zip(heads_of(strategy, inputs), features, strict=True))
        total = total + 0.7 * sum(F.cross_entropy(strategy.common_head(f), target) for f in features)
        if not epoch:
            return total
        for m in range(modalities):
            for j in range(modalities):
                dims = [d for d in range(5) if kept[m, d] and not kept[j, d]]
                if m == j:
                    continue
                for i in range(8):
                    rows = [sum(features[j][i, d] * features[m][k, d].detach() for d in dims) / 3.0 for k in range(8)]
                    rows = [torch.as_tensor(row, dtype=torch.float64).exp() for row in rows]
                    total = total - (rows[i] / sum(rows)).log() / 8
        return total

    expected = gradients_of(network, loss)
    heads = gradients_of(strategy.heads, loss)
    network.zero_grad()
    (outcome,) = strategy.steps(inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-12)
    assert_same(gradients(strategy.heads), heads, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in network.classifier.parameters())
    assert outcome.logits.shape == (8, 4)


@pytest.mark.parametrize("build_network", [late, early])
def test_the_second_stage_trains_the_fusion_alone(build_network):
    strategy, network, inputs, target = case(network=build_network().double(), stage_epochs=3)
    strategy.begin_epoch(3)
    state = {name: value.clone() for name, value in network.encoders.state_dict().items()}

    def loss() -> torch.Tensor:
        features = {m: network.encoders[m].eval()(inputs[m]).detach() for m in inputs}
        network.encoders.train()
        return F.cross_entropy(network.fuse(features), target)

    expected = gradients_of(network, loss)
    (_,) = strategy.steps(inputs, target)
    assert expected
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-12)
    assert not any(p.grad is not None for p in (*strategy.heads.parameters(), *strategy.common_head.parameters()))
    assert all(torch.equal(value, state[name]) for name, value in network.encoders.state_dict().items())


@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_said_is_weighted_by_certainty(stage):
    strategy, network, inputs, _ = case(3, stage_epochs=1, certainty=0.5)
    if stage == 2:
        strategy.begin_epoch(1)
    strategy.eval()
    rows = []
    features = {m: network.encoders[m](inputs[m]) for m in inputs}
    for i in range(8):
        said = [head(features[m])[i] for m, head in zip(inputs, heads_of(strategy, inputs), strict=True)]
        if stage == 2:
            said.append(network.fuse(features)[i])
        weights = torch.stack([u.softmax(0).max() / 0.5 for u in said]).exp()
        rows.append(sum(w * u for w, u in zip(weights, said, strict=True)) / weights.sum())
    torch.testing.assert_close(strategy.predictor(**inputs), torch.stack(rows))
    masked = agm.masked_logits(strategy.predictor, inputs)
    torch.testing.assert_close(masked[-1], torch.stack(rows).detach())


def test_a_network_by_path_predicts_too():
    network = Paths(2).double()
    paths = {m: f"parts.{m}" for m in ("audio", "image")}
    strategy, _, inputs, target = case(network=network, encoders=paths, stage_epochs=1)
    strategy.begin_epoch(1)
    strategy.eval()
    torch.testing.assert_close(
        strategy.predictor(**inputs),
        strategy.combine([*(strategy.heads[m](network.parts[m](inputs[m])) for m in inputs), network(**inputs)]),
    )
    (_,) = strategy.steps(inputs, target)
    assert {name for name in gradients(network)} == {"out.weight", "out.bias"}
    masked = agm.masked_logits(strategy.predictor, inputs)
    torch.testing.assert_close(masked[-1], strategy.predictor(**inputs).detach())


def test_effective_dimensions_by_hand():
    """Two classes with means 0 and 1 in dimension 0, where 3 of 4 are nearest to theirs; in dimension 1 2 of 4 are, in
    dimension 2 all; the mean share is 3/4, which dimension 0 is not above. Class 1 has no sample."""
    features = torch.tensor([[-0.8, 1.0, 5.0], [0.8, 0.0, 6.0], [1.0, 1.2, 8.0], [1.0, -0.1, 9.0]])
    target = torch.tensor([0, 0, 2, 2])
    means = torch.stack([features[:2].mean(0), features[2:].mean(0)])
    shares = [
        sum(int((features[i, d] - means[:, d]).abs().argmin()) == target[i] // 2 for i in range(4)) / 4
        for d in range(3)
    ]
    assert shares == [0.75, 0.5, 1.0]
    assert effective_dimensions(features, target, 3).tolist() == [False, False, True]


def test_the_contrast_is_measured_once():
    strategy, network, *_ = case(contrast_from=2, stage_epochs=4)
    inputs, target = batch_of(samples=40, seed=1)
    inputs = {m: x.double() for m, x in inputs.items()}
    strategy.begin_epoch(0)
    with pytest.raises(ValueError, match="DIMML needs the train split"):
        strategy.begin_epoch(2)
    halves = [({m: x[rows] for m, x in inputs.items()}, target[rows]) for rows in (slice(15), slice(15, 40))]
    strategy.begin_epoch(2, train=halves)
    kept = strategy.effective.clone()
    network.eval()
    expected = [effective_dimensions(network.encoders[m](inputs[m]).detach(), target, 4) for m in inputs]
    network.train()
    assert torch.equal(kept, torch.stack(expected))
    assert 0 < int(kept.sum()) < 10
    again, *_ = case(contrast_from=2, stage_epochs=4)
    again.load_state_dict(strategy.state_dict())
    for each in (strategy, again):
        each.begin_epoch(3)  # needs no split
        assert torch.equal(each.effective, kept)
    assert strategy.least_epochs == 5


def test_what_cannot_be():
    network = late()
    heads = linear_heads(network.widths, 4)
    with pytest.raises(ValueError, match="`heads` to map each modality to its head, but got none"):
        DIMML(network)
    with pytest.raises(ValueError, match="`temperature` to be a finite number above 0"):
        DIMML(network, heads=heads, temperature=0.0)
    with pytest.raises(ValueError, match="`widths`, one for all modalities as DI-MML compares dimensions"):
        DIMML(network, heads=heads, widths={"audio": 5, "image": 6})
    plain = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plain.forward = lambda a, b: None
    with pytest.raises(ValueError, match="got None and None"):
        DIMML(plain, encoders={"a": "a", "b": "b"}, heads=linear_heads({"a": 2, "b": 2}, 4))
