import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import AMGB, Draws

from .networks import assert_same, batch_of, belongs, gradients, gradients_of, late, take


def losses(network, inputs, target):
    features = {name: network.encoders[name](inputs[name]) for name in inputs}
    alone = network.unimodal_logits(features)
    return F.cross_entropy(network.fuse(features), target), {m: F.cross_entropy(alone[m], target) for m in inputs}


@pytest.mark.parametrize("modalities", [2, 3])
def test_gradients_against_the_formula(modalities):
    network, (inputs, target) = late(modalities), batch_of(modalities)
    norms = {}
    for name in inputs:
        own = gradients_of(network, lambda name=name: losses(network, inputs, target)[1][name])
        norms[name] = math.sqrt(sum(float(g.square().sum()) for key, g in own.items() if belongs(key, name)))
    expected = gradients_of(
        network, lambda: sum(losses(network, inputs, target)[1].values(), losses(network, inputs, target)[0])
    )
    damped = []
    for name, norm in norms.items():
        others = [norms[j] for j in norms if j != name]
        ratio = norm / (sum(others) / len(others))
        damped.append(1 - math.tanh(0.5 * max(ratio - 1, 0)))
        for key in expected:
            if belongs(key, name):
                expected[key] *= damped[-1]
    assert min(damped) < 0.99
    assert max(damped) == 1
    strategy = AMGB(network)
    take(strategy, inputs, target)
    assert strategy.statistics()["coefficient"].tolist() == pytest.approx(damped, rel=1e-4)
    assert_same(gradients(network), expected, rtol=1e-3, atol=1e-6)


def test_the_noise_comes_after_the_step_and_is_annealed():
    class Ones(Draws):
        def normal(self, like):
            return torch.ones_like(like)

    network, (inputs, target) = late(), batch_of()
    strategy = AMGB(network, sigma_max=0.3, sigma_min=0.1, total_steps=2)
    strategy.draws = Ones()
    for step in range(3):
        before = network.classifier.bias.detach().clone()
        for _ in strategy.steps(inputs, target):
            assert torch.equal(network.classifier.bias.detach(), before)
        deviation = math.sqrt(0.09 * (math.cos(math.pi * step / 2) + 1) / 2 + 0.01)
        torch.testing.assert_close(network.classifier.bias.detach(), before + deviation)
    again = AMGB(late(), sigma_max=0.3, total_steps=2)
    again.load_state_dict(strategy.state_dict())
    assert again._steps == 3


def test_the_noise_needs_its_length():
    with pytest.raises(ValueError, match="`total_steps`"):
        AMGB(late(), sigma_max=0.1)
