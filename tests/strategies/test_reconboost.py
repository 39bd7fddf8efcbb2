import pytest
import torch
import torch.nn.functional as F

from agm.strategies import LinearHead, ReconBoost, linear_heads

from .networks import NAMES, assert_same, batch_of, gradients, gradients_of, late


def case(modalities=2, **settings):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    head = LinearHead(5, 4).double()
    strategy = ReconBoost(network, heads=dict.fromkeys(inputs, head), **settings)
    return strategy, network, {m: x.double() for m, x in inputs.items()}, target, head


def alone(network, head, inputs):
    return {m: head(network.encoders[m](inputs[m])) for m in inputs}


@pytest.mark.parametrize(
    ("modalities", "epoch", "own", "others", "before"),
    [
        (2, 0, "audio", [], None),
        (2, 2, "image", ["audio"], "audio"),
        (2, 4, "audio", ["image"], "image"),
        (3, 2, "image", ["audio"], "audio"),
        (3, 4, "text", ["audio", "image"], "image"),
        (3, 6, "audio", ["image", "text"], "text"),
    ],
)
@pytest.mark.parametrize("released", [False, True])
def test_boosting_every_sample(modalities, epoch, own, others, before, released):
    """Stages of one epoch, each followed by one of rectifying."""
    strategy, network, inputs, target, head = case(modalities, stage_epochs=1, rectify_epochs=1, released=released)
    with torch.no_grad():
        strategy.rate.fill_(0.8)

    def loss() -> torch.Tensor:
        logits = alone(network, head, inputs)
        total = 0.0
        for i, y in enumerate(target.tolist()):
            said = logits[own][i].softmax(0)
            known = 1.0
            if others:
                known = (0.8 * sum(logits[m][i] for m in others)).softmax(0)[y].item()
            total = total - (5 - known) * said[y].log() / (8 * 4)
            if before:
                seen = logits[before][i].softmax(0).detach()
                gap = ((said.detach() if released else said) - seen).square().sum()
                total = total + 0.5 * gap / (8 * 4)
        return total

    expected = gradients_of(network, loss)
    head.zero_grad()
    loss().backward()
    common = gradients(head)
    strategy.begin_epoch(epoch)
    assert strategy.boosted == own
    (_,) = strategy.steps(inputs, target)
    found = gradients(network)
    assert {name.split(".")[1] for name in found} == {own}
    assert_same(found, {name: value for name, value in expected.items() if name in found}, rtol=1e-9, atol=1e-12)
    assert_same(gradients(head), common, rtol=1e-9, atol=1e-12)
    assert strategy.rate.grad is None


def test_rectifying_trains_all_that_have_joined():
    strategy, network, inputs, target, head = case(3, stage_epochs=2, rectify_epochs=1)
    for epoch, joined in [(2, NAMES[:1]), (5, NAMES[:2]), (8, NAMES), (11, NAMES)]:
        strategy.begin_epoch(epoch)
        assert strategy.boosted is None
        network.zero_grad()
        logits = alone(network, head, inputs)
        total = strategy.rate * sum(logits[m] for m in joined)
        F.cross_entropy(total, target).backward()
        expected, rate = gradients(network), strategy.rate.grad.clone()
        (outcome,) = strategy.steps(inputs, target)
        torch.testing.assert_close(outcome.logits, total.detach())
        assert_same(gradients(network), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(strategy.rate.grad, rate)
        torch.testing.assert_close(
            strategy.predictor.eval()(**inputs),
            strategy.rate * sum(alone(network.eval(), head, inputs)[m] for m in joined),
        )
        network.train()
        strategy.zero_grad()


def test_stages_count_from_the_window_and_forget_momentum():
    strategy, _, inputs, target, _ = case(start=3, stage_epochs=2, rectify_epochs=1)
    optimizer = strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, momentum=0.9)
    assert strategy.least_epochs == 3 + 2 * 3
    stages, fresh = [], []
    for epoch in range(10):
        strategy.begin_epoch(epoch)
        fresh.append(not optimizer.state)
        stages.append(strategy.boosted)
        for _ in strategy.steps(inputs, target):
            optimizer.step()
    assert stages == [None] * 3 + ["audio", "audio", None, "image", "image", None, "audio"]
    assert fresh == [True, False, False, True, False, True, True, False, True, True]


def test_the_state_says_who_has_joined():
    strategy, _, inputs, _, _ = case(3, stage_epochs=1, rectify_epochs=1)
    strategy.begin_epoch(2)
    torch.manual_seed(5)
    again, *_ = case(3, stage_epochs=1, rectify_epochs=1)
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(strategy.eval().predictor(**inputs), again.eval().predictor(**inputs))
    strategy.begin_epoch(4)
    assert not torch.equal(strategy.predictor(**inputs), again.predictor(**inputs))


def test_heads_and_settings_that_cannot_be():
    network = late()
    with pytest.raises(ValueError, match="`heads` to map each modality to its head, but got none"):
        ReconBoost(network)
    heads = linear_heads(network.widths, 4)
    with pytest.raises(ValueError, match="`rectify_epochs` to be an integer >= 1"):
        ReconBoost(network, heads=heads, rectify_epochs=0)
    assert len(set(ReconBoost.default_heads(network, 4).values())) == 1
    network.widths["image"] = 7
    assert len(set(ReconBoost.default_heads(network, 4).values())) == 2
