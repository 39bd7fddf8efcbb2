import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from agm.strategies import StackedEnsemble, linear_heads

from .networks import batch_of, late


def case(modalities=2, samples=40, classes=4, criterion=F.cross_entropy, **settings):
    network = late(modalities).double()
    heads = {m: head.double() for m, head in linear_heads(network.widths, classes).items()}
    strategy = StackedEnsemble(network, heads=heads, criterion=criterion, num_classes=classes, **settings)
    inputs, target = batch_of(modalities, samples)
    return strategy, {m: x.double() for m, x in inputs.items()}, target


def rows_of(strategy, inputs, on):
    strategy.eval()
    features = {m: strategy.network.encoders[m](inputs[m]) for m in inputs}
    parts = [features[m] if on == "features" else strategy.heads[m](features[m]) for m in inputs]
    strategy.train()
    return torch.cat(parts, 1).detach()


@pytest.mark.parametrize("on", ["logits", "features"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_head_is_the_minimum_that_scipy_finds(on, modalities):
    strategy, inputs, target = case(modalities, on=on, penalty=0.02, iterations=500)
    x = rows_of(strategy, inputs, on).numpy()
    mean, deviation = x.mean(0), x.std(0)
    scaled, y, width = (x - mean) / deviation, target.numpy(), x.shape[1]

    def objective(flat):
        weight, bias = flat[: 4 * width].reshape(4, width), flat[4 * width :]
        logits = scaled @ weight.T + bias
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        errors = (np.exp(logs) - np.eye(4)[y]) / len(y)
        value = -logs[np.arange(len(y)), y].mean() + 0.01 * (weight**2).sum()
        return value, np.concatenate([(errors.T @ scaled + 0.02 * weight).ravel(), errors.sum(0)])

    best = minimize(objective, np.zeros(4 * width + 4), jac=True, method="BFGS", options={"gtol": 1e-9})
    weight, bias = best.x[: 4 * width].reshape(4, width), best.x[4 * width :]
    expected = torch.from_numpy(scaled @ weight.T + bias)
    half = [({m: v[rows] for m, v in inputs.items()}, target[rows]) for rows in (slice(25), slice(25, 40))]
    strategy.end_epoch(train=half)
    found = strategy.predictor.eval()(**inputs)
    # The common part of all classes' biases is free.
    torch.testing.assert_close(found.log_softmax(1), expected.log_softmax(1), rtol=1e-4, atol=1e-5)


def test_numbers_are_fitted_by_least_squares():
    strategy, inputs, _ = case(classes=2, criterion=F.mse_loss, penalty=0.0, on="features", iterations=500)
    target = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = torch.cat([rows_of(strategy, inputs, "features"), torch.ones(40, 1, dtype=torch.float64)], 1)
    strategy.end_epoch(train=[(inputs, target)])
    expected = x @ torch.linalg.lstsq(x, target, driver="gelsd").solution
    torch.testing.assert_close(strategy.predictor.eval()(**inputs), expected, rtol=1e-4, atol=1e-4)


def test_the_head_is_of_the_networks_of_that_moment_and_they_do_not_see_it():
    strategy, inputs, target = case()
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, weight_decay=0.1)
    strategy.end_epoch(train=[(inputs, target)])
    first = strategy.stack.weight.clone()
    alone = rows_of(strategy, inputs, "logits").view(40, 2, 4)
    strategy.eval()
    for outcome in strategy.steps(inputs, target):
        torch.testing.assert_close(outcome.logits, alone.mean(1))
        optimizer.step()
    assert torch.equal(strategy.stack.weight, first)
    strategy.end_epoch(train=[(inputs, target)])
    second = strategy.stack.weight.clone()
    assert not torch.allclose(first, second)
    strategy.stack.weight.fill_(7.0)
    strategy.end_epoch(train=[(inputs, target)])
    assert torch.equal(strategy.stack.weight, second)


def test_the_split_and_constant_columns():
    strategy, inputs, target = case(split="validation", on="features")
    assert strategy.needs == {"validation"}
    with pytest.raises(ValueError, match="needs the validation split"):
        strategy.end_epoch(train=[(inputs, target)])
    for m in inputs:
        nn.init.zeros_(strategy.network.encoders[m].linear.weight)
    strategy.end_epoch(validation=[(inputs, target)])
    found = strategy.predictor.eval()(**inputs)
    shares = torch.bincount(target, minlength=4).double() / 40
    torch.testing.assert_close(found[0].softmax(0), shares, rtol=1e-4, atol=1e-5)


def test_what_cannot_be():
    network = late()
    heads = linear_heads(network.widths, 4)
    with pytest.raises(ValueError, match="`on` to be one of 'logits', 'features'"):
        StackedEnsemble(network, heads=heads, on="votes")
    with pytest.raises(ValueError, match="`penalty` to be a number >= 0"):
        StackedEnsemble(network, heads=heads, penalty=-1)
    plain = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plain.forward = lambda a, b: None
    with pytest.raises(ValueError, match="`num_classes` and, on features, `widths`"):
        StackedEnsemble(plain, encoders={"a": "a", "b": "b"}, heads=linear_heads({"a": 2, "b": 2}, 2))
