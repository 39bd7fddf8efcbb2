"""Masked rows in chunks and recomputed: the same results, in less memory."""

import copy
import weakref
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import agm

BATCH = 5
ROWS = 6 * BATCH
SIZES = [1, BATCH - 1, BATCH, BATCH + 3, 10**6]


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = BATCH) -> dict[str, Any]:
    padding = torch.arange(7) >= torch.arange(1, batch + 1).clamp(max=7).unsqueeze(1)
    return {
        "audio": rows(batch, 4),
        "visual": {"values": rows(batch, 7, 6, seed=1), "padding": padding},
        "text": rows(batch, 3, seed=2),
    }


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(6, 5, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.rnn(x["values"])[0].masked_fill(x["padding"].unsqueeze(-1), 0.0).sum(1)


_NOTES: WeakKeyDictionary["Log", list[Any]] = WeakKeyDictionary()


class Log:
    """What calls note for a test: nothing in the network's attributes, which would be put back."""

    @property
    def notes(self) -> list[Any]:
        return _NOTES.setdefault(self, [])


class Whole(nn.Module):
    """Layers of every kind that depends on the mode, in the encoders and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3))
        self.visual_net = Padded()
        self.text_net = nn.Linear(3, 5)
        self.head = nn.Sequential(nn.Linear(15, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Dropout(0.3), nn.Linear(9, 4))
        self.log = Log()

    @property
    def seen(self) -> list[tuple[int, bool]]:
        return self.log.notes

    def classify(self, features: list[Tensor]) -> Tensor:
        self.seen.append((len(features[0]), self.head[1].training))
        return self.head(torch.cat(features, 1))

    def forward(self, audio: Tensor, visual: Any, text: Tensor, gate: Tensor | None = None) -> Tensor:
        gated = audio if gate is None else audio * gate.unsqueeze(1)
        return self.classify([self.audio_net(gated), self.visual_net(visual), self.text_net(text)])


class Fusing(Whole):
    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.audio_net, "visual": self.visual_net, "text": self.text_net}

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.classify([features[name] for name in ("audio", "visual", "text")])

    def forward(self, **given: Any) -> Tensor:  # type: ignore[override]
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})


def network(kind: type[Whole]) -> Whole:
    torch.manual_seed(0)
    return kind().double()


def outcome(module: Whole, given: dict[str, Any], **options: Any) -> list[dict[str, Tensor]]:
    """Logits and gradients of two steps before their common backward, and the buffers after it."""
    torch.manual_seed(1)
    given = {name: x.clone().requires_grad_() if isinstance(x, Tensor) else x for name, x in given.items()}
    masked = [agm.masked_logits(module, given, **options) for _ in range(2)]
    before = {name: module_.training for name, module_ in module.named_modules()}
    torch.cat(masked).backward(rows(14, *masked[0].shape[1:], seed=3))
    assert {name: module_.training for name, module_ in module.named_modules()} == before
    leaves = dict(module.named_parameters()) | {name: x for name, x in given.items() if isinstance(x, Tensor)}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return [{"logits": torch.cat(masked)}, gradients, dict(module.named_buffers())]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("max_rows", [None, *SIZES])
@pytest.mark.parametrize(("kind", "masked"), [(Whole, "exact"), (Fusing, "exact"), (Fusing, "shared")])
def test_results_are_the_same(kind: type[Whole], masked: str, max_rows: int | None, checkpoint: bool) -> None:
    plain = network(kind)
    chunked = copy.deepcopy(plain)
    expected = outcome(plain, inputs(), masked=masked)
    got = outcome(chunked, inputs(), masked=masked, max_rows=max_rows, checkpoint=checkpoint)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("max_rows", SIZES)
@pytest.mark.parametrize("kind", [Whole, Fusing])
def test_rows_at_a_time(kind: type[Whole], max_rows: int) -> None:
    module, given = network(kind), inputs()
    agm.masked_logits(module, given, max_rows=max_rows, checkpoint=True)  # the batch that verifies
    module.seen.clear()
    masked = agm.masked_logits(module, given, max_rows=max_rows, checkpoint=True)
    size = max_rows if max_rows < BATCH else min(max_rows // BATCH, 6) * BATCH  # whole subsets, where they fit
    chunks = [(min(size, ROWS - start), False) for start in range(0, ROWS, size)]
    assert module.seen == [(BATCH, True), *chunks]
    module.seen.clear()
    masked.sum().backward()
    assert sorted(module.seen) == sorted(chunks)
    assert module.head[1].training


def test_other_arguments_are_chunked_with_the_rows() -> None:
    module, given, gate = network(Whole).eval(), inputs(), rows(BATCH, seed=4)
    expected = agm.masked_logits(module, given, arguments={"gate": gate})
    for max_rows in SIZES:
        torch.testing.assert_close(
            agm.masked_logits(module, given, arguments={"gate": gate}, max_rows=max_rows), expected
        )
    with pytest.raises(ValueError, match="`gate`"):
        agm.masked_logits(module, given, arguments={"gate": gate[:2]}, max_rows=1)


def test_a_network_that_writes_to_its_inputs() -> None:
    class Writing(Whole):
        def forward(self, audio: Tensor, visual: Any, text: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(audio.mul_(2.0), visual, text.add_(1.0))

    module = network(Writing).eval()
    expected = agm.masked_logits(module, inputs())
    torch.testing.assert_close(agm.masked_logits(module, inputs(), max_rows=4, checkpoint=True), expected)


@pytest.mark.parametrize("state", ["eval", "another statistic"])
def test_what_the_network_has_become_before_the_backward_does_not_matter(state: str) -> None:
    gradients = []
    for options in ({}, {"max_rows": 4, "checkpoint": True}):
        module = network(Whole)
        torch.manual_seed(1)
        masked = agm.masked_logits(module, inputs(), **options)
        if state == "eval":
            module.eval()
        else:
            module(**inputs(3))
        masked[:-1].sum().backward()  # the joint pass stays as the network computed it
        gradients.append({name: p.grad for name, p in module.named_parameters()})
        assert module.training == (state != "eval")
        assert module.visual_net.rnn.dropout == 0.5
    torch.testing.assert_close(*gradients)


def test_an_error_in_the_recomputation_leaves_modes_and_statistics() -> None:
    module = network(Whole)
    masked = agm.masked_logits(module, inputs(), checkpoint=True)
    buffers = {name: id(buffer) for name, buffer in module.named_buffers()}
    hook = module.head[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        masked.sum().backward()
    hook.remove()
    assert all(child.training for child in module.modules())
    assert {name: id(buffer) for name, buffer in module.named_buffers()} == buffers


def test_batch_norm_without_running_statistics_sees_whole_blocks() -> None:
    module = network(Whole)
    module.head[1] = nn.BatchNorm1d(9, track_running_stats=False).double()
    module.head[3].p = 0.0
    module.eval()
    expected = agm.masked_logits(module, inputs())
    for max_rows in (BATCH, 2 * BATCH + 1):
        module.seen.clear()
        masked = agm.masked_logits(module, inputs(), max_rows=max_rows, checkpoint=True)
        torch.testing.assert_close(masked, expected)
        assert [count for count, _ in module.seen] == [BATCH] * 7
    before = copy.deepcopy(module.train().state_dict())
    with pytest.raises(ValueError, match=r"`max_rows`.*5 samples.*`head\.1`.*got 4"):
        agm.masked_logits(module, inputs(), max_rows=4)
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_a_fusion_without_running_statistics_sees_whole_blocks() -> None:
    module = network(Fusing)
    module.head[1] = nn.BatchNorm1d(9, track_running_stats=False).double()
    module.eval()
    expected = agm.masked_logits(module, inputs(), max_rows=BATCH)
    module.seen.clear()
    torch.testing.assert_close(agm.masked_logits(module, inputs()), expected)
    assert [count for count, _ in module.seen] == [BATCH] * 7
    assert "one subset at a time" in str(agm.AGM(module).plan())


class Peak(TorchDispatchMode):
    """The most bytes that tensors made in here hold at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def _release(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage not in self.known:
                self.known.add(storage)
                weakref.finalize(storage, self._release, storage.nbytes())
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return result


class Wide(nn.Module):
    """Many activations a row; as many modalities as it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 512), *[nn.Tanh() for _ in range(8)], nn.Linear(512, 2)).double()

    def forward(self, **given: Tensor) -> Tensor:
        return self.layers(torch.stack(list(given.values())).sum(0))


class WideFusing(Wide):
    encoders = property(lambda self: self.named)

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.named = nn.ModuleDict({name: nn.Identity() for name in names})

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return super().forward(**features)

    def forward(self, **given: Tensor) -> Tensor:
        return self.fuse({name: self.named[name](x) for name, x in given.items()})


@pytest.mark.parametrize("kind", [Wide, WideFusing])
class TestMemory:
    batch = 8

    def step(self, kind: Any, modalities: int, **options: Any) -> tuple[int, int]:
        """Bytes at the peak of a step, and those that its forward saves for the backward outside of checkpoints."""
        given = {f"m{i}": rows(self.batch, 2, seed=i) for i in range(modalities)}
        module = Wide() if kind is Wide else WideFusing(list(given))
        agm.masked_logits(module, given)
        peak, saved = Peak(), {}

        def pack(tensor: Tensor) -> Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with peak:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = agm.masked_logits(module, given, **options).square().sum()
            loss.backward()
        return peak.most, sum(saved.values())

    def test_grows_with_the_chunk_and_not_with_the_subsets(self, kind: Any) -> None:
        options = {"max_rows": self.batch, "checkpoint": True}
        peaks, saved = zip(*(self.step(kind, modalities, **options) for modalities in (3, 6)), strict=True)
        assert peaks[1] < 1.3 * peaks[0]  # 6 and 62 masked subsets
        assert saved[1] < 1.3 * saved[0]
        larger, _ = self.step(kind, 6, max_rows=8 * self.batch, checkpoint=True)
        assert larger > 3 * peaks[1]

    def test_without_checkpoints_it_grows_with_the_subsets(self, kind: Any) -> None:
        peaks, saved = zip(*(self.step(kind, modalities, max_rows=self.batch) for modalities in (3, 6)), strict=True)
        assert peaks[1] > 5 * peaks[0]
        assert saved[1] > 5 * saved[0]


def test_engine_passes_them_on() -> None:
    module, given = network(Fusing), inputs()
    model = agm.AGM(module, max_rows=4, checkpoint=True)
    for _ in range(2):
        module.seen.clear()
        model(**given, target=torch.zeros(BATCH, dtype=torch.int64)).sum().backward()
    assert max(count for count, training in module.seen if not training) == 4


@pytest.mark.parametrize("kind", [Whole, Fusing])
def test_compiles(kind: type[Whole]) -> None:
    module, given = network(kind), {name: x for name, x in inputs().items() if name != "visual"}
    module.visual_net, module.log = nn.Linear(6, 5).double(), Log()
    module.classify = lambda features: module.head(torch.cat(features, 1))  # type: ignore[method-assign]
    given["visual"] = rows(BATCH, 6)
    model = agm.AGM(module.eval(), tuple(given), max_rows=4, checkpoint=True)
    model.modulator.train()
    model.training = True
    target = torch.zeros(BATCH, dtype=torch.int64)
    torch._dynamo.reset()  # an alpha that differs from that of another test becomes a symbol
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for step in (model, compiled):
        model.zero_grad()
        model.modulator.state.values.zero_()
        model.modulator.state.counts.zero_()
        step(**given, target=target).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_without_samples() -> None:
    assert agm.masked_logits(network(Whole).eval(), inputs(0), max_rows=3, checkpoint=True).shape == (7, 0, 4)


class TestRefusals:
    @pytest.mark.parametrize("max_rows", [0, -1, 2.0, True, "8"])
    def test_max_rows(self, max_rows: Any) -> None:
        with pytest.raises(ValueError, match=r"`max_rows` to be a positive integer, or None"):
            agm.masked_logits(network(Whole), inputs(), max_rows=max_rows)

    def test_checkpoint(self) -> None:
        with pytest.raises(TypeError, match="`checkpoint` to be a bool, but got 1"):
            agm.AGM(network(Whole), tuple(inputs()), checkpoint=1)  # type: ignore[arg-type]

    @pytest.mark.parametrize("options", [{"max_rows": 8}, {"checkpoint": True}])
    def test_encoders_by_path(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"(?s)`max_rows`.*`encoders`.*Leave `encoders` out"):
            agm.masked_logits(network(Whole), inputs(), encoders={"audio": "audio_net"}, **options)

    @pytest.mark.parametrize("output", [lambda z: (z, z), lambda z: z.mean(0)])
    def test_an_output_that_is_not_logits(self, output: Any) -> None:
        class Other(Whole):
            def forward(self, audio: Tensor, visual: Any, text: Tensor) -> Any:  # type: ignore[override]
                return output(super().forward(audio, visual, text))

        with pytest.raises(ValueError, match=r"logits of shape \(batch, classes\)|`output=`, one of"):
            agm.masked_logits(network(Other), inputs(), max_rows=4)
