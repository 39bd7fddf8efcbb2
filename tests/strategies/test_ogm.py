import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import OGM, OGMGE

from .networks import (
    assert_same,
    batch_of,
    belongs,
    early,
    gradients,
    gradients_of,
    late,
    take,
    true_class_probabilities,
)


def naive(scores: dict[str, float], alpha: float) -> dict[str, float]:
    """Equations 8 and 10 for two modalities."""
    coefficients = {}
    for name, other in zip(scores, reversed(scores), strict=True):
        ratio = scores[name] / scores[other]
        coefficients[name] = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
    return coefficients


@pytest.mark.parametrize("convolutions_only", [False, True])
def test_the_gradients_of_the_encoder_ahead_are_scaled(convolutions_only):
    network, (inputs, target) = late(), batch_of()
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    scores = true_class_probabilities(network, inputs, target)
    coefficients = naive(scores, 0.7)
    assert sum(value == 1 for value in coefficients.values()) == 1
    for name in expected:
        for modality, coefficient in coefficients.items():
            if belongs(name, modality) and (expected[name].dim() == 4 or not convolutions_only):
                expected[name] = expected[name] * coefficient

    strategy = OGM(network, alpha=0.7, convolutions_only=convolutions_only)
    outcome = take(strategy, inputs, target)
    assert_same(gradients(network), expected)
    torch.testing.assert_close(outcome.loss, F.cross_entropy(outcome.logits, target))
    shown = strategy.statistics()["coefficient"].tolist()
    assert shown == pytest.approx([coefficients["audio"], coefficients["image"]], rel=1e-5)


def test_the_noise_has_the_spread_that_each_gradient_had():
    network, (inputs, target) = late(), batch_of()
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    coefficients = naive(true_class_probabilities(network, inputs, target), 0.7)
    strategy = OGMGE(network, alpha=0.7)
    drawn = []
    for _ in range(150):
        take(strategy, inputs, target)
        drawn.append(gradients(network))
    for name, gradient in plain.items():
        modality = next((m for m in coefficients if belongs(name, m)), None)
        values = torch.stack([row[name] for row in drawn])
        if modality is None:
            torch.testing.assert_close(values, gradient.expand_as(values))
            continue
        spread = gradient.std() + 1e-8
        assert (values.mean(0) - coefficients[modality] * gradient).abs().max() < 5 * spread / 12, name
        assert values.std(0).mean() == pytest.approx(float(spread), rel=0.1), name


def test_with_three_modalities_the_ratio_is_the_mean_over_the_others():
    network, (inputs, target) = late(3), batch_of(3)
    scores = true_class_probabilities(network, inputs, target)
    strategy = OGM(network)
    take(strategy, inputs, target)
    ratios = [sum(scores[m] / scores[j] for j in scores if j != m) / 2 for m in scores]
    assert strategy.statistics()["ratio"].tolist() == pytest.approx(ratios, rel=1e-5)


def test_a_fusion_that_does_not_split_is_asked_with_the_others_features_zero():
    network, (inputs, target) = early(), batch_of()
    strategy = OGM(network)
    running = {name: value.clone() for name, value in network.named_buffers()}
    take(strategy, inputs, target)
    after = {name: value.clone() for name, value in network.named_buffers()}
    features = {name: encoder(inputs[name]) for name, encoder in network.encoders.items()}
    expected = []
    network.trunk.eval()
    for name in features:
        # The fusion's running statistics are those that the joint pass left.
        alone = {m: f if m == name else torch.zeros_like(f) for m, f in features.items()}
        expected.append(F.softmax(network.fuse(alone), 1).gather(1, target[:, None]).mean().item())
    ratios = strategy.statistics()["ratio"].tolist()
    assert ratios == pytest.approx([expected[0] / expected[1], expected[1] / expected[0]], rel=1e-4)
    # One joint pass has moved the statistics, and nothing else has.
    fresh = early()
    fresh.load_state_dict({**network.state_dict(), **running})
    fresh.train()(**inputs)
    for name, value in fresh.named_buffers():
        torch.testing.assert_close(after[name], value)


def test_outside_its_window_it_is_joint_training():
    network, (inputs, target) = late(), batch_of()
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    strategy = OGMGE(network, start=1, stop=2)
    for epoch, modulates in enumerate([False, True, False]):
        strategy.begin_epoch(epoch)
        take(strategy, inputs, target)
        same = all(torch.equal(expected[name], value) for name, value in gradients(network).items())
        assert same != modulates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": -1.0}, "`alpha` to be a number >= 0"),
        ({"alpha": float("nan")}, "`alpha`"),
        ({"noise": 1}, "`noise` to be True or False"),
        ({"start": 3, "stop": 2}, "`stop`"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        OGM(late(), **settings)
