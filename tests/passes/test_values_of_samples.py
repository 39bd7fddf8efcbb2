"""Values of Python that belong to samples, wherever in the arguments they lie: repeated for masked rows, or refused."""

import array
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import agm

COUNTS = [3, 2, 5, 6]
ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


@dataclass
class Held:
    counts: Any


@dataclass(frozen=True)
class Frozen:
    counts: Any


class Slotted:
    __slots__ = ("counts",)

    def __init__(self, counts: Any) -> None:
        self.counts = counts


class Named(NamedTuple):
    counts: Any
    width: int = 3


class Padded(nn.Module):
    """Sums the frames of each sample, of which there are as many as `counts` finds in `meta`."""

    def __init__(self, counts: Callable[[Any], Iterable[int]]) -> None:
        super().__init__()
        self.audio_net, self.visual_net = nn.Linear(5, 8), nn.Linear(6, 8)
        self.head = nn.Linear(16, 3)
        self.counts = counts

    def forward(self, audio: Tensor, visual: Tensor, meta: Any) -> Tensor:
        mask = audio.new_zeros(audio.shape[:2])
        for row, count in zip(mask, self.counts(meta), strict=False):
            row[:count] = 1
        hidden = (self.audio_net(audio) * mask.unsqueeze(-1)).sum(1)
        return self.head(torch.cat([hidden, self.visual_net(visual)], 1).tanh())


class OneBatch(Padded):
    def forward(self, batch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["audio"], batch["views"][0], batch["meta"])


def inputs_of(batch: int = 4) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"audio": torch.randn(batch, 6, 5), "visual": torch.randn(batch, 6)}


def one_by_one(network: nn.Module, inputs: Mapping[str, Tensor], meta: Any) -> Tensor:
    audio, visual = inputs["audio"], inputs["visual"]
    passes = [(audio, 0 * visual), (0 * audio, visual), (audio, visual)]
    return torch.stack([Padded.forward(network, *one, meta) for one in passes])  # type: ignore[arg-type]


def same(value: Any) -> Any:
    return value


DICTS = SimpleNamespace(n=[{"n": n} for n in COUNTS])

REPEATED: dict[str, tuple[Callable[[Any], Iterable[int]], Any]] = {
    "list": (same, COUNTS),
    "tuple": (same, tuple(COUNTS)),
    "range": (same, range(1, 5)),
    "deque": (same, deque(COUNTS)),
    "bounded deque": (same, deque(COUNTS, maxlen=4)),
    "array of Python's": (same, array.array("l", COUNTS)),
    "bytearray": (same, bytearray(COUNTS)),
    "UserList": (same, UserList(COUNTS)),
    "numpy": (same, np.array(COUNTS)),
    "masked array": (lambda m: np.where(m.mask, 1, m.data).tolist(), np.ma.array(COUNTS, mask=[0, 1, 0, 1])),
    "strings of numpy": (lambda m: map(len, m), np.array(["abc", "ab", "abcde", "a"])),
    "captions": (lambda m: map(len, m), ["abc", "ab", "abcde", "a"]),
    "dicts": (lambda m: [one["n"] for one in m], [{"n": n} for n in COUNTS]),
    "ragged lists": (lambda m: map(len, m), [[7] * n for n in COUNTS]),
    "tuples": (lambda m: [n for _, n in m], [(0, n) for n in COUNTS]),
    "objects": (lambda m: [one.counts for one in m], [Held(n) for n in COUNTS]),
    "numbers of torch": (lambda m: map(int, m), [torch.tensor(n) for n in COUNTS]),
    "ragged tensors": (lambda m: map(len, m), [torch.ones(n) for n in COUNTS]),
    "ragged arrays": (lambda m: map(len, m), [np.ones(n) for n in COUNTS]),
    "dataclass": (lambda m: m.counts, Held(COUNTS)),
    "frozen dataclass": (lambda m: m.counts, Frozen(COUNTS)),
    "dataclass of a tensor": (lambda m: m.counts.tolist(), Held(torch.tensor(COUNTS))),
    "namespace": (lambda m: m.n, SimpleNamespace(n=COUNTS, width=3)),
    "slots": (lambda m: m.counts, Slotted(COUNTS)),
    "named tuple": (lambda m: m.counts, Named(COUNTS)),
    "dict": (lambda m: m["x"]["n"], {"x": {"n": COUNTS, "width": 3}}),
    "ordered dict": (lambda m: m["n"], OrderedDict(n=COUNTS)),
    "mapping": (lambda m: m["n"], UserDict(n=COUNTS)),
    "deep": (
        lambda m: [one["n"] for one in m["x"].counts.n],
        {"x": Held(SimpleNamespace(n=[{"n": n} for n in COUNTS]))},
    ),
    "beside another": (lambda m: m[0], (COUNTS, {"width": 3, "kind": "a", "depth": 2})),
}


