"""Masked passes of networks as users have them, against 2**M - 1 separate passes one after another."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import agm

MODALITIES = ("audio", "visual", "text")
SUBSETS = range(1, 8)


def naive(network: nn.Module, inputs: Mapping[str, Any], absent: Mapping[str, Any] | None = None) -> Tensor:
    """The definition: a joint pass in training mode, then every other subset on its own in eval mode."""
    names = list(inputs)
    zeros = {n: pytree.tree_map(torch.zeros_like, v) for n, v in inputs.items()} | dict(absent or {})
    joint = network(**inputs)
    modes = {module: module.training for module in network.modules()}
    network.eval()
    rows = [
        network(**{n: inputs[n] if subset >> m & 1 else zeros[n] for m, n in enumerate(names)})
        for subset in range(1, 2 ** len(names) - 1)
    ]
    for module, mode in modes.items():
        module.training = mode
    return torch.stack([*rows, joint])


def compare(
    network: nn.Module,
    inputs: Mapping[str, Any],
    *,
    absent: Mapping[str, Any] | None = None,
    naive_absent: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Logits, every gradient and the running statistics of agm.masked_logits and of the definition."""
    network = network.double()
    network.zero_grad()
    expected_network = copy.deepcopy(network)
    torch.manual_seed(1)
    expected = naive(expected_network, inputs, absent if naive_absent is None else naive_absent)
    torch.manual_seed(1)
    masked = agm.masked_logits(network, inputs, absent=absent, **options)
    torch.testing.assert_close(masked, expected)
    upstream = torch.randn_like(masked)
    masked.backward(upstream)
    expected.backward(upstream)
    for (name, parameter), other in zip(network.named_parameters(), expected_network.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(network.state_dict(), expected_network.state_dict())


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def three_inputs(batch: int = 5) -> dict[str, Tensor]:
    return {"audio": rows(batch, 4), "visual": rows(batch, 6, seed=1), "text": rows(batch, 3, seed=2)}


def encoder(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 5))


class Three(nn.Module):
    """Three encoders and a head that depends on the mode and is not linear."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders_ = nn.ModuleDict({"audio": encoder(4), "visual": encoder(6), "text": encoder(3)})
        self.head = nn.Sequential(nn.Linear(15, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 4))

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual, "text": text}
        return self.head(torch.cat([self.encoders_[name](x) for name, x in inputs.items()], 1))


class ThreeFactorised(Three):
    """The same network under the names that need no paths."""

    @property
    def encoders(self) -> nn.ModuleDict:
        return self.encoders_

    def fuse(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features[name] for name in MODALITIES], 1))

    def forward(self, audio: Tensor, visual: Tensor, text: Tensor) -> Tensor:
        inputs = {"audio": audio, "visual": visual, "text": text}
        return self.fuse({name: self.encoders_[name](x) for name, x in inputs.items()})


PATHS = {name: f"encoders_.{name}" for name in MODALITIES}


class TestExactAgainstSeparatePasses:
    def test_whole_network(self) -> None:
        compare(Three(), three_inputs())

    def test_encoders_by_path(self) -> None:
        compare(Three(), three_inputs(), encoders=PATHS)

    def test_some_encoders_by_path(self) -> None:
        compare(Three(), three_inputs(), encoders={"visual": PATHS["visual"]})

    def test_encoders_and_fuse(self) -> None:
        compare(ThreeFactorised(), three_inputs())

    @pytest.mark.parametrize("kind", [Three, ThreeFactorised])
    @pytest.mark.parametrize("batch", [2, 3])
    def test_small_batches(self, kind: type[nn.Module], batch: int) -> None:
        compare(kind(), three_inputs(batch), encoders=PATHS if kind is Three else None)

    def test_one_sample_in_eval_mode(self) -> None:
        for kind, options in ((Three, {"encoders": PATHS}), (Three, {}), (ThreeFactorised, {})):
            for masked in ("exact", "shared") if options or kind is ThreeFactorised else ("exact",):
                compare(kind().eval(), three_inputs(1), masked=masked, **options)

    def test_absent_value_row_and_callable(self) -> None:
        inputs = three_inputs()
        row = rows(6, seed=9)
        absent = {"audio": 0.5, "visual": row, "text": lambda x: x.flip(0) * 2}
        full = {
            "audio": torch.full_like(inputs["audio"], 0.5),
            "visual": row.expand(5, 6),
            "text": inputs["text"].flip(0) * 2,
        }
        for kind, options in ((Three, {"encoders": PATHS}), (Three, {}), (ThreeFactorised, {})):
            compare(kind(), inputs, absent=absent, naive_absent=full, **options)

    def test_a_callable_may_return_one_row(self) -> None:
        inputs = three_inputs()
        full = {"audio": torch.ones_like(inputs["audio"])}
        absent = {"audio": lambda x: torch.ones_like(x[:1])}
        for kind, options in ((Three, {"encoders": PATHS}), (Three, {}), (ThreeFactorised, {})):
            compare(kind(), inputs, absent=absent, naive_absent=full, **options)


class Counter:
    """Rows that pass through a module, call by call, and its mode then."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[tuple[int, bool]] = []
        module.register_forward_pre_hook(self._note)

    def _note(self, module: nn.Module, args: Any) -> Any:
        self.rows.append((len(args[0]), module.training))
        return args  # a hook that returns something sees masked rows too


