"""What a plan says, against what the parts of the network see."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm
from agm._lazy_rows.tensor import Deferred
from agm._passes.plan import Plan

MODALITIES = ("audio", "visual", "text")
PATHS = {name: f"{name}_net" for name in MODALITIES}
BATCH = 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.1))
        self.visual_net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.text_net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0))
        self.head = nn.Linear(12, 3)

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual), self.text_net(text)], 1))


class Fusing(Net):
    @property
    def encoders(self) -> Mapping[str, nn.Module]:
        return {name: self.get_submodule(path) for name, path in PATHS.items()}

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in MODALITIES], 1))

    def forward(self, **given: Tensor) -> Tensor:  # type: ignore[override]
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})


class Counts:
    """Rows and mode of every pass, by the part's name in the plan, counted without hooks, which nothing is known of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: dict[nn.Module, list[str]] = {}
        self.found: dict[str, list[tuple[int, str]]] = {}
        forward = nn.Linear.forward

        def counted(module: nn.Linear, x: Tensor) -> Tensor:
            self.note(module, x)
            return forward(module, x)

        monkeypatch.setattr(nn.Linear, "forward", counted)

    def note(self, module: nn.Module, x: Tensor) -> None:
        rows = len(x)
        if isinstance(x, Deferred) and x.content is not None:  # as many as each modality's part of the layer is given
            rows = max(len(few) for few in x.content.terms.values())
        for part in self.parts.get(module, ()):
            self.found.setdefault(part, []).append((rows, "training" if module.training else "eval"))

    def of(self, model: agm.AGM) -> dict[str, list[tuple[int, str]]]:
        """Those of the second step."""
        network: Any = model.module
        self.parts = {network.get_submodule(path)[0]: [f"encoder `{name}`"] for name, path in PATHS.items()}
        self.parts[network.head] = ["fusion", "rest of the network", "network"]
        given = {name: torch.randn(BATCH, 4) for name in MODALITIES}
        for _ in range(2):
            self.found.clear()
            model(**given, target=torch.zeros(BATCH, dtype=torch.int64))
        return self.found

    def assert_are(self, plan: Plan) -> None:
        for part in {line.part for line in plan.lines}:
            lines = [line for line in plan.lines if line.part == part]
            assert [(line.count(BATCH), line.mode) for line in lines] == self.found[part]
            assert plan.count(part, BATCH) == sum(count for count, _ in self.found[part])


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    return Counts(monkeypatch)


CASES = [(Fusing, None), (Net, PATHS), (Net, {"visual": "visual_net", "text": "text_net"})]


@pytest.mark.parametrize("options", [{"masked": "shared"}, *({"passes": how} for how in ("auto", "one", "two"))])
@pytest.mark.parametrize(("kind", "paths"), CASES)
def test_rows_and_modes_are_those_that_the_parts_see(
    kind: type[Net], paths: dict[str, str] | None, options: Any, counts: Counts
) -> None:
    model = agm.AGM(kind(), MODALITIES, encoders=paths, **options)
    plan = model.plan()
    assert len({line.part for line in plan.lines}) == (len(paths) if paths else 3) + 1
    counts.of(model)
    # Before the first step nobody knows that what follows the encoders is a sum.
    counts.assert_are(replace(plan, lines=plan.lines[:-2]))
    assert plan.lines[-1].count(BATCH) == 6 * BATCH
    counts.assert_are(model.plan())
    counts.assert_are(model.eval().plan())


def test_with_hooks_that_count_an_encoder_has_two_passes() -> None:
    model = agm.AGM(Fusing())
    rows: list[int] = []
    network: Any = model.module
    network.text_net[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])) or args)
    plan = model.plan()
    for _ in range(2):  # in the first one more passes look whether rows meet
        rows.clear()
        model(**{name: torch.randn(BATCH, 4) for name in MODALITIES}, target=torch.zeros(BATCH, dtype=torch.int64))
    assert rows == [line.count(BATCH) for line in plan.lines if line.part == "encoder `text`"] == [BATCH, BATCH + 1]
    assert "hooks" in str(plan)


def test_a_network_of_one_piece(counts: Counts) -> None:
    model = agm.AGM(Net(), MODALITIES)
    counts.of(model)
    counts.assert_are(model.plan())
    text = str(model.plan())
    assert "6 B rows in eval mode: all proper subsets" in text
    assert "No encoders are named" in text
    assert "network 7 B rows" in text
    assert "One pass a subset: 7 B rows" in text


