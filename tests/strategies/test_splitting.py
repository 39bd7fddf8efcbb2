"""Networks that do not declare what each modality says alone, and whose heads split all the same."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import MLB, MSLR, OGM, Parts, linear_heads
from agm.strategies.splitting import split_head

from .networks import Encoder, assert_same, batch_of, gradients, late, take


class Concatenated(nn.Module):
    """`LateFusion` without its names."""

    def __init__(self, network):
        super().__init__()
        self.a, self.b = (copy.deepcopy(encoder) for encoder in network.encoders.values())
        self.out = copy.deepcopy(network.classifier)

    def forward(self, audio, image):
        return self.out(torch.cat([self.a(audio), self.b(image)], 1))


class Summed(nn.Module):
    """A layer of its own for each modality, one after the other in the reverse order."""

    def __init__(self):
        super().__init__()
        self.a, self.b = Encoder(), Encoder()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(5, 4)

    def forward(self, audio, image):
        return self.second(self.b(image)) + self.first(self.a(audio))


PATHS = {"audio": "a", "image": "b"}


def test_a_common_bias_counts_by_halves():
    """Peng et al.'s unimodal logits are W_m h_m + b / M: the coefficients are those of the network that says so."""
    declared, (inputs, target) = late(), batch_of()
    declared.classifier.bias.data = torch.tensor([3.0, -2.0, 1.0, -1.0])
    by_path = OGM(Concatenated(declared), encoders=PATHS, alpha=1.0)
    strategy = OGM(declared, alpha=1.0)
    take(strategy, inputs, target)
    take(by_path, inputs, target)
    torch.testing.assert_close(by_path.statistics()["coefficient"], strategy.statistics()["coefficient"])
    whole = declared.eval()
    features = {name: whole.encoders[name](inputs[name]) for name in inputs}
    zeros = {name: torch.zeros_like(value) for name, value in features.items()}
    scores = torch.stack(
        [F.softmax(whole.fuse({**zeros, n: features[n]}), 1).gather(1, target.unsqueeze(1)).mean() for n in inputs]
    )
    other = float(1 - torch.tanh((scores / scores.flip(0)).max()).detach())
    assert abs(other - float(by_path.statistics()["coefficient"].min())) > 1e-3  # the whole bias is something else


def test_heads_of_networks_by_path_are_reached():
    network, (inputs, target) = Concatenated(late()), batch_of()
    F.cross_entropy(network(**inputs), target).backward()
    joint = gradients(network)
    network.zero_grad()
    take(MSLR(network, encoders=PATHS, initial={"audio": 0.5, "image": 2.0}, heads_too=True), inputs, target)
    found = gradients(network)
    torch.testing.assert_close(found["out.weight"][:, :5], 0.5 * joint["out.weight"][:, :5], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["out.weight"][:, 5:], 2.0 * joint["out.weight"][:, 5:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["out.bias"], joint["out.bias"], rtol=1e-4, atol=1e-6)


def test_a_layer_of_its_own_is_scaled_with_its_bias():
    network, (inputs, target) = Summed(), batch_of()
    F.cross_entropy(network(**inputs), target).backward()
    joint = gradients(network)
    network.zero_grad()
    take(MSLR(network, encoders=PATHS, initial={"audio": 0.5, "image": 2.0}, heads_too=True), inputs, target)
    found = gradients(network)
    for layer, factor in (("first", 0.5), ("second", 2.0)):
        for kind in ("weight", "bias"):
            key = f"{layer}.{kind}"
            torch.testing.assert_close(found[key], factor * joint[key], rtol=1e-4, atol=1e-6)
    parts = Parts(network.eval(), encoders=PATHS)
    features, _ = parts.run(inputs)
    torch.testing.assert_close(parts.unimodal(inputs, features)["image"], network.second(features["image"]))


@pytest.mark.parametrize("moments", ["gradient", "first"])
def test_own_heads_with_bias_and_the_columns_of_the_fusion_are_scaled_together(moments):
    plain = None
    for kind in (MultiPlain, MLB):
        torch.manual_seed(0)
        network, (inputs, target) = late(), batch_of()
        strategy = kind(network, beta_max=5.0, heads=linear_heads(network.widths, 4), moments=moments)
        strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
        take(strategy, inputs, target)
        if plain is None:
            plain = gradients(strategy)
    expected = plain
    for place, (name, k) in enumerate(zip(inputs, strategy.statistics()["coefficient"].tolist(), strict=True)):
        assert k != 1
        expected["module.classifier.weight"][:, 5 * place : 5 * place + 5] *= k
        for key in expected:
            if key.startswith((f"module.encoders.{name}.", f"heads.{name}.")):
                expected[key] *= k
    assert_same(gradients(strategy), expected, rtol=1e-4, atol=1e-6)


class MultiPlain(MLB):
    def modulate(self, batch):
        pass


def test_what_does_not_split_is_seen():
    a, b = (torch.randn(6, 3, requires_grad=True) for _ in range(2))
    common, first, second = nn.Linear(6, 4), nn.Linear(3, 4), nn.Linear(3, 4, bias=False)
    features = {"a": a, "b": b}
    reverse = split_head(common(torch.cat([b, a], 1)), features)
    assert (reverse["a"].first, reverse["b"].first, reverse["a"].sharing) == (3, 0, 2)
    assert split_head(first(a) + second(b), features)["b"].bias is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert split_head(common(torch.cat([a, b], 1)), features)["b"].weight is common.weight
    for logits in (
        torch.relu(common(torch.cat([a, b], 1))),
        common(torch.cat([a, b.relu()], 1)),
        first(a) + 2 * second(b),
        first(a) + second(b) + second(b),
        torch.add(first(a), second(b), alpha=3),
        first(a),
        common(torch.cat([a, a], 1)),
        common(torch.cat([a, b], 1)).detach(),
    ):
        assert split_head(logits, features) is None
