import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import MBSD

from .networks import assert_same, batch_of, early, gradients, gradients_of, late, take


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_of_every_sample(modalities):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}

    def loss() -> torch.Tensor:
        features = {m: network.encoders[m](inputs[m]) for m in inputs}
        alone = list(network.unimodal_logits(features).values())
        total = F.cross_entropy(network.fuse(features), target) + sum(F.cross_entropy(u, target) for u in alone)
        pairs, extra, counted = [(0, 1), (0, 2), (1, 2)][: 1 if modalities == 2 else 3], 0.0, 0
        for one, other in pairs:
            for i, y in enumerate(target.tolist()):
                u, v = alone[one][i], alone[other][i]
                p, q = u.softmax(0)[y], v.softmax(0)[y]
                if int(u.argmax()) != y and int(v.argmax()) != y:
                    continue
                counted += 1
                strong, weak = max(p, q), min(p, q)
                if modalities == 3:
                    u, v = u.softmax(0), v.softmax(0)
                distance = sum((u[c] - v[c]) ** 2 for c in range(4)) / 4
                extra = extra + (strong - weak) * (distance + weak * weak.log() - weak * strong)
        assert 0 < counted < 8 * len(pairs)
        return total + extra / (8 * len(pairs))

    expected = gradients_of(network, loss)
    take(MBSD(network), inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-12)


class Fixed(nn.Module):
    """Two modalities whose logits are their parameters, one row a sample."""

    def __init__(self, audio, image):
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": Row(audio), "image": Row(image)})

    def fuse(self, features):
        return features["audio"] + features["image"]

    def unimodal_logits(self, features):
        return dict(features)

    def forward(self, audio, image):
        return self.fuse({"audio": self.encoders["audio"](audio), "image": self.encoders["image"](image)})


class Row(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

    def forward(self, x):
        return self.logits.clone()


def test_by_hand():
    """Probabilities 3/4 and 1/2 of the true class of two: w 1/4, R (log 3)^2 / 2, D log(1/2) / 2 - 3/8."""
    network = Fixed([[math.log(3.0), 0.0]], [[0.0, 0.0]])
    strategy, none = MBSD(network), torch.zeros(1, 1)
    batch = strategy.batch({"audio": none, "image": none}, torch.tensor([0]))
    losses = -math.log(3 / 4) - math.log(3 / 4) - math.log(1 / 2)
    extra = 0.25 * (math.log(3.0) ** 2 / 2 + math.log(0.5) / 2 - 3 / 8)
    assert strategy.loss(batch).item() == pytest.approx(losses + extra, rel=1e-12)
    neither = strategy.batch({"audio": none, "image": none}, torch.tensor([1]))  # argmax of both is class 0
    assert strategy.loss(neither).item() == pytest.approx(-math.log(1 / 4) - math.log(1 / 4) - math.log(1 / 2))


def test_a_head_is_needed_and_the_window_counts():
    with pytest.raises(ValueError, match="`heads` to map each modality to a head"):
        MBSD(early())
    network, (inputs, target) = late(), batch_of()
    strategy = MBSD(network, start=2)
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(strategy, inputs, target)
    assert_same(gradients(network), expected)
