import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import MLB, linear_heads

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


def naive(scores: dict[str, float], alpha: float, beta_max: float) -> dict[str, float]:
    coefficients = {}
    for name, score in scores.items():
        others = [scores[j] for j in scores if j != name]
        ratio = sum(others) / len(others) / score
        beta = beta_max if ratio > 1 else 2
        coefficients[name] = 1 + (beta - 1) * math.tanh(alpha * (ratio - 1))
    return coefficients


@pytest.mark.parametrize("modalities", [2, 3])
def test_encoders_and_their_columns_of_the_head_are_scaled(modalities):
    network, (inputs, target) = late(modalities), batch_of(modalities)

    def loss() -> torch.Tensor:
        features = {name: network.encoders[name](inputs[name]) for name in inputs}
        terms = network.unimodal_logits(features).values()
        return F.cross_entropy(network.fuse(features), target) + sum(F.cross_entropy(u, target) for u in terms)

    expected = gradients_of(network, loss)
    coefficients = naive(true_class_probabilities(network, inputs, target), 0.8, 10.0)
    assert min(coefficients.values()) < 1 < max(coefficients.values())
    for place, (modality, coefficient) in enumerate(coefficients.items()):
        expected["classifier.weight"][:, 5 * place : 5 * place + 5] *= coefficient
        for name in expected:
            if belongs(name, modality):
                expected[name] *= coefficient
    strategy = MLB(network, beta_max=10.0)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-4, atol=1e-6)


def test_beta_max_1_only_slows_down_and_balance_changes_nothing():
    network, (inputs, target) = late(), batch_of()
    strategy = MLB(network, beta_max=1.0)
    take(strategy, inputs, target)
    low, high = sorted(strategy.statistics()["coefficient"].tolist())
    assert low < 1
    assert high == 1
    balanced = MLB(late())
    network = balanced.network
    for source, copied in zip(
        network.encoders["audio"].parameters(), network.encoders["image"].parameters(), strict=True
    ):
        copied.data.copy_(source.data)
    network.classifier.weight.data[:, 5:] = network.classifier.weight.data[:, :5]
    take(balanced, {"audio": inputs["audio"], "image": inputs["audio"]}, target)
    assert balanced.statistics()["coefficient"].tolist() == [1, 1]


def test_own_heads_are_scaled_with_their_encoder():
    network, (inputs, target) = early(), batch_of()
    strategy = MLB(network, heads=linear_heads(network.widths, 4))
    take(strategy, inputs, target)
    scaled = strategy.heads["audio"].linear.weight.grad.clone()
    coefficient = float(strategy.statistics()["coefficient"][0])
    MLB.modulate, kept = (lambda self, batch: None), MLB.modulate
    try:
        take(strategy, inputs, target)
    finally:
        MLB.modulate = kept
    assert coefficient != 1
    torch.testing.assert_close(scaled, coefficient * strategy.heads["audio"].linear.weight.grad, rtol=1e-4, atol=1e-6)
