import pytest
import torch
import torch.nn.functional as F

import agm
from agm.models.har import ChannelExpansion, SensorEncoder, SensorFusion, disentangling_loss
from agm.strategies import AMGB, linear_heads


def network(modalities: int = 2) -> SensorFusion:
    torch.manual_seed(0)
    names = ("acceleration", "rotation", "field")[:modalities]
    return SensorFusion({name: SensorEncoder(2 + k, 4) for k, name in enumerate(names)}, 3)


def batch(modalities: int = 2, samples: int = 12):
    random = torch.Generator().manual_seed(1)
    target = torch.randint(3, (samples,), generator=random)
    wave = torch.sin(torch.arange(20) * (target.view(-1, 1) + 1) / 4)
    names = ("acceleration", "rotation", "field")[:modalities]
    noise = [torch.randn(samples, 2 + k, 20, generator=random) for k in range(modalities)]
    return {n: wave.unsqueeze(1) + 0.5 * noise[k] for k, n in enumerate(names)}, target


@pytest.mark.parametrize("radix", [1, 2, 3])
def test_split_attention_against_plain_loops(radix):
    layer, x = ChannelExpansion(3, 6, cardinality=2, radix=radix).eval(), torch.randn(2, 3, 9)
    found = layer(x)
    maps = F.relu(layer.norm(layer.expand(x)))
    expected = torch.zeros(2, 6, 9)
    for k in range(2):
        parts = [maps[:, (k * radix + i) * 3 : (k * radix + i + 1) * 3] for i in range(radix)]
        s = sum(parts).mean(2)
        hidden = F.relu(s @ layer.squeeze.weight[3 * k : 3 * k + 3, :, 0].T + layer.squeeze.bias[3 * k : 3 * k + 3])
        scores = []
        for i in range(radix):
            rows = slice((k * radix + i) * 3, (k * radix + i + 1) * 3)
            scores.append(hidden @ layer.excite.weight[rows, :, 0].T + layer.excite.bias[rows])
        stacked = torch.stack(scores)
        shares = stacked.softmax(0) if radix > 1 else stacked.sigmoid()
        expected[:, 3 * k : 3 * k + 3] = sum(a.unsqueeze(2) * part for a, part in zip(shares, parts, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_alignment_against_plain_loops():
    net, (inputs, _) = network(), batch()
    features = {n: net.encoders[n](x) for n, x in inputs.items()}
    found = net.fused_features(features)
    for row in range(3):
        normal = []
        for k, feature in enumerate(features.values()):
            f = feature[row]
            scaled = (f - f.mean()) / (f.var(unbiased=False) + 1e-5).sqrt()
            normal.append(scaled * net.norm.weight[12 * k : 12 * k + 12] + net.norm.bias[12 * k : 12 * k + 12])
        pooled = torch.stack([*(f.mean() for f in normal), *(f.max() for f in normal)])
        shares = net.second(F.relu(net.first(pooled))).sigmoid()
        expected = torch.cat([a * f + features[n][row] for a, f, n in zip(shares, normal, features, strict=True)])
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_windows_of_any_length_and_the_loss_of_the_parts():
    encoder = SensorEncoder(3, 4).eval()
    for length in (1, 5, 33):
        assert encoder(torch.randn(2, 3, length)).shape == (2, 12)
    feature = torch.randn(5, 12)
    total = 0.0
    for row in feature:
        s, t, p = row[:4], row[4:8], row[8:]
        total += float(-0.5 * ((s - t) ** 2).sum() + 2 * ((p - s) ** 2).sum() + 3 * ((p - t) ** 2).sum()) / 5
    assert disentangling_loss(feature, (-0.5, 2, 3)).item() == pytest.approx(total, rel=1e-4)
    with pytest.raises(ValueError, match="three parts"):
        disentangling_loss(torch.randn(2, 4))
    with pytest.raises(ValueError, match="multiple of 2 groups, but got 5"):
        ChannelExpansion(3, 5)
    with pytest.raises(ValueError, match="features of one width"):
        SensorFusion({"a": SensorEncoder(3, 4), "b": SensorEncoder(3, 6)}, 2)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_the_masked_passes_are_verified(masked):
    inputs, target = batch(3)
    found = agm.verify(agm.AGM(network(3), masked=masked), inputs, target)
    assert found.ok, found


def test_its_own_balancing_trains_it():
    net, (inputs, target) = network(), batch()
    strategy = AMGB(net, heads=linear_heads(net.widths, 3), moments="first")
    strategy.optimizer = torch.optim.Adam(strategy.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        (outcome,) = strategy.steps(inputs, target)
        strategy.optimizer.step()
        losses.append(float(outcome.loss))
    assert losses[-1] < 0.3 * losses[0]
