import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import OPM, Draws

from .networks import assert_same, batch_of, gradients, gradients_of, late, take, true_class_probabilities


class Given(Draws):
    """Numbers written down before, in the order in which they are asked for."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, count, device):
        number = torch.tensor(self.numbers.pop(0), device=device)
        assert number.shape == (count,)
        return number


def probabilities(scores, q_base, lam):
    found = {}
    for m, s in scores.items():
        ratio = sum(s / scores[j] for j in scores if j != m) / (len(scores) - 1)
        found[m] = min(q_base * (1 + lam * math.tanh(ratio - 1)), 1.0) if ratio > 1 else 0.0
    return found


def unequal(modalities):
    """Features of the first modality are so large that its confidences differ from the others'."""
    network = late(modalities).double()
    with torch.no_grad():
        network.classifier.weight[:, :5] *= 8
    inputs, target = batch_of(modalities)
    return network, {m: x.double() for m, x in inputs.items()}, target


@pytest.mark.parametrize("modalities", [2, 3])
def test_features_of_the_modality_ahead_are_dropped(modalities):
    network, inputs, target = unequal(modalities)
    strategy = OPM(network, q_base=0.5, lam=0.7, p_exe=0.6)
    uniforms = torch.rand(modalities, 8, generator=torch.Generator().manual_seed(3)).tolist()
    scores = true_class_probabilities(network, inputs, target)
    q = probabilities(scores, 0.5, 0.7)
    assert 0.0 in q.values()
    assert any(0.5 < value < 1 for value in q.values())
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))

    strategy.draws = Given([0.1], *uniforms)  # no modality is known to be ahead yet
    take(strategy, inputs, target)
    assert_same(gradients(network), plain, rtol=1e-10, atol=1e-14)
    assert strategy.probabilities.tolist() == pytest.approx(list(q.values()), rel=1e-10)

    kept = {m: torch.tensor(row) >= q[m] for m, row in zip(inputs, uniforms, strict=True)}
    assert 0 < sum(int(k.sum()) for k in kept.values()) < 8 * modalities
    share = sum(q.values()) / modalities

    def loss():
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        left = {m: h * kept[m].unsqueeze(1) / (1 - share) for m, h in features.items()}
        return F.cross_entropy(network.fuse(left), target)

    expected = gradients_of(network, loss)
    strategy.draws = Given([0.59], *uniforms)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-10, atol=1e-14)
    # From what nothing was dropped of.
    assert strategy.probabilities.tolist() == pytest.approx(list(q.values()), rel=1e-10)

    strategy.draws = Given([0.6], *uniforms)  # one of the batches that are left alone
    take(strategy, inputs, target)
    assert_same(gradients(network), plain, rtol=1e-10, atol=1e-14)


def test_the_share_goes_by_the_sizes_of_features():
    class Wide(torch.nn.Module):
        num_features = 15

        def forward(self, x):
            return x.flatten(1)[:, :15]

    from agm.models import LateFusion

    network, (inputs, target) = (
        LateFusion({"audio": Wide(), "image": torch.nn.Flatten()}, 4, num_features={"image": 25}),
        batch_of(),
    )
    strategy = OPM(network, p_exe=1.0)
    take(strategy, inputs, target)
    assert strategy.sizes.tolist() == [15, 25]
    strategy.probabilities.copy_(torch.tensor([0.4, 0.0]))
    strategy.draws = Given([0.0], [0.9] * 8, [0.9] * 8)
    outcome = take(strategy, inputs, target)
    scale = 1 / (1 - 15 * 0.4 / 40)
    features = {m: network.encoders[m](inputs[m]) * scale for m in inputs}
    torch.testing.assert_close(outcome.logits, network.fuse(features).detach(), rtol=1e-5, atol=1e-6)


def test_state_and_settings():
    network, inputs, target = unequal(2)
    strategy = OPM(network)
    take(strategy, inputs, target)
    again = OPM(late().double())
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.probabilities, strategy.probabilities)
    assert torch.equal(again.sizes, strategy.sizes)
    assert strategy.probabilities.any()
    for name in ("q_base", "p_exe"):
        with pytest.raises(ValueError, match=f"`{name}` to be a probability from 0 to 1, but got 1.5"):
            OPM(network, **{name: 1.5})
    with pytest.raises(ValueError, match="`lam`"):
        OPM(network, lam=-0.1)


def test_evaluation_drops_nothing():
    network, inputs, target = unequal(2)
    strategy = OPM(network, p_exe=1.0, q_base=1.0)
    take(strategy, inputs, target)
    network.eval()
    torch.testing.assert_close(
        strategy.predictor(**inputs), network.fuse({m: network.encoders[m](inputs[m]) for m in inputs})
    )
