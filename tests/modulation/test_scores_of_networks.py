"""Scores of other tasks through networks of each kind."""

import copy
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

import agm

from .scores_oracle import LONG, B, classes, generator, numbers, presence


class Encoders(nn.Module):
    """Encoders of frames (B, 3, 4), a fusion, and a head of any shape."""

    def __init__(self, head: str, outputs: int, inner: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = inner
        self.encoders = nn.ModuleDict({"a": self.encoder(), "b": self.encoder()})
        self.head = nn.Linear(10, outputs) if head == "linear" else nn.Sequential(nn.Tanh(), nn.Linear(10, outputs))
        self.double()

    @staticmethod
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.2))

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        joined = torch.cat([features["a"], features["b"]], -1)
        return self.head(joined) if self.inner else self.head(joined.mean(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.fuse({"a": self.encoders["a"](a), "b": self.encoders["b"](b)})


class Whole(nn.Module):
    """The same without `encoders` and `fuse`."""

    def __init__(self, network: Encoders) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.network(a, b)


PATHS = {"a": "network.encoders.a", "b": "network.encoders.b"}


@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize(
    ("kind", "masked"),
    [("factorised", "exact"), ("factorised", "shared"), ("paths", "exact"), ("paths", "shared"), ("whole", "exact")],
)
@pytest.mark.parametrize(("name", "inner"), [("squared_error", False), ("cross_entropy", True), ("ordinal", True)])
def test_networks(name: str, inner: bool, kind: str, masked: Any, head: str) -> None:
    """Outputs of any shape, a single one too: the step is that of one pass of the whole network for each subset."""
    outputs = {"squared_error": 1, "cross_entropy": 4, "ordinal": 3}[name]
    network = Encoders(head, outputs, inner)
    model = agm.AGM(
        network if kind == "factorised" else Whole(network),
        ("a", "b"),
        alpha=0.5,
        score=name,
        masked=masked,
        encoders=PATHS if kind == "paths" else None,
    )
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    places = (B, 3) if inner else (B,)
    target = numbers(B, seed=2) if name == "squared_error" else classes(4)(places, 2)
    for _ in range(2):
        logits = model(**inputs, target=target)
        assert logits.shape == (*places, outputs)
        logits.square().mean().backward()
    assert model.modulator.state.step == 2
    assert (model.modulator.state.coefficients != 1).all()
    result = agm.verify(model, inputs, target)
    assert result.ok, result
    if masked == "exact":
        result = agm.verify(model, inputs, target, present=presence(0))
        assert result.ok, result


def test_a_linear_head_of_tokens_writes_no_subset_out() -> None:
    network = Encoders("linear", 4, inner=True)
    model = agm.AGM(network, ("a", "b"))
    model(a=numbers(B, 3, 4), b=numbers(B, 3, 4), target=torch.zeros(B, 3, dtype=torch.int64))
    assert "no subset is computed" in str(model.plan())


class Mixing(Encoders):
    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return super().fuse({name: x - x.mean(0) for name, x in features.items()})


def test_the_self_check_finds_what_is_wrong_with_another_score() -> None:
    # Fewer rows than a batch: else each subset would have a pass of its own.
    options: dict[str, Any] = {"alpha": 0.5, "score": "absolute_error", "max_rows": B - 1}
    model = agm.AGM(Mixing("deep", 3, inner=True), ("a", "b"), **options)
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    result = agm.verify(model, inputs, numbers(B, 3, 3, seed=2))
    assert not result.ok
    assert "max_rows" in str(result)


def test_the_self_check_of_a_score_without_a_gradient() -> None:
    def wrong(response: Tensor, target: Tensor) -> Tensor:
        return (response.argmax(-1) != target).double() + 0.1

    model = agm.AGM(Encoders("deep", 3, inner=False), ("a", "b"), alpha=0.5, score=wrong)
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    result = agm.verify(model, inputs, torch.randint(3, (B,), generator=generator()))
    assert result.ok, result
    mixing = agm.AGM(Mixing("deep", 3, inner=False), ("a", "b"), alpha=0.5, score=wrong, max_rows=B - 1)
    result = agm.verify(mixing, inputs, torch.randint(3, (B,), generator=generator()))
    assert max(result.gradients.values()) > 0.01


def test_a_bad_batch_is_refused_before_the_network_runs() -> None:
    network = Encoders("deep", 3, inner=False)
    calls = []
    network.head.register_forward_hook(lambda *_: calls.append(1))
    model = agm.AGM(network, ("a", "b"), score="soft_cross_entropy")
    inputs = {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4, seed=1)}
    for target, error in ((LONG, TypeError), (torch.ones(B - 1, 3), ValueError)):
        with pytest.raises(error, match="`target`"):
            model(**inputs, target=target)
    assert not calls
    model(**inputs, target=numbers(B, 3).softmax(-1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="sum to 1"):
        model(**inputs, target=torch.ones(B, 3))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)  # what needs the logits is seen later


def test_tokens_may_be_as_many_as_they_like() -> None:
    model = agm.AGM(Encoders("deep", 4, inner=True), ("a", "b"), alpha=0.5)
    for tokens in (3, 5, 1):
        inputs = {"a": numbers(B, tokens, 4), "b": numbers(B, tokens, 4, seed=1)}
        logits = model(**inputs, target=torch.zeros(B, tokens, dtype=torch.int64))
        assert logits.shape == (B, tokens, 4)
    assert copy.deepcopy(model).modulator.state.step == 3


def test_outputs_without_a_dimension_of_their_own() -> None:
    network = nn.Sequential(nn.Flatten(0))

    class Squeezed(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return network((a + b).mean((1, 2)))

    model = agm.AGM(Squeezed(), ("a", "b"), score="squared_error")
    assert model(a=numbers(B, 3, 4), b=numbers(B, 3, 4), target=numbers(B)).shape == (B,)


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "examples" / "multi_label.py"
    assert len(path.read_text().splitlines()) <= 40
    with torch.random.fork_rng():
        state = runpy.run_path(str(path))["model"].modulator.state
    epochs = capsys.readouterr().out.splitlines()
    assert len(epochs) == 5
    assert state.step == 40
    assert state.mono_correct.sum() > 0
    losses = [float(line.split("loss ")[1].split(";")[0]) for line in epochs]
    assert losses[-1] < losses[0] / 2


def test_masked_outputs_of_another_shape_are_refused() -> None:
    class Trimmed(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a + b)[:, : 3 if self.training else 2]

    with pytest.raises(ValueError, match=r"with 14 rows, or of shape \(batch, 3, 4\), but got \(14, 2, 4\)"):
        agm.masked_logits(Trimmed(), {"a": numbers(B, 3, 4), "b": numbers(B, 3, 4)})
