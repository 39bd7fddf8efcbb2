"""Inputs without a row a sample, which a callable of the user makes absent: a pass for each subset."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import agm

TARGET = torch.tensor([0, 1, 2, 0])


class Graphs:
    """Nodes of several graphs, one behind another, with those that each belongs to."""

    def __init__(self, x: Tensor, batch: Tensor) -> None:
        self.x, self.batch = x, batch


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual_net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.head = nn.Linear(16, 3)

    def fused(self, other: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([other, self.visual_net(visual)], 1).tanh())


class Sequences(Fused):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.GRU(5, 8, batch_first=True)

    def forward(self, other: PackedSequence, visual: Tensor) -> Tensor:
        return self.fused(self.net(other)[1][0], visual)


class Bags(Fused):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.EmbeddingBag(10, 8)

    def forward(self, words: Tensor, offsets: Tensor, visual: Tensor) -> Tensor:
        return self.fused(self.net(words, offsets), visual)


class Pooled(Fused):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(5, 8)

    def forward(self, other: Graphs, visual: Tensor) -> Tensor:
        pooled = visual.new_zeros(len(visual), 8).index_add(0, other.batch, self.net(other.x))
        return self.fused(pooled, visual)


class OneBatch(Pooled):
    """The nodes lie in the batch, beside what else there is of the graphs."""

    def forward(self, batch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(Graphs(batch["x"], batch["of"]), batch["visual"])


def graphs(nodes: int = 9) -> Graphs:
    return Graphs(torch.randn(nodes, 5, dtype=torch.float64), torch.arange(nodes) % 4)


def visual() -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64)


def case(kind: str) -> tuple[nn.Module, Any, dict[str, Any], dict[str, Any]]:
    """A network, its modalities, arguments of a call, and these in which the first modality is absent."""
    torch.manual_seed(0)
    if kind == "packed":
        padded = torch.randn(4, 6, 5, dtype=torch.float64)
        one, other = (
            pack_padded_sequence(x, torch.tensor([6, 5, 3, 2]), batch_first=True) for x in (padded, 0 * padded)
        )
        return Sequences().double(), ("other", "visual"), {"other": one, "visual": visual()}, {"other": other}
    if kind == "offsets":
        names = {"other": ("words", "offsets"), "visual": "visual"}
        given = {"words": torch.arange(9), "offsets": torch.tensor([0, 3, 4, 7]), "visual": visual()}
        return Bags().double(), names, given, {"words": torch.full((9,), 9)}
    if kind == "graphs":
        found = graphs()
        lost = Graphs(0 * found.x, found.batch)
        return Pooled().double(), ("other", "visual"), {"other": found, "visual": visual()}, {"other": lost}
    found = graphs()
    batch = {"x": found.x, "of": found.batch, "visual": visual(), "names": ["a", "b", "c", "d"]}
    return OneBatch().double(), ("other", "visual"), {"batch": batch}, {"batch": {**batch, "x": 0 * found.x}}


def no_nodes(given: Graphs) -> Graphs:
    return Graphs(0 * given.x, given.batch)


OPTIONS: dict[str, dict[str, Any]] = {
    "packed": {"absent": {"other": lambda given: given._replace(data=0 * given.data)}},
    "offsets": {"absent": {"other": lambda given: {**given, "words": torch.full_like(given["words"], 9)}}},
    "graphs": {"absent": {"other": no_nodes}},
    "in a batch": {"absent": {"other": lambda x: 0 * x}, "inputs": {"other": "x", "visual": "visual"}},
}


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", OPTIONS)
def test_each_subset_has_a_pass_of_its_own(kind: str, checkpoint: bool) -> None:
    network, names, given, lost = case(kind)
    by_hand = copy.deepcopy(network)
    model = agm.AGM(network, names, checkpoint=checkpoint, **OPTIONS[kind])
    assert agm.verify(model, given, TARGET).ok
    torch.manual_seed(3)
    F.cross_entropy(model(**given, target=TARGET), TARGET).backward()

    torch.manual_seed(3)
    joint = by_hand(**given)
    by_hand.eval()
    blind = {**given, "visual": 0 * given["visual"]} if kind != "in a batch" else given
    if kind == "in a batch":
        blind = {"batch": {**given["batch"], "visual": 0 * given["batch"]["visual"]}}
    logits = torch.stack([by_hand(**blind), by_hand(**{**given, **lost}), joint])
    F.cross_entropy(agm.Modulator(("other", "visual"), alpha=1.0)(logits, TARGET), TARGET).backward()
    for (name, one), other in zip(network.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f"{name}: {text}")
    assert "no masked rows can be made of the input of `other`" in str(model.plan())


def test_what_came_whole_stays_whole_where_it_has_as_many_rows_by_chance() -> None:
    model = agm.AGM(OneBatch().double(), ("other", "visual"), **OPTIONS["in a batch"])
    for nodes in (9, 4):
        found = graphs(nodes)
        model({"x": found.x, "of": found.batch, "visual": visual()}, target=TARGET)
        assert model._passes.binding.wholes == {"other"}


def test_what_had_a_row_for_each_sample_must_go_on_so() -> None:
    """By chance, or else this batch is the mistake."""
    model = agm.AGM(OneBatch().double(), ("other", "visual"), **OPTIONS["in a batch"])
    found = graphs(4)
    model({"x": found.x, "of": found.batch, "visual": visual()}, target=TARGET)
    found = graphs(9)
    with pytest.raises(ValueError, match="`other` to have a row for each of the 4 samples, as it had in an earlier"):
        model({"x": found.x, "of": found.batch, "visual": visual()}, target=TARGET)


class TestRefusals:
    @pytest.mark.parametrize(
        ("function", "message"),
        [
            (lambda given: given, "returned it"),
            (lambda given: given.x, "return a Graphs like its argument, but got Tensor"),
        ],
    )
    def test_what_the_callable_returns(self, function: Callable[[Any], Any], message: str) -> None:
        model = agm.AGM(Pooled().double(), ("other", "visual"), absent={"other": function})
        with pytest.raises(ValueError, match=message):
            model(other=graphs(), visual=visual(), target=TARGET)

    def test_a_callable_that_writes_to_its_argument(self) -> None:
        network, names, given, _ = case("packed")

        def away(given: PackedSequence) -> PackedSequence:
            given.data.zero_()
            return given._replace(data=given.data)

        with pytest.raises(ValueError, match="wrote to its argument"):
            agm.AGM(network, names, absent={"other": away})(**given, target=TARGET)

    @pytest.mark.parametrize(
        ("options", "present", "message"),
        [
            ({"encoders": {"visual": "visual_net"}}, None, "encoders are known.*leave `encoders` out"),
            ({}, torch.ones(4, 2, dtype=torch.bool), "`present` to be None.*`other`"),
            ({"max_rows": 4}, None, "`max_rows` to be None.*`other`"),
        ],
    )
    def test_what_needs_rows(self, options: dict[str, Any], present: Tensor | None, message: str) -> None:
        model = agm.AGM(Pooled().double(), ("other", "visual"), absent={"other": no_nodes}, **options)
        with pytest.raises(ValueError, match=message):
            model(other=graphs(), visual=visual(), target=TARGET, present=present)

    def test_the_advice(self) -> None:
        network, names, given, _ = case("packed")
        with pytest.raises(ValueError, match=r"PackedSequence.*pad_packed_sequence.*enforce_sorted=False.*`absent`"):
            agm.AGM(network, names)(**given, target=TARGET)
        network, names, given, _ = case("offsets")
        with pytest.raises(ValueError, match=r"`other`.*sizes \[4, 9\].*one behind another.*`absent`"):
            agm.AGM(network, names)(**given, target=TARGET)
        made = type("DataBatch", (type("Data", (), {"__module__": "torch_geometric.data"}),), {"__module__": "abc"})
        with pytest.raises(ValueError, match=r"DataBatch.*to_dense_batch.*`absent`"):
            agm.AGM(Pooled().double(), ("other", "visual"))(other=made(), visual=visual(), target=TARGET)