@pytest.mark.parametrize("encoders", [None, ENCODERS])
@pytest.mark.parametrize("kind", REPEATED)
def test_they_are_repeated_for_the_masked_rows(kind: str, encoders: dict[str, str] | None) -> None:
    counts, meta = REPEATED[kind]
    network, inputs = Padded(counts), inputs_of()
    masked = agm.masked_logits(network, inputs, arguments={"meta": meta}, encoders=encoders)
    torch.testing.assert_close(masked, one_by_one(network, inputs, meta))


@pytest.mark.parametrize("encoders", [None, ENCODERS])
@pytest.mark.parametrize("kind", REPEATED)
def test_so_they_are_inside_a_batch(kind: str, encoders: dict[str, str] | None) -> None:
    counts, meta = REPEATED[kind]
    network, inputs, target = OneBatch(counts), inputs_of(), torch.tensor([0, 1, 2, 0])
    options = {"inputs": {"audio": "audio", "visual": "views.0"}, "encoders": encoders}
    model = agm.AGM(network, ("audio", "visual"), **options)
    batch = {"audio": inputs["audio"], "views": [inputs["visual"]], "meta": meta}
    assert agm.verify(model, {"batch": batch}, target).ok
    model(batch, target=target)
    expected = agm.Modulator(("audio", "visual"), alpha=1.0)
    expected(one_by_one(network, inputs, meta), target)
    torch.testing.assert_close(model.modulator.state.coefficients, expected.state.coefficients)
    assert batch["meta"] is meta


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (dict(enumerate(COUNTS)), r"`meta`.*no key for each of the 4 samples.*dict.*as a list"),
        ({"x": dict(enumerate(COUNTS))}, r"`meta\.x`.*no key for each of the 4 samples"),
        (dict(enumerate(COUNTS)).values(), "`meta`.*dict_values.*Give a list"),
        (set(COUNTS), "`meta`.*set.*Give a list"),
        (bytes(COUNTS), "`meta`.*bytes.*Give a list"),
        (iter(COUNTS), "`meta`.*several passes.*list_iterator.*Give a list"),
        ([torch.ones(4)] * 4, "`meta`.*4 items with 4 rows each.*stack"),
        ([[1, 2, 3, 4]] * 4, "`meta`.*4 items with 4 rows each"),
        (nn.utils.rnn.pack_sequence([torch.ones(n) for n in (6, 5, 3, 2)]), "`meta`.*PackedSequence.*pad_packed"),
        (torch.nested.nested_tensor([torch.ones(n) for n in COUNTS]), "`meta`.*dense.*to_padded_tensor"),
    ],
)
def test_what_cannot_be_told_or_repeated_is_refused_by_name(meta: Any, message: str) -> None:
    model = agm.AGM(Padded(lambda m: COUNTS), ("audio", "visual"))
    with pytest.raises(ValueError, match=message):
        model(**inputs_of(), meta=meta, target=torch.tensor([0, 1, 2, 0]))


GROUP = {"audio": ("audio", "meta"), "visual": "visual"}


@pytest.mark.parametrize("encoders", [None, {"visual": "visual_net"}])
@pytest.mark.parametrize("kind", ["dicts", "ragged lists", "deque", "dict", "captions", "objects"])
def test_those_that_carry_a_modality_with_a_tensor_stay(kind: str, encoders: dict[str, str] | None) -> None:
    counts, meta = REPEATED[kind]
    network, inputs, target = Padded(counts), inputs_of(), torch.tensor([0, 1, 2, 0])
    model = agm.AGM(network, GROUP, encoders=encoders)
    assert agm.verify(model, {**inputs, "meta": meta}, target).ok
    model(**inputs, meta=meta, target=target)
    expected = agm.Modulator(("audio", "visual"), alpha=1.0)
    expected(one_by_one(network, inputs, meta), target)
    torch.testing.assert_close(model.modulator.state.coefficients, expected.state.coefficients)


