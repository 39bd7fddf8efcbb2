import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import LinearHead, MMCosine

from .networks import assert_same, batch_of, early, gradients, gradients_of, late, take


def cosines(network, inputs, scale):
    """A sample, class and modality at a time."""
    features = {m: network.encoders[m](inputs[m]) for m in inputs}
    if network.combine == "sum":
        weights = {m: head.weight for m, head in network.heads.items()}
    else:
        weights = dict(zip(inputs, network.classifier.weight.split(5, dim=1), strict=True))
    rows = []
    for i in range(len(next(iter(inputs.values())))):
        row = [
            sum(w[c] @ features[m][i] / w[c].norm() / features[m][i].norm() for m, w in weights.items())
            for c in range(4)
        ]
        rows.append(scale * torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("combine", ["concat", "sum"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_logits_are_sums_of_cosines(combine, modalities):
    network, (inputs, target) = late(modalities, combine=combine).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    strategy = MMCosine(network, scale=6.0)
    expected = gradients_of(network, lambda: F.cross_entropy(cosines(network, inputs, 6.0), target))
    outcome = take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(outcome.logits, cosines(network, inputs, 6.0).detach())
    assert not any("bias" in name for name in gradients(network) if not name.startswith("encoders."))
    network.eval()
    torch.testing.assert_close(strategy.predictor(**inputs), cosines(network, inputs, 6.0))
    torch.testing.assert_close(MMCosine(network, released=True).predictor(**inputs), network(**inputs))


class Paths(nn.Module):
    """Encoders at paths; a head that only a pass shows."""

    def __init__(self, network, scale=None):
        super().__init__()
        self.ear, self.eye, self.out = *network.encoders.values(), network.classifier
        self.scale = scale

    def forward(self, audio, image):
        logits = self.out(torch.cat([self.ear(audio), self.eye(image)], 1))
        return logits if self.scale is None else logits * self.scale


PATHS = {"audio": "ear", "image": "eye"}


def test_the_weights_are_found_in_a_pass():
    network, (inputs, target) = late().eval(), batch_of()
    expected = cosines(network, inputs, 10.0).detach()
    strategy = MMCosine(Paths(network), encoders=PATHS)
    torch.testing.assert_close(strategy.predictor(**inputs), expected)  # before any step
    torch.testing.assert_close(take(strategy, inputs, target).logits, expected)


def test_a_head_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="that of EarlyFusion does not split"):
        MMCosine(early())
    inputs, target = batch_of()
    strategy = MMCosine(Paths(late(), scale=2.0), encoders=PATHS)
    with pytest.raises(ValueError, match="that of Paths does not split"):
        take(strategy, inputs, target)
    heads = {m: LinearHead(5, 4) for m in inputs}
    network = early().eval()
    found = take(MMCosine(network, heads=heads), inputs, target).logits
    parts = [
        F.cosine_similarity(network.encoders[m](inputs[m]).unsqueeze(1), heads[m].linear.weight, dim=2) for m in inputs
    ]
    torch.testing.assert_close(found, 10 * (parts[0] + parts[1]).detach(), rtol=1e-5, atol=1e-5)
    two = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 4))
    with pytest.raises(ValueError, match=r"head of `image` to have one linear layer, .* but got 2"):
        MMCosine(network, heads={**heads, "image": two})


def test_settings_that_cannot_be():
    for settings, message in (
        ({"scale": 0}, "`scale` to be above 0"),
        ({"start": 2}, "no window"),
        ({"stop": 3}, "no window"),
    ):
        with pytest.raises(ValueError, match=message):
            MMCosine(late(), **settings)