def test_says_why() -> None:
    plan = agm.AGM(Fusing(), passes="one").plan()
    assert str(plan).splitlines()[:2] == [
        "A training step with audio, visual, text, on B samples, masked='exact':",
        "  encoder `audio`   2 B + 1 rows in training mode: the joint pass, and in the same batch the present inputs "
        "and an absent one, which norms and dropouts treat as in eval mode: passes='one'",
    ]
    assert str(agm.AGM(Fusing()).plan().lines[2]) == (
        "B + 1 rows in training mode: the joint pass, whose features serve the present rows, and an absent one in its "
        "batch: no layer depends on the mode"
    )
    assert agm.AGM(Fusing()).plan().lines[0].note.endswith("weights are read once and kernels launched once")
    two = str(agm.AGM(Fusing(), passes="two").plan())
    assert "because it depends on the mode (`audio_net.1` BatchNorm1d, `audio_net.2` Dropout); a pass of their" in two
    assert "passes='two'" in agm.AGM(Fusing(), passes="two").plan().lines[3].note
    (joint,) = (line for line in agm.AGM(Fusing(), passes="one").plan().lines if line.part == "encoder `audio`")
    assert str(joint).startswith("2 B + 1 rows in training mode: the joint pass, and in the same batch the present")
    assert "encoder `audio` 2 B + 1 rows" in str(plan)
    shared = str(agm.AGM(Fusing(), masked="shared", passes="two").plan())
    assert "1 row in eval mode" in shared
    shared = str(agm.AGM(Fusing(), masked="shared", passes="one").plan())
    assert "treats that one as in eval mode (`audio_net.1` BatchNorm1d, `audio_net.2` Dropout)" in shared


def test_frozen_layers_do_not_depend_on_the_mode() -> None:
    network = Fusing()
    network.audio_net[1].eval()
    assert "BatchNorm1d" not in str(agm.AGM(network, passes="two").plan())
    assert "Dropout" in str(agm.AGM(network, passes="two").plan())
    assert "2 B + 1 rows in training mode" in str(agm.AGM(network).plan())  # no norm would take the batch apart
    assert "BatchNorm1d" in str(agm.AGM(network, passes="two").eval().plan())  # nobody knows what will be frozen


def test_says_what_is_encoded_with_the_rest_of_the_network() -> None:
    model = agm.AGM(Net(), MODALITIES, encoders={"visual": "visual_net"})
    assert "with what encodes `audio`, `text`" in str(model.plan())


def test_chunks_and_windows() -> None:
    text = str(agm.AGM(Fusing(), max_rows=64, checkpoint=True, start=2, stop=7).plan())
    assert "at most 64 rows at a time, recomputed in the backward" in text
    assert "Only in epochs 2 to 6" in text
    assert "Only from epoch 2 on" in str(agm.AGM(Fusing(), start=2).plan())


def test_a_layer_that_mixes_samples() -> None:
    network = Net()
    network.head = nn.Sequential(nn.Linear(12, 3), nn.BatchNorm1d(3, track_running_stats=False))
    text = str(agm.AGM(network, MODALITIES, checkpoint=True).plan())
    assert "one subset at a time, because `head.1` normalises with" in text
    assert "recomputed in the backward" in text


def test_follows_a_network_put_in_anothers_place() -> None:
    model = agm.AGM(Fusing())
    model.module = Fusing()
    model.module.audio_net = nn.Sequential(nn.Linear(4, 4))
    assert "BatchNorm1d" not in str(model.plan())


def test_a_part_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"`part` to be one of.*fusion.*'smell'"):
        agm.AGM(Fusing()).plan().count("smell", 2)


class Padded(nn.Module):
    """An encoder with a padding mask, which stays where its modality is absent."""

    def __init__(self) -> None:
        super().__init__()
        self.text_net = nn.TransformerEncoderLayer(4, 2, 8, 0.1, batch_first=True)
        self.image_net, self.head = nn.Linear(3, 4), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        text = self.text_net(tokens, src_key_padding_mask=mask).mean(1)
        return self.head(torch.cat([text, self.image_net(image)], 1))


@pytest.mark.parametrize(("masked", "expected"), [("exact", 3 * BATCH), ("shared", 2 * BATCH)])
def test_absent_rows_that_differ_are_encoded_once_each(
    masked: Any, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = {"text": "text_net", "image": "image_net"}
    model = agm.AGM(Padded().double(), {"text": ("tokens", "mask"), "image": "image"}, encoders=paths, masked=masked)
    mask = torch.zeros(BATCH, 5, dtype=torch.bool)
    mask[1, 3:] = True
    given = {"tokens": torch.randn(BATCH, 5, 4).double(), "mask": mask, "image": torch.randn(BATCH, 3).double()}
    target = torch.arange(BATCH) % 3
    for _ in range(2):
        counts: list[int] = []
        linear = F.linear

        def counted(x: Tensor, weight: Tensor, *more: Any, counts: list[int] = counts, linear: Any = linear) -> Tensor:
            if weight is model.module.text_net.linear1.weight:
                counts.append(len(x))
            return linear(x, weight, *more)

        with monkeypatch.context() as patched:
            patched.setattr(F, "linear", counted)
            model(**given, target=target)
    assert sum(counts) == expected == model.plan().count("encoder `text`", BATCH)
    assert agm.verify(model, given, target).ok


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("passes", ["auto", "two"])
@pytest.mark.parametrize("encoders", [PATHS, None])
def test_a_batch_without_samples(masked: Any, passes: Any, encoders: dict[str, str] | None) -> None:
    network = Net() if encoders or masked == "exact" else Fusing()
    model = agm.AGM(network, MODALITIES, encoders=encoders, masked=masked, passes=passes)
    for batch in (BATCH, 0):
        given = {name: torch.randn(BATCH, 4)[:batch] for name in MODALITIES}
        network.audio_net[1].eval()  # norms take no batch without samples
        logits = model(**given, target=torch.zeros(batch, dtype=torch.int64))
        assert logits.shape == (batch, 3)
        logits.sum().backward()
