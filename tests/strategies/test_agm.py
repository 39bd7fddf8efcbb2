import math

import pytest
import torch
import torch.nn.functional as F

import agm
from agm.strategies import AGM, linear_heads

from .networks import assert_same, batch_of, belongs, early, gradients, late, take


def twins(build):
    torch.manual_seed(3)
    first = build()
    second = build()
    second.load_state_dict(first.state_dict())
    return first, second


@pytest.mark.parametrize("build", [late, early])
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_it_is_agm(build, masked):
    first, second = twins(build)
    strategy, model = AGM(first, alpha=1.5, masked=masked), agm.AGM(second, alpha=1.5, masked=masked)
    for step in range(3):
        inputs, target = batch_of(seed=step)
        outcome = take(strategy, inputs, target)
        model.zero_grad()
        loss = F.cross_entropy(model(**inputs, target=target), target)
        loss.backward()
        assert_same(gradients(first), gradients(second))
        torch.testing.assert_close(outcome.loss, loss.detach())
    state = model.modulator.state
    for kind, values in strategy.statistics().items():
        torch.testing.assert_close(values, getattr(state, {"score": "scores"}.get(kind, kind + "s")))
    assert strategy.module.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("stop", [None, 0])
def test_samples_that_lack_modalities(stop):
    first, second = twins(late)
    strategy, model = AGM(first, alpha=1.5), agm.AGM(second, alpha=1.5)
    if stop == 0:
        strategy, model = AGM(first, start=1), agm.AGM(second, start=1)
    inputs, target = batch_of()
    present = torch.ones(len(target), 2, dtype=torch.bool)
    present[::3, 0] = present[1::3, 1] = False
    outcome = take(strategy, inputs, target, present=present)
    loss = F.cross_entropy(model(**inputs, target=target, present=present), target)
    loss.backward()
    assert_same(gradients(first), gradients(second))
    torch.testing.assert_close(outcome.loss, loss.detach())
    whole = F.cross_entropy(second(**inputs), target)
    assert not torch.isclose(loss, whole)


def test_the_window():
    network, (inputs, target) = late(), batch_of()
    strategy = AGM(network, start=1, stop=2)
    for epoch, modulates in enumerate([False, True, False]):
        strategy.begin_epoch(epoch)
        take(strategy, inputs, target)
        assert bool(strategy.statistics()) == modulates
        assert int(strategy.module.modulator.state.step) == (epoch >= 1)


@pytest.mark.parametrize("build", [late, early])
@pytest.mark.parametrize("resumed", [False, True])
def test_smoothed_coefficients_scale_the_gradient(build, resumed):
    first, second = twins(build)
    strategy = AGM(first, alpha=2.0, smoothing=0.8)
    state, mean = agm.ModulationState(2), [1.0, 1.0]
    for step in range(3):
        inputs, target = batch_of(seed=step)
        take(strategy, inputs, target)
        masked = agm.masked_logits(second, inputs)
        agm.fused_modulate(masked.detach(), target, state, alpha=2.0)
        mean = [0.8 * old + 0.2 * new for old, new in zip(mean, state.coefficients.tolist(), strict=True)]
        # c_S of two modalities by hand: audio alone, image alone, both.
        scales = [(mean[0] - mean[1]) / 2, (mean[1] - mean[0]) / 2, (mean[0] + mean[1]) / 2]
        second.zero_grad()
        loss = F.cross_entropy(masked[-1], target)
        (grad,) = torch.autograd.grad(loss, masked, retain_graph=True)
        masked.backward(torch.stack([scale * grad[-1] for scale in scales]))
        assert_same(gradients(first), gradients(second), rtol=1e-4, atol=1e-6)
        if resumed:
            again = AGM(first, alpha=2.0, smoothing=0.8)
            again.load_state_dict(strategy.state_dict())
            strategy = again
    assert strategy.statistics().get("coefficient", torch.tensor(mean)).tolist() == pytest.approx(mean)
    assert not math.isclose(mean[0], 1.0, rel_tol=1e-3)