@pytest.mark.parametrize("kind", [Three, ThreeFactorised])
@pytest.mark.parametrize(
    ("masked", "expected"), [("exact", [(5, True), (6, False)]), ("shared", [(5, True), (1, False)])]
)
def test_an_encoder_sees_present_rows_and_one_absent_row(
    kind: type[Three], masked: Any, expected: list[tuple[int, bool]]
) -> None:
    network = kind().double()
    encoders = PATHS if kind is Three else None
    agm.masked_logits(network, three_inputs(), masked=masked, encoders=encoders)  # the batch that verifies
    # Inside the encoder: hooks on the encoder itself see what the network's forward gives it.
    counters = [Counter(network.encoders_[name][0]) for name in MODALITIES]
    head = Counter(network.head)
    agm.masked_logits(network, three_inputs(), masked=masked, encoders=encoders)
    assert all(counter.rows == expected for counter in counters)
    assert head.rows == [(5, True), (30, False)]


@pytest.mark.parametrize(("batch", "gradients"), [(5, True), (5, False), (1, True), (1, False)])
def test_only_a_first_batch_of_its_kind_is_looked_at(batch: int, gradients: bool) -> None:
    """An evaluation, or training on single samples, takes no more passes from the second batch on."""
    network = Three().double().eval()
    counter = Counter(network.encoders_["audio"][0])
    calls = []
    for _ in range(3):
        counter.rows.clear()
        with torch.set_grad_enabled(gradients):
            agm.masked_logits(network, three_inputs(batch), encoders=PATHS)
        calls.append(len(counter.rows))
    assert calls[0] > calls[1] == calls[2] == 2
    counter.rows.clear()
    agm.masked_logits(network, three_inputs(5), encoders=PATHS)
    looks_again = len(counter.rows) > 2
    assert looks_again == (batch == 1)  # what has been seen less closely is no proof for more


def test_without_encoders_all_masked_inputs_are_one_batch() -> None:
    network = Three().double()
    counter = Counter(network.encoders_["audio"])
    agm.masked_logits(network, three_inputs())
    assert counter.rows == [(5, True), (30, False)]


class TestShared:
    def test_equals_exact_where_nothing_depends_on_the_mode(self) -> None:
        def plain(width: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(width, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 5))

        for kind in (Three, ThreeFactorised):
            network = kind()
            network.encoders_ = nn.ModuleDict({"audio": plain(4), "visual": plain(6), "text": plain(3)})
            network.head = nn.Linear(15, 4)
            compare(network, three_inputs(), masked="shared", encoders=PATHS if kind is Three else None)
        compare(network, three_inputs(1), masked="shared", encoders=PATHS)

    @pytest.mark.parametrize("kind", [Three, ThreeFactorised])
    def test_takes_the_joint_features(self, kind: type[Three]) -> None:
        """With batch norm: the present rows are those of the joint pass, normalised by the batch."""
        network = kind().double()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inputs = three_inputs()
        reference = copy.deepcopy(network)
        features = {name: reference.encoders_[name](inputs[name]) for name in MODALITIES}
        joint = reference.head(torch.cat(list(features.values()), 1))
        reference.eval()
        absent = {
            name: reference.encoders_[name](torch.zeros_like(inputs[name][:1])).expand(5, 5) for name in MODALITIES
        }
        expected = [
            reference.head(torch.cat([(features if s >> m & 1 else absent)[n] for m, n in enumerate(MODALITIES)], 1))
            for s in range(1, 7)
        ]
        masked = agm.masked_logits(network, inputs, masked="shared", encoders=PATHS if kind is Three else None)
        torch.testing.assert_close(masked, torch.stack([*expected, joint]))
        upstream = torch.randn_like(masked)
        masked.backward(upstream)
        torch.stack([*expected, joint]).backward(upstream)
        for parameter, other in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, other.grad)

    def test_a_network_of_one_piece_is_refused_where_modes_differ(self) -> None:
        with pytest.raises(ValueError, match=r"(?s)shared.*encoders_\.audio\.1"):
            agm.masked_logits(Three().double(), three_inputs(), masked="shared")
        compare(Three().eval(), three_inputs(), masked="shared")


