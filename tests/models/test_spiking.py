import pytest
import torch
import torch.nn.functional as F

import agm
from agm.strategies import OGM, Strategy

pytest.importorskip("snntorch")

from agm.models.spiking import LIF, SpikingCrossAttention, SpikingEncoder, semantic_alignment


def network(modalities: int = 2) -> SpikingCrossAttention:
    torch.manual_seed(0)
    names = ("audio", "image", "text")[:modalities]
    return SpikingCrossAttention({name: SpikingEncoder(1, 8, steps=3) for name in names}, 4)


def batch(modalities: int = 2, samples: int = 6):
    random = torch.Generator().manual_seed(1)
    names = ("audio", "image", "text")[:modalities]
    # Of different sizes, so that their positions differ in number.
    inputs = {n: 2 * torch.randn(samples, 1, 8 + 4 * k, 8, generator=random) for k, n in enumerate(names)}
    return inputs, torch.randint(4, (samples,), generator=random)


def test_neurons_leak_fire_and_reset():
    currents = torch.rand(2, 5, 3) * 1.5
    spikes, expected = LIF(decay=0.5, threshold=1.0)(currents), torch.zeros(2, 5, 3)
    for b in range(2):
        for n in range(3):
            membrane = 0.0
            for t in range(5):
                membrane = 0.5 * membrane + float(currents[b, t, n])
                if membrane > 1.0:
                    expected[b, t, n], membrane = 1.0, 0.0
    assert torch.equal(spikes, expected)
    assert 0 < spikes.mean() < 1


def test_a_call_leaves_nothing_behind():
    neurons = LIF()
    currents = torch.rand(2, 4, 3, requires_grad=True)
    first = neurons(currents)
    assert not any(buffer.requires_grad for buffer in neurons.buffers())
    assert torch.equal(first, neurons(currents))
    other = neurons(torch.rand(5, 2, 7))
    assert other.shape == (5, 2, 7)
    first.sum().backward()
    assert currents.grad.any()


@pytest.mark.parametrize("modalities", [1, 2, 3])
def test_residuals_change_what_a_modality_says(modalities):
    net, (inputs, _) = network(modalities), batch(modalities)
    logits = net(**inputs)
    assert logits.shape == (6, 4)
    features = {n: net.encoders[n](x) for n, x in inputs.items()}
    assert {tuple(f.shape[:3]) for f in features.values()} == {(6, 3, 8)}
    residuals = net.residuals(features)
    assert all(residuals[n].shape == features[n].shape for n in features)
    assert any(bool(r.any()) for r in residuals.values()) == (modalities > 1)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_the_masked_passes_are_verified(masked):
    net, (inputs, target) = network(), batch()
    found = agm.verify(agm.AGM(net, masked=masked), inputs, target)
    assert found.ok, found


def test_attention_over_time_is_at_each_position():
    block = network().blocks["audio"].time.eval()
    own, other = (torch.rand(2, 3, 8, 5) > 0.5 for _ in range(2))
    own, other = own.float(), other.float()
    query, key, value = block.query(own), block.key(other), block.value(other)
    found = block(own, other, over_time=True)
    for n in range(5):
        q, k, v = (part[1, :, :, n] for part in (query, key, value))
        torch.testing.assert_close(found[1, :, :, n], 0.25 * q @ k.T @ v)


def test_the_alignment_against_plain_loops():
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    target = torch.tensor([0, 1, 0, 2, 1])
    total = 0.0
    for i in range(5):
        logs = torch.stack([first[i] @ second[j] / 0.07 for j in range(5)]).log_softmax(0)
        total -= float(sum(logs[j] for j in range(5) if target[i] == target[j])) / 25
    assert semantic_alignment({"a": first, "v": second}, target).item() == pytest.approx(total, rel=1e-4)
    with pytest.raises(ValueError, match="two modalities, which are aligned, but got 1"):
        semantic_alignment({"a": first}, target)


class Aligned(Strategy):
    """CE + the alignment, as S-CMRL trains."""

    def loss(self, batch):
        logits, residuals = self.network.aligned_features(batch.features)
        return F.cross_entropy(logits, batch.target) + semantic_alignment(residuals, batch.target)


@pytest.mark.parametrize("kind", [Aligned, OGM])
def test_strategies_train_it(kind):
    net, (inputs, target) = network(), batch(samples=12)
    strategy = kind(net)
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.3, momentum=0.9)
    losses = []
    for _ in range(12):
        (outcome,) = strategy.steps(inputs, target)
        optimizer.step()
        losses.append(float(outcome.loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.blocks.parameters())
