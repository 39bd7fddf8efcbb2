"""A head that is declared to add up the modalities: the same numbers as when it is recognised, or a refusal."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

MODALITIES = ("audio", "visual")
PATHS = {name: f"{name}_net" for name in MODALITIES}
BATCH = 5


class Net(nn.Module):
    """Late fusion: a linear layer on joined features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.visual_net = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
        self.other, self.head = nn.Linear(11, 7), nn.Linear(11, 7)
        self.double()

    def joined(self, audio: Tensor, visual: Tensor) -> Tensor:
        return torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head(self.joined(audio, visual))


class Fusing(Net):
    """The same by `encoders` and `fuse`."""

    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: self.get_submodule(path) for name, path in PATHS.items()}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in MODALITIES], 1))

    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})


class Heads(nn.Module):
    """A head of each modality, summed."""

    def __init__(self) -> None:
        super().__init__()
        self.audio, self.visual = nn.Linear(6, 7), nn.Linear(5, 7)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.audio(features["audio"]) + self.visual(features["visual"])


class Summing(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = Heads().double()  # type: ignore[assignment]

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})


class Own(nn.Module):
    """What multiplies with a part of a weight that belongs to another layer, too."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight[:6, :6]


class Tied(Net):
    """An encoder uses the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net.append(Own(self.head))


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"audio": 4, "visual": 3}
    return {name: torch.randn(BATCH, size, generator=generator, dtype=torch.float64) for name, size in sizes.items()}


TARGET = torch.tensor([0, 6, 3, 1, 3])


def engine(network: nn.Module, **settings: Any) -> agm.AGM:
    paths = {} if isinstance(network, Fusing) else {"encoders": PATHS}
    return agm.AGM(network, MODALITIES, alpha=1.5, **{**paths, **settings})


def step(model: agm.AGM) -> list[Tensor]:
    """Two steps: what is known of the network after the first serves in the second."""
    for _ in range(2):
        model.zero_grad()
        logits = model(**inputs(), target=TARGET)
        F.cross_entropy(logits, TARGET).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [logits.detach(), *gradients, model.modulator.state.values, *model.module.buffers()]


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("kind", [Net, Fusing, Summing, Tied])
def test_is_what_a_recognised_one_is(kind: type[Net], masked: Any) -> None:
    declared, recognised = engine(kind(), masked=masked, head="head"), engine(kind(), masked=masked)
    found, expected = step(declared), step(recognised)
    assert len(found) == len(expected) > 8
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    # By the definition, of rows that are written out.
    assert agm.verify(declared, inputs(), TARGET).ok


@pytest.mark.parametrize("kind", [Net, Fusing])
def test_the_plan_knows_of_it_before_a_batch_and_behind(kind: type[Net]) -> None:
    part = "fusion" if kind is Fusing else "rest of the network"
    declared, recognised = engine(kind(), head="head"), engine(kind())
    assert "in the declared head `head` (the first batch verifies that), so that no subset" in str(declared.plan())
    assert declared.plan().count(part, BATCH) == 2 * BATCH + 1
    assert recognised.plan().count(part, BATCH) == 3 * BATCH
    for model in (declared, recognised):
        step(model)
        assert model.plan().count(part, BATCH) == 2 * BATCH + 1
    assert "in the declared head `head`, so that no subset is computed" in str(declared.plan())
    assert "head" not in str(recognised.plan())


class Deep(Net):
    """The modalities meet before the head."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head(torch.tanh(self.joined(audio, visual).flip(1)))


class Nonlinear(Net):
    """The head is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(11, 7), nn.Tanh()).double()  # type: ignore[assignment]


class Twice(Net):
    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        features = self.joined(audio, visual)
        return self.head(features) + self.head(features)


class Scaled(Net):
    """A sum, but not of what the head returns."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.head(self.joined(audio, visual)) / 2.0


class Functional(Net):
    """The head's weight without the head."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return F.linear(self.joined(audio, visual), self.head.weight)


class Detour(Net):
    """Another head than the declared one."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        features = self.joined(audio, visual)
        self.head(features)
        return self.other(features)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Deep, "the modalities meet before it"),
        (Nonlinear, "what it returns is not linear in what each modality gives it"),
        (Twice, "forward calls it 2 times"),
        (Scaled, "the logits are not what it returns"),
        (Functional, "forward does not call it"),
        (Detour, "the logits are not what it returns"),
    ],
)
def test_a_wrong_declaration_is_refused_by_every_batch_and_leaves_nothing(kind: type[Net], words: str) -> None:
    network = kind()
    model = engine(network, head="head")
    before = [tensor.clone() for tensor in (*network.buffers(), model.modulator.state.values)]
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"`head` to be the path of the linear head.*'head' is not: {words}"):
            model(**inputs(), target=TARGET)
    for tensor, value in zip((*network.buffers(), model.modulator.state.values), before, strict=True):
        assert torch.equal(tensor, value)
    assert "forward" not in vars(network.head)
    assert agm.verify(engine(kind()), inputs(), TARGET).ok  # which is right without it


def test_a_wrong_declaration_of_a_factorised_network() -> None:
    class Mixing(Fusing):
        def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
            joined = torch.cat([features[name] for name in MODALITIES], 1)
            return self.head(joined * joined.mean(1, keepdim=True))

    model = engine(Mixing(), head="head")
    for _ in range(2):
        with pytest.raises(ValueError, match="'head' is not: the modalities meet before it"):
            model(**inputs(), target=TARGET)


def test_paths_that_lead_nowhere() -> None:
    with pytest.raises(ValueError, match=r"`head`.*no 'heads'. Its children are: audio_net, visual_net, other, head"):
        engine(Net(), head="heads")
    with pytest.raises(ValueError, match="`head` to be a part of the network, but got all of it"):
        engine(Net(), head="")
    with pytest.raises(TypeError, match=r"`head` to be the path of a module.*got a Linear"):
        engine(Net(), head=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Expected `encoders` with `head`"):
        agm.AGM(Net(), MODALITIES, head="head")


def test_another_module_in_its_place() -> None:
    """The path is followed anew in every step."""
    network = Net()
    model = engine(network, head="head")
    step(model)
    network.head = nn.Linear(11, 7).double()
    other = engine(Net(), head="head")
    other.load_state_dict(model.state_dict())
    other.modulator.state.load_state_dict(model.modulator.state.state_dict())
    for one, another in zip(step(model), step(other), strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=0)


def test_a_fusion_that_is_compiled_is_computed_subset_by_subset() -> None:
    network = Net()
    network.head = torch.compile(network.head, backend="eager")  # type: ignore[assignment]
    model = engine(network, head="head")
    step(model)
    assert "`head` is compiled" in str(model.plan())
