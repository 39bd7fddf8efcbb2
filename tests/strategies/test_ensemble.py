import copy

import pytest
import torch
import torch.nn.functional as F

import agm
from agm.models import LateFusion
from agm.strategies import LinearHead, UnimodalEnsemble, build, linear_heads, strategies

from .networks import Encoder, batch_of, late


def case(modalities=2, **settings):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    heads = {m: head.double() for m, head in linear_heads(network.widths, 4).items()}
    return UnimodalEnsemble(network, heads=heads, **settings), {m: x.double() for m, x in inputs.items()}, target


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("modalities", [2, 3])
def test_each_is_trained_as_by_itself(modalities, clipped):
    """Weights, running statistics and momentum, bit for bit those of networks of one modality each."""
    strategy, inputs, target = case(modalities)
    singles = {}
    for m in inputs:
        single = LateFusion({m: copy.deepcopy(strategy.network.encoders[m])}, 4).double()
        single.classifier.load_state_dict(strategy.heads[m].linear.state_dict())
        singles[m] = single, torch.optim.SGD(single.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        for _ in strategy.steps(inputs, target):
            if clipped:
                torch.nn.utils.clip_grad_norm_(strategy.parameters(), 0.05)
            optimizer.step()
        for m, (single, own) in singles.items():
            own.zero_grad()
            F.cross_entropy(single(**{m: inputs[m]}), target).backward()
            if clipped:
                torch.nn.utils.clip_grad_norm_(single.parameters(), 0.05)
            own.step()
    for m, (single, _) in singles.items():
        for name, value in single.encoders[m].state_dict().items():
            assert torch.equal(value, strategy.network.encoders[m].state_dict()[name]), name
        assert torch.equal(single.classifier.weight, strategy.heads[m].linear.weight)


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_means_of_every_sample(modalities):
    strategy, inputs, target = case(modalities)
    strategy.eval()
    alone = [strategy.heads[m](strategy.network.encoders[m](inputs[m])) for m in inputs]
    torch.testing.assert_close(strategy.predictor(**inputs), sum(alone) / modalities)
    strategy.mean = "probabilities"
    found = strategy.predictor(**inputs).exp()
    for i in range(8):
        torch.testing.assert_close(found[i], sum(u[i].softmax(0) for u in alone) / modalities)
    (*_, outcome) = strategy.steps(inputs, target)
    torch.testing.assert_close(outcome.logits, found.log().detach())
    torch.testing.assert_close(outcome.loss, F.nll_loss(found.log(), target).detach())
    losses = torch.stack([F.cross_entropy(u, target) for u in alone])
    torch.testing.assert_close(strategy.statistics()["score"], losses.detach())


@pytest.mark.parametrize("name", ["ensemble", "stacked", "reconboost", "di-mml"])
def test_the_strength_of_competition_is_read_from_the_features_side_by_side(name):
    network, (inputs, _) = late(), batch_of()
    predictor = build(name, network, heads=strategies[name].default_heads(network, 4)).predictor
    network.eval()
    expected = torch.cat([network.encoders[m](inputs[m]) for m in inputs], 1)
    torch.testing.assert_close(agm.competition.fused_features(predictor, inputs), expected.detach())


def test_what_cannot_be():
    network = late()
    with pytest.raises(ValueError, match="to a head of its own, but got 0 heads"):
        UnimodalEnsemble(network)
    with pytest.raises(ValueError, match="but got 1 heads"):
        UnimodalEnsemble(network, heads=dict.fromkeys(("audio", "image"), LinearHead(5, 4)))
    with pytest.raises(ValueError, match="`mean` to be one of 'logits', 'probabilities'"):
        UnimodalEnsemble(network, heads=linear_heads(network.widths, 4), mean="votes")
    strategy, inputs, _ = case(mean="probabilities")
    for target in (torch.rand(8, 4, dtype=torch.float64), torch.rand(8, 4) < 0.5):
        with pytest.raises(ValueError, match=f"class indices for mean='probabilities', but got {target.dtype}"):
            list(strategy.steps(inputs, target))


def test_numbers_have_a_mean_too():
    network = LateFusion({m: Encoder() for m in ("audio", "image")}, 2)
    strategy = UnimodalEnsemble(network, heads=linear_heads(network.widths, 2), criterion=F.mse_loss)
    inputs, _ = batch_of()
    target = torch.rand(8, 2)
    *_, outcome = strategy.steps(inputs, target)
    torch.testing.assert_close(outcome.loss, F.mse_loss(outcome.logits, target))
