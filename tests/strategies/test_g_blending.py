import copy

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import GBlending

from .networks import Loader, assert_same, batch_of, gradients, gradients_of, late, take


def loaders() -> tuple[Loader, Loader]:
    return Loader(batch_of(seed=1), batch_of(seed=2)), Loader(batch_of(seed=3, samples=12))


def three_losses(network, inputs, target) -> list[torch.Tensor]:
    features = {name: network.encoders[name](inputs[name]) for name in inputs}
    alone = network.unimodal_logits(features)
    return [*(F.cross_entropy(alone[name], target) for name in inputs), F.cross_entropy(network.fuse(features), target)]


def mean_losses(network, loader) -> list[float]:
    network.eval()
    rows, samples = [0.0] * 3, 0
    with torch.no_grad():
        for inputs, target in loader.batches:
            rows = [
                a + len(target) * float(b) for a, b in zip(rows, three_losses(network, inputs, target), strict=True)
            ]
            samples += len(target)
    network.train()
    return [row / samples for row in rows]


def naive(network, train, validation, epochs: int, absolute: bool) -> list[float]:
    before_t, before_v = mean_losses(network, train), mean_losses(network, validation)
    weights = []
    for k in range(3):
        probe = copy.deepcopy(network)
        optimizer = torch.optim.SGD(probe.parameters(), lr=0.05)
        for _ in range(epochs):
            for inputs, target in train.batches:
                optimizer.zero_grad()
                three_losses(probe, inputs, target)[k].backward()
                optimizer.step()
        after_t, after_v = mean_losses(probe, train)[k], mean_losses(probe, validation)[k]
        gain = before_v[k] - after_v
        overfitting = (after_v - after_t) - (before_v[k] - before_t[k])
        weights.append((abs(gain) if absolute else gain) / overfitting**2)
    return [weight / sum(weights) for weight in weights]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.mark.parametrize("absolute", [True, False])
def test_weights_against_the_formula(absolute):
    network, (train, validation) = late(), loaders()
    expected = naive(network, train, validation, 2, absolute)
    strategy = GBlending(network, super_epoch=2, absolute=absolute, make_optimizer=sgd)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    strategy.begin_epoch(0, train=train, validation=validation)
    assert strategy.weights.tolist() == pytest.approx(expected, rel=2e-2)  # small differences of losses, squared
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())
    assert network.training


def test_the_loss_is_the_blend():
    network, (inputs, target) = late(), batch_of()
    strategy = GBlending(network)
    strategy.weights.copy_(torch.tensor([0.2, 0.3, 0.5]))

    def blend() -> torch.Tensor:
        return sum(w * loss for w, loss in zip([0.2, 0.3, 0.5], three_losses(network, inputs, target), strict=True))

    expected = gradients_of(network, blend)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("online", "estimated"), [(True, [1, 3, 5]), (False, [1])])
def test_when_it_estimates(monkeypatch, online, estimated):
    seen = []

    def estimate(self, train, validation):
        seen.append(self.epoch)
        return torch.full((3,), float(self.epoch))

    monkeypatch.setattr(GBlending, "estimate", estimate)
    strategy = GBlending(late(), super_epoch=2, online=online, start=1)
    train, validation = loaders()
    for epoch in range(6):
        strategy.begin_epoch(epoch, train=train, validation=validation)
    assert seen == estimated
    again = GBlending(late())
    again.load_state_dict(strategy.state_dict())
    assert again.weights.tolist() == [float(estimated[-1])] * 3


def test_both_splits_are_needed():
    train, validation = loaders()
    for given in ({}, {"train": train}, {"validation": validation}):
        with pytest.raises(ValueError, match=r"GBlending needs the (train|validation) split"):
            GBlending(late()).begin_epoch(0, **given)