@pytest.mark.parametrize("meta", [dict(enumerate(COUNTS)), bytes(COUNTS), Held(COUNTS), set(COUNTS), iter(COUNTS)])
def test_what_cannot_be_repeated_carries_no_modality(meta: Any) -> None:
    model = agm.AGM(Padded(lambda m: COUNTS), GROUP)
    with pytest.raises(ValueError, match="`audio"):
        model(**inputs_of(), meta=meta, target=torch.tensor([0, 1, 2, 0]))


class Seeing(nn.Module):
    """Notes the last `meta` of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(11, 3)

    def forward(self, audio: Tensor, visual: Tensor, meta: Any) -> Tensor:
        SEEN.append(meta)
        return self.net(torch.cat([audio.sum(1), visual], 1))


SEEN: list[Any] = []


def step(model: agm.AGM, batch: int, meta: Any) -> Any:
    """What the masked pass of a batch is given."""
    SEEN.clear()
    model._passes.record.looks = 0  # at absent rows, which are passes more
    model(**inputs_of(batch), meta=meta, target=torch.zeros(batch, dtype=torch.int64))
    assert len(SEEN) in (2, 4)  # a first batch compares passes of one subset each
    return SEEN[1]


class TestTheNumberOfSamplesByChance:
    """An earlier batch tells of what is of the samples' number: a size, levels of features, options."""

    def model(self) -> agm.AGM:
        return agm.AGM(Seeing(), ("audio", "visual"))

    @pytest.mark.parametrize(
        "meta", [(32, 32), [0.1, 0.2], {"width": 3, "depth": 2}, SimpleNamespace(sizes=[8, 8]), b"ab", {1, 2}]
    )
    def test_a_last_batch_of_two(self, meta: Any) -> None:
        model = self.model()
        assert step(model, 4, meta) == meta
        assert step(model, 2, meta) == meta

    def test_levels_have_a_row_for_each_sample(self) -> None:
        model = self.model()
        assert [len(level) for level in step(model, 4, [torch.ones(4, 3), torch.ones(4, 6)])] == [8, 8]
        assert [len(level) for level in step(model, 2, [torch.ones(2, 3), torch.ones(2, 6)])] == [4, 4]

    def test_items_of_a_sample_stay_that(self) -> None:
        model = self.model()
        assert step(model, 3, [(1, 2), (3, 4), (5, 6)]) == [(1, 2), (3, 4), (5, 6)] * 2
        assert step(model, 2, [(1, 2), (3, 4)]) == [(1, 2), (3, 4)] * 2

    def test_a_number_that_was_that_of_the_samples_by_chance_is_refused_later(self) -> None:
        model = self.model()
        step(model, 2, (32, 32))
        with pytest.raises(ValueError, match=r"`meta`.*each of the 4 samples, as it had.*but got 2.*partial"):
            step(model, 4, (32, 32))


def test_an_object_without_anything_of_the_samples_is_left_alone() -> None:
    options = SimpleNamespace(weights=torch.ones(10), sizes=[1, 2, 3], inner=SimpleNamespace(name="a"))
    options.itself = options
    assert step(agm.AGM(Seeing(), ("audio", "visual")), 4, options) is options


def test_what_forward_does_to_them_stays_in_its_pass() -> None:
    class Emptied(Padded):
        def forward(self, audio: Tensor, visual: Tensor, meta: Any) -> Tensor:
            return super().forward(audio, visual, [one.pop("n") for one in meta])

    network, inputs = Emptied(same), inputs_of()
    masked = agm.masked_logits(network, inputs, arguments={"meta": [{"n": n} for n in COUNTS]})
    torch.testing.assert_close(masked, one_by_one(network, inputs, COUNTS))


@pytest.mark.parametrize("kind", ["dicts", "ragged lists", "deque", "dataclass"])
def test_verify_finds_samples_that_are_not_apart(kind: str) -> None:
    """It halves the batch, and with it what belongs to the samples."""

    class Centred(Padded):
        def forward(self, audio: Tensor, visual: Tensor, meta: Any) -> Tensor:
            logits = super().forward(audio, visual, meta)
            return logits - logits.mean(0)

    counts, meta = REPEATED[kind]
    model = agm.AGM(Centred(counts), ("audio", "visual"), max_rows=3)  # of four: rows of a subset do not meet
    found = agm.verify(model, inputs_of(), torch.tensor([0, 1, 2, 0]), arguments={"meta": meta})
    assert not found.ok
    assert "depend on the other samples" in found.advice[0]