class TestModes:
    @pytest.mark.parametrize("kind", [Three, ThreeFactorised])
    @pytest.mark.parametrize("factorised", [False, True])
    @pytest.mark.parametrize("fails", [False, True])
    def test_are_as_before(self, kind: type[Three], factorised: bool, fails: bool) -> None:
        network = kind().double()
        network.encoders_["visual"][1].eval()  # a batch norm that the user froze
        before = {name: module.training for name, module in network.named_modules()}
        buffers = {name: id(buffer) for name, buffer in network.named_buffers()}
        if fails:
            calls = iter([False, True])
            network.head[0].register_forward_pre_hook(lambda module, args: 1 / 0 if next(calls) else args)
            with pytest.raises(ZeroDivisionError):
                agm.masked_logits(network, three_inputs(), encoders=PATHS if factorised else None)
        else:
            agm.masked_logits(network, three_inputs(), encoders=PATHS if factorised else None)
        assert {name: module.training for name, module in network.named_modules()} == before
        assert {name: id(buffer) for name, buffer in network.named_buffers()} == buffers
        assert not any("forward" in vars(module) for module in network.modules())

    def test_a_frozen_batch_norm_stays_frozen(self) -> None:
        network = Three().double()
        frozen = network.encoders_["visual"][1].eval()
        before = copy.deepcopy(frozen.state_dict())
        compare(network, three_inputs(), encoders=PATHS)
        torch.testing.assert_close(frozen.state_dict(), before, rtol=0, atol=0)

    def test_train_is_not_called_on_the_users_modules(self) -> None:
        class Merging(Three):
            def train(self, mode: bool = True) -> "Merging":
                raise AssertionError("merges its adapters")

        agm.masked_logits(Merging().double(), three_inputs())

    @pytest.mark.parametrize("options", [{}, {"encoders": PATHS}])
    def test_two_forwards_before_a_backward(self, options: dict[str, Any]) -> None:
        """The eval passes read running statistics that the second training pass writes to."""
        gradients = []
        for second in (False, True):
            torch.manual_seed(0)
            network = Three().double()  # a cast makes new buffers, which count no version yet
            masked = agm.masked_logits(network, three_inputs(), **options)
            if second:
                agm.masked_logits(network, {name: x + 1.0 for name, x in three_inputs().items()}, **options)
            masked.square().sum().backward()
            gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


class Pairs(nn.Module):
    """Two modalities in any structure; each encoder gets its modality's input as it is."""

    def __init__(self, audio: nn.Module, visual: nn.Module, head: int) -> None:
        super().__init__()
        self.audio_net, self.visual_net = audio, visual
        self.head = nn.Linear(head, 3)

    def forward(self, audio: Any, visual: Any) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


BOTH = {"audio": "audio_net", "visual": "visual_net"}


class MaskedMean(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 5)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        hidden = torch.tanh(self.linear(x["values"])).masked_fill(x["padding"].unsqueeze(-1), 0.0)
        return hidden.sum(1) / (~x["padding"]).sum(1, keepdim=True)


