import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import ARL

from .networks import assert_same, batch_of, belongs, gradients, gradients_of, late, take


def by_hand(alone, temperature):
    """Entropies, shares of the logits and coefficients, in plain numbers."""
    count = len(alone)
    entropies, sizes = {}, {}
    for m, logits in alone.items():
        shares = [row.softmax(0).tolist() for row in logits]
        entropies[m] = sum(-p * math.log(p) for row in shares for p in row) / len(shares)
        sizes[m] = sum(abs(z) for row in logits.tolist() for z in row) / len(shares)
    variance = {m: max(h / sum(entropies.values()), 0.6 / count) for m, h in entropies.items()}
    inverse = {m: (1 / v) / sum(1 / w for w in variance.values()) for m, v in variance.items()}
    depends = {m: s / sum(sizes.values()) for m, s in sizes.items()}
    powers = {
        m: math.exp(temperature * inverse[m] * sum(depends[j] for j in alone if j != m) / (count - 1)) for m in alone
    }
    return variance, depends, {m: 1 + p / sum(powers.values()) for m, p in powers.items()}


@pytest.mark.parametrize(("modalities", "factor"), [(2, 1.0), (2, 100.0), (3, 100.0)])
def test_encoders_are_scaled_by_inverse_variance(modalities, factor):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    with torch.no_grad():
        network.classifier.weight[:, :5] *= factor  # certain enough for the least share of entropy
    features = {m: network.encoders[m](inputs[m]) for m in inputs}
    variance, depends, expected = by_hand(network.unimodal_logits(features), 8.0)
    assert (min(variance.values()) == 0.6 / modalities) == (factor > 1)
    assert len(set(expected.values())) == modalities

    def loss():
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        alone = network.unimodal_logits(features).values()
        return F.cross_entropy(network.fuse(features), target) + 4.0 * sum(F.cross_entropy(u, target) for u in alone)

    plain = gradients_of(network, loss)
    strategy = ARL(network, warmup=2)
    strategy.begin_epoch(2)
    take(strategy, inputs, target)
    scaled = {n: g * next((k for m, k in expected.items() if belongs(n, m)), 1.0) for n, g in plain.items()}
    assert_same(gradients(network), scaled, rtol=1e-9, atol=1e-13)
    told = strategy.statistics()
    assert told["score"].tolist() == pytest.approx(list(variance.values()), rel=1e-5)
    assert told["ratio"].tolist() == pytest.approx(list(depends.values()), rel=1e-5)
    assert told["coefficient"].tolist() == pytest.approx(list(expected.values()), rel=1e-5)


def test_two_numbers_of_two_modalities():
    """Entropies 0.9 and 0.3 of 1.2, logits of sizes 1 and 3: by the formula on paper."""
    strategy = ARL(late(), temperature=4.0, warmup=0)
    strategy.scale = lambda coefficients: None

    class Known:
        def __init__(self, *logits):
            self.unimodal = dict(zip(("audio", "image"), logits, strict=True))

    strategy.modulate(Known(torch.tensor([[0.5, -0.5]]), torch.tensor([[1.5, -1.5]])))
    h = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3)))]
    low = max(h[1] / sum(h), 0.3)  # the least share
    high = h[0] / sum(h)
    inverse = [low / (low + high), high / (low + high)]
    first = 1 / (1 + math.exp(4 * (inverse[1] * 0.25 - inverse[0] * 0.75)))
    assert strategy.latest["coefficient"].tolist() == pytest.approx([1 + first, 2 - first], rel=1e-5)


def test_the_warm_up_is_multi_loss_of_weight_one():
    network, (inputs, target) = late(), batch_of()

    def loss():
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        alone = network.unimodal_logits(features).values()
        return F.cross_entropy(network.fuse(features), target) + sum(F.cross_entropy(u, target) for u in alone)

    plain = gradients_of(network, loss)
    strategy = ARL(network)
    strategy.begin_epoch(5)
    take(strategy, inputs, target)
    assert_same(gradients(network), plain)
    assert strategy.statistics() == {}
    for name in ("gamma", "temperature", "warmup"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            ARL(network, **{name: -1})