def test_what_cannot_be():
    network = early()
    with pytest.raises(ValueError, match="no argument `heads`"):
        AGM(network, heads=linear_heads(network.widths, 4))
    with pytest.raises(ValueError, match="`smoothing` to be a number >= 0 and below 1"):
        AGM(network, smoothing=1.0)
    inputs, target = batch_of()
    steps = AGM(network, bound=0.9).steps(inputs, target, present=torch.ones(8, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="`present`"):
        next(steps)


@pytest.mark.parametrize("build", [late, early])
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_unimodal_losses_beside_the_modulated_one(build, masked):
    """Gradients are those of AGM and those of the unimodal losses alone, of two networks with the same weights."""
    first, second = twins(build)
    third = build()
    third.load_state_dict(first.state_dict())
    heads = linear_heads(first.widths, first.num_classes) if build is early else None
    strategy = AGM(first, alpha=1.5, masked=masked, multi_loss=True, **({"heads": heads} if heads else {}))
    model = agm.AGM(second, alpha=1.5, masked=masked)
    inputs, target = batch_of()
    outcome = take(strategy, inputs, target)
    loss = F.cross_entropy(model(**inputs, target=target), target)
    loss.backward()
    third.train()
    features = {name: encoder(inputs[name]) for name, encoder in third.encoders.items()}
    alone = {n: heads[n](f) for n, f in features.items()} if heads else third.unimodal_logits(features)
    sum(F.cross_entropy(logits, target) for logits in alone.values()).backward()
    torch.testing.assert_close(outcome.loss, loss.detach())
    for (name, own), (_, modulated), (_, plain) in zip(
        first.named_parameters(), second.named_parameters(), third.named_parameters(), strict=True
    ):
        expected = sum(p.grad for p in (modulated, plain) if p.grad is not None)
        torch.testing.assert_close(own.grad, expected, msg=name)


@pytest.mark.parametrize("build", [late, early])
def test_the_coefficients_of_mlb_multiply_what_agm_and_unimodal_losses_leave(build):
    first, second = twins(build)
    inputs, target = batch_of()
    heads = [linear_heads(first.widths, first.num_classes) if build is early else None for _ in range(2)]
    if heads[0]:
        for own, other in zip(heads[0].values(), heads[1].values(), strict=True):
            own.load_state_dict(other.state_dict())
    options = {"alpha": 1.5, "masked": "shared", "multi_loss": True}
    strategy, without = (
        AGM(network, **options, **more, **({"heads": own} if own else {}))
        for network, own, more in zip((first, second), heads, ({"mlb_alpha": 0.6}, {}), strict=True)
    )
    batch = without.batch(inputs, target)
    next(iter(without.updates(batch)))
    scores = batch.confidences.tolist()
    coefficients = [1 + math.tanh(0.6 * (other / own - 1)) for own, other in (scores, scores[::-1])]
    assert min(coefficients) < 1 < max(coefficients)
    take(strategy, inputs, target)
    expected = gradients(second)
    for place, (modality, coefficient) in enumerate(zip(first.encoders, coefficients, strict=True)):
        if build is late:
            expected["classifier.weight"][:, 5 * place : 5 * place + 5] *= coefficient
        else:
            for own, other in zip(heads[0][modality].parameters(), heads[1][modality].parameters(), strict=True):
                torch.testing.assert_close(own.grad, other.grad * coefficient)
        for name in expected:
            if belongs(name, modality):
                expected[name] *= coefficient
    assert_same(gradients(first), expected, rtol=1e-4, atol=1e-6)


def test_the_coefficients_of_mlb_keep_to_the_window():
    first, second = twins(late)
    inputs, target = batch_of()
    for network, more in ((first, {"mlb_alpha": 0.6}), (second, {})):
        take(AGM(network, multi_loss=True, start=1, **more), inputs, target)
    assert_same(gradients(first), gradients(second))


def test_no_unimodal_losses_outside_the_window():
    network, (inputs, target) = late(), batch_of()
    other = late()
    other.load_state_dict(network.state_dict())
    strategy = AGM(network, multi_loss=True, start=1)
    take(strategy, inputs, target)
    F.cross_entropy(other(**inputs), target).backward()
    assert_same(gradients(network), gradients(other))


def test_what_multi_loss_cannot_be_with():
    with pytest.raises(ValueError, match="no argument `multi_loss` with a bound"):
        AGM(late(), multi_loss=True, bound=0.9)
    with pytest.raises(ValueError, match="or set multi_loss=True"):
        AGM(late(), heads=linear_heads(late().widths, 3))
    with pytest.raises(ValueError, match="no argument `mlb_alpha` without unimodal losses"):
        AGM(late(), mlb_alpha=0.8)
    with pytest.raises(ValueError, match="`mlb_alpha` to be a number >= 0"):
        AGM(late(), multi_loss=True, mlb_alpha=-1.0)
    inputs, target = batch_of()
    steps = AGM(late(), multi_loss=True).steps(inputs, target, present=torch.ones(8, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no argument `present` with `multi_loss`"):
        next(steps)


def test_absent_rows_without_a_gradient():
    first, second = twins(late)
    options = {"alpha": 1.5, "masked": "shared", "absent_gradient": False, "absent_refresh": 4}
    strategy, model = AGM(first, **options), agm.AGM(second, **options)
    for step in range(3):
        inputs, target = batch_of(seed=step)
        take(strategy, inputs, target)
        model.zero_grad()
        F.cross_entropy(model(**inputs, target=target), target).backward()
        assert_same(gradients(first), gradients(second))