class Lengths(nn.Module):
    """Token ids with lengths; the id 0 is a word like any other, 9 is the pad."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)

    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        ids, lengths = x
        inside = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        return (self.embedding(ids) * inside.unsqueeze(-1)).sum(1) / lengths.unsqueeze(1)


class TestPytrees:
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 1]).unsqueeze(1)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    def test_a_padding_mask_stays(self, options: dict[str, Any]) -> None:
        inputs = {"audio": {"values": rows(4, 7, 3), "padding": self.padding}, "visual": rows(4, 6)}
        absent = {"audio": {"values": torch.zeros(4, 7, 3, dtype=torch.float64), "padding": self.padding}}
        compare(Pairs(MaskedMean(3), nn.Linear(6, 5), 10), inputs, naive_absent=absent, **options)

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    @pytest.mark.parametrize("absent", [9, (9, None), lambda x: (torch.full_like(x[0], 9), x[1])])
    def test_token_ids_get_a_pad_id(self, options: dict[str, Any], absent: Any) -> None:
        ids, lengths = torch.randint(9, (4, 7)), torch.tensor([7, 3, 5, 1])
        inputs = {"audio": rows(4, 6), "visual": (ids, lengths)}
        compare(
            Pairs(nn.Linear(6, 5), Lengths(), 11),
            inputs,
            absent={"visual": absent},
            naive_absent={
                "audio": torch.zeros(4, 6, dtype=torch.float64),
                "visual": (torch.full_like(ids, 9), lengths),
            },
            **options,
        )

    def test_token_ids_alone_are_zero_by_default(self) -> None:
        class Words(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(10, 6)

            def forward(self, ids: Tensor) -> Tensor:
                return self.embedding(ids).mean(1)

        inputs = {"audio": rows(4, 6), "visual": torch.randint(10, (4, 7))}
        for options in ({}, {"encoders": BOTH}):
            compare(Pairs(nn.Linear(6, 5), Words(), 11), inputs, **options)

    def test_ids_in_a_pytree_must_be_said(self) -> None:
        inputs = {"audio": rows(4, 6), "visual": (torch.randint(9, (4, 7)), torch.tensor([7, 3, 5, 1]))}
        with pytest.raises(ValueError, match=r"`absent`.*`visual`.*int64\[4, 7\].*pad id"):
            agm.masked_logits(Pairs(nn.Linear(6, 5), Lengths(), 11).double(), inputs)

    def test_a_learned_absent_row_gets_its_gradient(self) -> None:
        token = nn.Parameter(rows(6, seed=3))
        network = Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        for options in ({}, {"encoders": BOTH}):
            token.grad = None
            masked = agm.masked_logits(network, inputs, absent={"visual": token}, **options)
            upstream = torch.ones_like(masked)
            masked.backward(upstream)
            (expected,) = torch.autograd.grad(network(inputs["audio"], token.expand(4, 6)).sum(), token)
            torch.testing.assert_close(token.grad, expected)


class Frames(nn.Module):
    """Frames folded into rows inside the network, as in audio-visual classifiers."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.audio_net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.visual_net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
        self.head = nn.Linear(10, 3)
        self.order = order

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        batch, frames, width = visual.shape
        if self.order == "sample":
            hidden = self.visual_net(visual.reshape(batch * frames, width)).view(batch, frames, -1).mean(1)
        else:
            hidden = self.visual_net(visual.transpose(0, 1).reshape(-1, width)).view(frames, batch, -1).mean(0)
        return self.head(torch.cat([self.audio_net(audio), hidden], 1))


class SequenceFirst(nn.Module):
    """An encoder whose samples are in the second dimension and which returns a tuple with states in a third place."""

    def __init__(self) -> None:
        super().__init__()
        self.audio_net = nn.Linear(6, 5)
        self.visual_net = nn.GRU(4, 5, num_layers=2)
        self.head = nn.Linear(15, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        outputs, states = self.visual_net(visual.transpose(0, 1))
        return self.head(torch.cat([self.audio_net(audio), outputs.mean(0), states[0]], 1))


class TestStructuresInsideTheNetwork:
    @pytest.mark.parametrize("batch", [2, 5])
    def test_frames_as_rows(self, batch: int) -> None:
        inputs = {"audio": rows(batch, 6), "visual": rows(batch, 4, 4, seed=1)}
        compare(Frames("sample"), inputs)
        compare(Frames("sample"), inputs, encoders=BOTH)

    def test_frames_in_another_order_are_refused(self) -> None:
        inputs = {"audio": rows(5, 6), "visual": rows(5, 4, 4, seed=1)}
        compare(Frames("frame"), inputs)
        with pytest.raises(ValueError, match=r"`visual`.*another order than the samples'"):
            agm.masked_logits(Frames("frame").double(), inputs, encoders=BOTH)

    @pytest.mark.parametrize("frames", [3, 8])
    def test_sequence_first_and_tuples(self, frames: int) -> None:
        inputs = {"audio": rows(4, 6), "visual": rows(4, frames, 4, seed=1)}
        compare(SequenceFirst(), inputs, encoders=BOTH)
        compare(SequenceFirst(), inputs, encoders=BOTH, masked="shared")
        compare(SequenceFirst().eval(), {n: x[:1] for n, x in inputs.items()}, encoders=BOTH, masked="shared")

    def test_an_encoder_called_twice(self) -> None:
        class Twice(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                hidden = self.audio_net(audio) + self.audio_net(audio.flip(1))
                return self.head(torch.cat([hidden, self.visual_net(visual)], 1))

        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        for masked in ("exact", "shared"):
            compare(Twice(nn.Linear(6, 5), nn.Linear(6, 5), 10), inputs, encoders=BOTH, masked=masked)

    def test_a_skip_connection_around_an_encoder(self) -> None:
        class Skip(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual) + visual], 1))

        inputs = {"audio": rows(4, 6), "visual": rows(4, 5, seed=1)}
        compare(Skip(nn.Linear(6, 5), nn.Linear(5, 5), 10), inputs, encoders=BOTH)

    @pytest.mark.parametrize("samples", [4, 1])
    def test_an_encoder_that_sees_the_other_modality(self, samples: int) -> None:
        class Crossed(Pairs):
            def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
                return self.head(torch.cat([self.audio_net(audio + visual), self.visual_net(visual)], 1))

        network = Crossed(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        inputs = {"audio": rows(samples, 6), "visual": rows(samples, 6, seed=1)}
        compare(network, inputs, encoders=BOTH)
        compare(network, inputs)

    def test_an_encoder_that_is_not_called_is_refused(self) -> None:
        network = Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()
        network.unused = nn.Linear(6, 5).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}
        with pytest.raises(ValueError, match="to call the encoder of `audio`"):
            agm.masked_logits(network, inputs, encoders={"audio": "unused"})


