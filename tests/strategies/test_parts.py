import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm.models import FiLMFusion
from agm.strategies import OGM, LinearHead, MultiLoss, Parts, Strategy, linear_heads

from .networks import Encoder, batch_of, early, gradients, late, take


class Own(nn.Module):
    """A user's network, whose parameters' names say nothing, with its modalities by position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = Encoder(), nn.Sequential(Encoder()), nn.Linear(10, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.cat([self.a(x), self.b(y)], 1))


PATHS = {"audio": "a", "image": "b.0"}


def test_a_network_of_ones_own_by_the_paths_of_its_encoders():
    network, (inputs, target) = Own(), batch_of()
    F.cross_entropy(network(*inputs.values()), target).backward()
    joint = gradients(network)
    network.zero_grad()
    strategy = OGM(network, encoders=PATHS, alpha=1.0)
    take(strategy, inputs, target)
    for name, coefficient in zip(("a", "b"), strategy.statistics()["coefficient"], strict=True):
        for key, value in gradients(network).items():
            if key.startswith(name):
                torch.testing.assert_close(value, coefficient * joint[key], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(gradients(network)["out.weight"], joint["out.weight"])
    assert strategy.statistics()["coefficient"].min() < 1


class Bent(Own):
    """Its head does not split."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(super().forward(x, y))


def test_alone_means_the_others_features_are_zero():
    network, (inputs, _) = Bent().eval(), batch_of()
    parts = Parts(network, encoders=PATHS)
    features, logits = parts.run(inputs)
    torch.testing.assert_close(logits, network(*inputs.values()))
    alone = parts.unimodal(inputs, features)
    zeros = torch.zeros(8, 5)
    for name, pair in (("audio", [features["audio"], zeros]), ("image", [zeros, features["image"]])):
        torch.testing.assert_close(alone[name], torch.tanh(network.out(torch.cat(pair, 1))))


def test_heads_train_along_and_are_in_the_state():
    network, (inputs, target) = FiLMFusion({"audio": Encoder(), "image": Encoder()}, 4), batch_of()
    strategy = MultiLoss(network, heads=linear_heads(network.widths, 4))
    take(strategy, inputs, target)
    assert all(p.grad is not None for p in strategy.heads.parameters())
    again = MultiLoss(FiLMFusion({"audio": Encoder(), "image": Encoder()}, 4), heads=linear_heads(network.widths, 4))
    again.load_state_dict(strategy.state_dict())
    left, right = (s.eval().measure([(inputs, target)]) for s in (strategy, again))
    assert left == right


def test_the_head_of_a_sequence_or_map_sees_its_mean():
    head = LinearHead(3, 2)
    tokens = torch.randn(4, 5, 6, 3)
    torch.testing.assert_close(head(tokens), head.linear(tokens.mean((1, 2))))
    torch.testing.assert_close(head(tokens[:, 0, 0]), head.linear(tokens[:, 0, 0]))
    with pytest.raises(TypeError, match=r"\(B, ..., D\), but got dict"):
        head({"tokens": tokens})


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_gradients_of_the_columns_may_be_written(combine):
    network, (inputs, target) = late(combine=combine), batch_of()
    assert set(network.head_gradients().values()) == {None} or combine == "sum"
    F.cross_entropy(network(**inputs), target).backward()
    for value in network.head_gradients().values():
        value.zero_()
    weights = [network.classifier.weight] if combine == "concat" else [h.weight for h in network.heads.values()]
    assert all(not weight.grad.any() for weight in weights)


def test_a_frozen_encoder_is_left_out():
    network, (inputs, target) = late(), batch_of()
    network.encoders["image"].requires_grad_(False)
    strategy = OGM(network, alpha=1.0, noise=True)
    take(strategy, inputs, target)
    assert all(p.grad is None for p in network.encoders["image"].parameters())
    assert strategy.batch(inputs, target).gradient_traces[1] == 0


def test_the_trace_that_is_known_stays_and_modes_come_back():
    network, (inputs, target) = early(), batch_of()
    network.trunk[0].eval()
    strategy = Strategy(network)
    strategy.measure([(inputs, target)])
    take(strategy, inputs, target)
    assert strategy.batch(inputs, target).masked_logits.shape == (3, 8, 4)
    assert network.training
    assert not network.trunk[0].training


class Twice(Own):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) + self.out(torch.cat([self.a(x), self.a(x)], 1))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Strategy(Own()), ValueError, "`encoders` to map each modality to the path"),
        (lambda: Strategy(Own(), encoders={"audio": "a", "image": "c"}), ValueError, "there is none at 'c'"),
        (lambda: Strategy(Own(), encoders={"audio": "a", "image": "a"}), ValueError, "audio and image share one"),
        (lambda: Strategy(late(), modalities=("audio", "text")), ValueError, "have an encoder"),
        (lambda: Strategy(3), TypeError, "`network` to be an nn.Module"),
        (lambda: Strategy(late(), heads={"audio": nn.Linear(5, 4)}), ValueError, "`heads` to map each of"),
        (lambda: Strategy(late(), heads={"audio": 1, "image": 2}), TypeError, "head of `audio`"),
        (lambda: take(Strategy(Twice(), encoders=PATHS), *batch_of()), ValueError, "audio was called 3 times"),
        (lambda: take(Strategy(late()), {"audio": torch.ones(2, 1, 5, 5)}, torch.zeros(2).long()), ValueError, "image"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
