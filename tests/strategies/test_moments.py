import copy
import math

import pytest
import torch

from agm.strategies import MLB, MSES, OGM, OGMGE, FirstMoment, linear_heads

from .networks import batch_of, early, gradients, late, take


def by_hand(values, history, factors, *, lr, betas, eps, decay, decoupled, amsgrad, maximize):
    """Adam on one tensor, where the first moment takes k g; `history`: gradients before weight decay."""
    m, v, top = torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values)
    for step, (g, k) in enumerate(zip(history, factors, strict=True), 1):
        g = -g if maximize else g
        if decoupled:
            values = values * (1 - lr * decay)
            scaled = k * g
        else:
            # Weight decay is no part of what a modality's coefficient scales.
            scaled, g = k * g + decay * values, g + decay * values
        m = betas[0] * m + (1 - betas[0]) * scaled
        v = betas[1] * v + (1 - betas[1]) * g * g
        top = torch.maximum(top, v)
        root = (top if amsgrad else v) / (1 - betas[1] ** step)
        values = values - lr * m / (1 - betas[0] ** step) / (root.sqrt() + eps)
    return values


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"weight_decay": 0.1, "amsgrad": True}),
        (torch.optim.AdamW, {"weight_decay": 0.1, "maximize": True}),
        (torch.optim.Adam, {"fused": True}),
    ],
)
def test_the_step_is_that_of_the_formula(kind, settings, foreach):
    fused = settings.get("fused", False)
    weight, other = (torch.nn.Parameter(torch.randn(4, 3, dtype=torch.float64)) for _ in range(2))
    optimizer = kind([weight, other], lr=0.01, betas=(0.8, 0.95), foreach=foreach and not fused, **settings)
    start, start_other = weight.detach().clone(), other.detach().clone()
    moment, history, factors = FirstMoment(optimizer), [], []
    for _ in range(4):
        weight.grad, other.grad = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
        history.append((weight.grad.clone(), other.grad.clone()))
        factors.append(torch.rand(4, 3, dtype=torch.float64) * 2)
        moment.scale({weight: factors[-1]})
        optimizer.step()
    formula = {
        "lr": 0.01,
        "betas": (0.8, 0.95),
        "eps": 1e-8,
        "decay": settings.get("weight_decay", 0.0),
        "decoupled": kind is torch.optim.AdamW,
        "amsgrad": settings.get("amsgrad", False),
        "maximize": settings.get("maximize", False),
    }
    first, second = zip(*history, strict=True)
    torch.testing.assert_close(weight.detach(), by_hand(start, first, factors, **formula), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other.detach(), by_hand(start_other, second, [1] * 4, **formula), rtol=1e-9, atol=1e-12)


def test_a_coefficient_is_for_one_step():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.01)
    moment = FirstMoment(optimizer)
    weight.grad = torch.ones(3)
    moment.scale({weight: torch.tensor(0.0)})
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))
    optimizer.step()
    assert (weight < 1).all()


def stepped(strategy_of, moments):
    """How far every parameter moves in a first step of Adam, where |step| is lr but for the coefficient."""
    torch.manual_seed(0)
    network, (inputs, target) = late(), batch_of()
    strategy = strategy_of(network, moments)
    strategy.optimizer = torch.optim.Adam(strategy.parameters(), lr=0.01, eps=1e-12)
    before = copy.deepcopy(network.state_dict())
    take(strategy, inputs, target)
    strategy.optimizer.step()
    moved = {name: (value.detach() - before[name]).abs() for name, value in network.named_parameters()}
    return moved, strategy.statistics()["coefficient"].tolist()


def test_adam_cancels_scaled_gradients_but_not_a_scaled_moment():
    moved, coefficients = stepped(lambda n, m: MLB(n, beta_max=5.0, moments=m), "gradient")
    assert min(coefficients) < 0.95
    for value in moved.values():
        torch.testing.assert_close(value[value > 1e-9], torch.full_like(value[value > 1e-9], 0.01), rtol=1e-2, atol=0)
    moved, coefficients = stepped(lambda n, m: MLB(n, beta_max=5.0, moments=m), "first")
    for place, (name, k) in enumerate(zip(("audio", "image"), coefficients, strict=True)):
        own = moved[f"encoders.{name}.linear.weight"]
        torch.testing.assert_close(own, torch.full_like(own, 0.01 * k), rtol=1e-2, atol=1e-5)
        columns = moved["classifier.weight"][:, 5 * place : 5 * place + 5]
        torch.testing.assert_close(columns, torch.full_like(columns, 0.01 * k), rtol=1e-2, atol=1e-5)
    bias = moved["classifier.bias"]
    torch.testing.assert_close(bias, torch.full_like(bias, 0.01), rtol=1e-2, atol=0)


def test_heads_beside_the_network_too():
    network, (inputs, target) = early(), batch_of()
    strategy = MLB(network, heads=linear_heads(network.widths, 4), moments="first")
    strategy.optimizer = torch.optim.Adam(strategy.parameters(), lr=0.01, eps=1e-12)
    before = strategy.heads["audio"].linear.weight.detach().clone()
    take(strategy, inputs, target)
    strategy.optimizer.step()
    moved = (strategy.heads["audio"].linear.weight.detach() - before).abs()
    k = float(strategy.statistics()["coefficient"][0])
    assert not math.isclose(k, 1, rel_tol=1e-2)
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * k), rtol=1e-2, atol=1e-5)


def test_for_sgd_it_is_the_gradient():
    found = []
    for moments in ("gradient", "first"):
        torch.manual_seed(0)
        network, (inputs, target) = late(), batch_of()
        strategy = OGM(network, alpha=1.0, moments=moments)
        strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
        take(strategy, inputs, target)
        found.append(gradients(network))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_what_it_cannot_do_is_refused():
    network, batch = late(), batch_of()
    with pytest.raises(ValueError, match="MSES scales no gradients"):
        MSES(network, moments="first")
    with pytest.raises(ValueError, match="no noise with moments='first'"):
        OGMGE(network, moments="first")
    strategy = OGM(network, moments="first")
    with pytest.raises(RuntimeError, match="attribute `optimizer`"):
        take(strategy, *batch)
    strategy.optimizer = torch.optim.RMSprop(network.parameters())
    with pytest.raises(ValueError, match="Adam, AdamW or SGD for moments='first', but got RMSprop"):
        take(strategy, *batch)
    strategy.optimizer = torch.optim.Adam(network.parameters(), betas=(0.0, 0.9))
    with pytest.raises(ValueError, match="begin above 0"):
        take(strategy, *batch)