class TestOtherArguments:
    class Gated(Pairs):
        def forward(self, audio: Tensor, visual: Tensor, gate: Tensor, scale: float = 1.0) -> Tensor:  # type: ignore[override]
            hidden = torch.cat([self.audio_net(audio), self.visual_net(visual)], 1)
            return self.head(hidden * gate.unsqueeze(1) * scale)

    def network(self) -> nn.Module:
        return self.Gated(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()

    inputs: ClassVar = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}

    @pytest.mark.parametrize("options", [{}, {"encoders": BOTH}])
    def test_rows_are_repeated_and_the_rest_passed_on(self, options: dict[str, Any]) -> None:
        network, gate = self.network(), rows(4, seed=4)
        masked = agm.masked_logits(network, self.inputs, arguments={"gate": gate, "scale": 2.0}, **options)
        zeros = torch.zeros_like(gate.unsqueeze(1).expand(4, 6))
        torch.testing.assert_close(masked[0], network(self.inputs["audio"], zeros, gate, scale=2.0))
        torch.testing.assert_close(masked[1], network(zeros, self.inputs["visual"], gate, scale=2.0))

    def test_a_tensor_that_has_not_one_row_a_sample_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`gate`.*one row for each of the 4 samples.*\(3,\)"):
            agm.masked_logits(self.network(), self.inputs, arguments={"gate": rows(3)})

    def test_an_encoder_may_take_them(self) -> None:
        """Then an absent row is another one for every sample."""

        class Scaled(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 5)

            def forward(self, x: Tensor, gate: Tensor) -> Tensor:
                return self.linear(x) * gate.unsqueeze(1)

        class Net(Pairs):
            def forward(self, audio: Tensor, visual: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
                return self.head(torch.cat([self.audio_net(audio, gate), self.visual_net(visual)], 1))

        network, gate = Net(Scaled(), nn.Linear(6, 5), 10).double(), rows(4, seed=4)
        whole = agm.masked_logits(network, self.inputs, arguments={"gate": gate})
        factorised = agm.masked_logits(network, self.inputs, arguments={"gate": gate}, encoders=BOTH)
        torch.testing.assert_close(factorised, whole)


class TestBinding:
    def test_by_position_when_forward_has_other_names(self) -> None:
        class Positional(Pairs):
            def forward(self, x: Tensor, y: Tensor, /) -> Tensor:
                return super().forward(x, y)

        network = Positional(nn.Linear(6, 5), nn.Linear(4, 5), 10).double()
        inputs = {"audio": rows(4, 6), "visual": rows(4, 4, seed=1)}
        expected = agm.masked_logits(
            _with_forward(network, lambda self, audio, visual: Pairs.forward(self, audio, visual)), inputs
        )
        torch.testing.assert_close(agm.masked_logits(network, inputs), expected)

    def test_keyword_only_and_catch_all_signatures(self) -> None:
        inputs = {"audio": rows(4, 6), "visual": rows(4, 4, seed=1)}
        network = Pairs(nn.Linear(6, 5), nn.Linear(4, 5), 10).double()
        expected = agm.masked_logits(network, inputs)
        for forward in (
            lambda self, *, visual, audio: Pairs.forward(self, audio, visual),
            lambda self, **inputs: Pairs.forward(self, **inputs),
            lambda self, *inputs: Pairs.forward(self, *inputs),
        ):
            torch.testing.assert_close(agm.masked_logits(_with_forward(network, forward), inputs), expected)


def _with_forward(network: nn.Module, forward: Callable[..., Tensor]) -> nn.Module:
    changed = copy.deepcopy(network)
    changed.__class__ = type("Changed", (type(network),), {"forward": forward})
    return changed


class TestRefusals:
    inputs: ClassVar = {"audio": rows(4, 6), "visual": rows(4, 6, seed=1)}

    def network(self) -> Pairs:
        return Pairs(nn.Linear(6, 5), nn.Linear(6, 5), 10).double()

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"masked": "fast"}, "`masked` to be 'exact' or 'shared'"),
            ({"absent": {"smell": 0}}, "`absent`.*smell"),
            ({"absent": {"audio": "zero"}}, "`absent` for `audio`"),
            ({"absent": {"audio": torch.zeros(5)}}, r"shape of one row, \(6,\), but got \(5,\)"),
            ({"absent": {"audio": lambda x: x[:, :3]}}, "callable in `absent` for `audio`"),
            ({"absent": {"audio": lambda x: x[:2]}}, "callable in `absent` for `audio`"),
            ({"absent": {"audio": lambda x: x.float()}}, "callable in `absent` for `audio`"),
            ({"encoders": {"audio": "sound_net"}}, "no 'sound_net'.*audio_net, visual_net, head"),
            ({"encoders": {"smell": "audio_net"}}, "`encoders`.*smell"),
            ({"encoders": {"audio": ""}}, "part of the network"),
            ({"encoders": {"audio": "head", "visual": "head.0"}}, "no module in common|no 'head.0'"),
        ],
    )
    def test_settings(self, changed: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            agm.masked_logits(self.network(), self.inputs, **changed)

    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"audio": rows(4, 6)}, "two or more"),
            ({"audio": rows(4, 6), "smell": rows(4, 6)}, r"does not take \['smell'\]"),
            ({"audio": rows(4, 6), "visual": rows(4, 6), "text": rows(4, 6)}, r"does not take \['text'\]"),
            (
                {"audio": rows(4, 6), "visual": rows(3, 6)},
                "same number of samples.*'audio': 4, 'visual': 3.*to_dense_batch",
            ),
            ({"audio": rows(4, 6), "visual": "x"}, "`visual` to be a tensor"),
            ({"audio": rows(4, 6), "visual": (rows(4, 6), rows(3))}, r"`visual`.*sizes \[3, 4\]"),
        ],
    )
    def test_inputs(self, inputs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            agm.masked_logits(self.network(), inputs)

    @pytest.mark.parametrize("output", [lambda z: (z, z), lambda z: z[:2], lambda z: z.mean(0)])
    def test_an_output_that_is_not_logits(self, output: Callable[[Tensor], Any]) -> None:
        network = _with_forward(self.network(), lambda self, audio, visual: output(Pairs.forward(self, audio, visual)))
        with pytest.raises(ValueError, match=r"logits of shape \(batch, classes\)|`output=`, one of \{0: a tensor"):
            agm.masked_logits(network, self.inputs)


def test_without_gradients_the_numbers_are_the_same() -> None:
    network = Three().double().eval()
    expected = agm.masked_logits(network, three_inputs())
    for options in ({}, {"encoders": PATHS}):
        with torch.no_grad():
            masked = agm.masked_logits(network, three_inputs(), **options)
        torch.testing.assert_close(masked, expected)
        assert not masked.requires_grad


def test_half_precision_inside_autocast() -> None:
    network = Three()
    inputs = {name: x.float() for name, x in three_inputs().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for options in ({}, {"encoders": PATHS}):
            masked = agm.masked_logits(network, inputs, **options)
            assert masked.dtype == torch.bfloat16
            F.cross_entropy(masked[-1].float(), torch.zeros(5, dtype=torch.int64)).backward()


def test_recurrent_encoders_with_dropout() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(4, 5, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0][:, -1]

    inputs = {"audio": rows(4, 6), "visual": rows(4, 7, 4, seed=1)}
    for options in ({}, {"encoders": BOTH}):
        network = Pairs(nn.Linear(6, 5), Recurrent(), 10)
        compare(network, inputs, **options)
        assert network.visual_net.rnn.dropout == 0.5
