"""Masked logits against separate passes: exact and shared, modes, and rows that an encoder sees."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import agm

from .separate import MODALITIES, PATHS, Three, ThreeFactorised, compare, rows, three_inputs


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
    # Inside the encoder: hooks on the encoder itself see what the network's forward gives it.
    counters = [Counter(network.encoders_[name][0]) for name in MODALITIES]
    head = Counter(network.head)
    agm.masked_logits(network, three_inputs(), masked=masked, encoders=encoders)  # the batch that verifies
    for counter in (*counters, head):
        counter.rows.clear()
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
    assert looks_again == (batch == 1 or not gradients)  # what has been seen less closely is no proof for more


def test_without_encoders_all_masked_inputs_are_one_batch() -> None:
    network = Three().double()
    counter = Counter(network.encoders_["audio"])
    agm.masked_logits(network, three_inputs())
    assert counter.rows == [(5, True), (30, False), *[(5, False)] * 6]  # a first batch is compared with single subsets
    counter.rows.clear()
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
