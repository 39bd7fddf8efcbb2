"""Networks that would silently give wrong masked logits: each is right, or refused with a reason."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import agm

from .networks import BOTH, Factorised, Pairs, assert_equals_separate_passes, inputs, rows, separate


class TestOriginOfRows:
    """An encoder that sees another modality: its absent row is not the same for all, nor its present rows."""

    class Added(Pairs):
        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            return [self.audio_net(audio + visual), self.visual_net(visual)]

    class Multiplied(Pairs):
        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            return [self.audio_net(audio * torch.sigmoid(visual)), self.visual_net(visual)]

    class ClosedGate(Pairs):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            return [self.audio_net(audio + torch.tanh(self.gate) * visual), self.visual_net(visual)]

    @pytest.mark.parametrize("kind", [Added, Multiplied, ClosedGate])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("absent", [None, {"audio": torch.zeros_like}])
    def test_every_row_goes_through_it(self, kind: type[Pairs], masked: Any, batch: int, absent: Any) -> None:
        model = agm.AGM(kind(), ("audio", "visual"), masked=masked, encoders=BOTH, absent=absent)
        target = torch.arange(batch) % 3
        for _ in range(2):
            found = agm.verify(model, inputs(batch), target)
            assert found.ok, str(found)
            model(**inputs(batch), target=target)
        assert "computed from other modalities" in str(model.plan())
        assert model.plan().count("encoder `audio`", batch) == 3 * batch
        assert "computed from" not in str(next(x for x in model.plan().lines if x.part == "encoder `visual`"))

    def test_the_network_of_one_piece_is_right(self) -> None:
        for kind in (self.Added, self.Multiplied, self.ClosedGate):
            assert_equals_separate_passes(kind(), inputs())

    def test_a_first_batch_of_one_sample_does_not_settle_it(self) -> None:
        class Reordered(Pairs):
            def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
                return [self.audio_net(audio.flip(0)).flip(0), self.visual_net(visual)]

        network = Reordered()
        agm.masked_logits(network, inputs(1), encoders=BOTH)
        with pytest.raises(ValueError, match="another order"):
            agm.masked_logits(network, inputs(4), encoders=BOTH)

    def test_the_network_may_write_to_its_inputs_in_the_verifying_batch(self) -> None:
        class Writing(Pairs):
            def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
                return [self.audio_net(audio.mul_(2.0)), self.visual_net(visual)]

        network, given = Writing(), inputs()
        masked = agm.masked_logits(network, {name: x.clone() for name, x in given.items()}, encoders=BOTH)
        torch.testing.assert_close(masked[0], network(given["audio"].clone(), torch.zeros_like(given["visual"])))
        torch.testing.assert_close(masked[2], network(given["audio"].clone(), given["visual"]))


class Recurrent(Pairs):
    """Packs in the network, so that the encoder sees and returns packed sequences."""

    def __init__(self) -> None:
        super().__init__(visual=nn.GRU(6, 5, batch_first=True))

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        lengths = torch.full((len(visual),), visual.shape[1])
        packed = pack_padded_sequence(visual, lengths, batch_first=True, enforce_sorted=False)
        outputs, _ = pad_packed_sequence(self.visual_net(packed)[0], batch_first=True)
        return [self.audio_net(audio), outputs[:, -1]]


@dataclass
class Output:
    hidden: Tensor


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Output:
        return Output(self.linear(x))


class Unwrapping(Pairs):
    def __init__(self) -> None:
        super().__init__(audio=Wrapping())

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.audio_net(audio).hidden, self.visual_net(visual)]


class TestContainersThatHideRows:
    def test_packed_sequences(self) -> None:
        given = {"audio": rows(4, 6), "visual": rows(4, 7, 6, seed=1)}
        with pytest.raises(ValueError, match=r"`visual`.*PackedSequence"):
            agm.masked_logits(Recurrent(), given, encoders=BOTH)
        assert_equals_separate_passes(Recurrent(), given)

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("batch", [1, 4])
    def test_a_dataclass_returned_by_an_encoder(self, masked: Any, batch: int) -> None:
        with pytest.raises(ValueError, match=r"`audio`.*returns a Output"):
            agm.masked_logits(Unwrapping(), inputs(batch), masked=masked, encoders=BOTH)
        assert_equals_separate_passes(Unwrapping(), inputs(batch))

    def test_a_dataclass_as_input(self) -> None:
        with pytest.raises(ValueError, match=r"`audio` to be made of tensors.*Output"):
            agm.masked_logits(Pairs(), {"audio": {"x": Output(rows(4, 6))}, "visual": rows(4, 6)})


class TestForwardOfAFactorisedNetwork:
    def test_that_does_more_is_refused(self) -> None:
        class Preprocessing(Factorised):
            def forward(self, **given: Tensor) -> Tensor:
                return super().forward(**{name: x * 2 for name, x in given.items()})

        class Classifying(Factorised):
            def forward(self, **given: Tensor) -> Tensor:
                return super().forward(**given) * 2

        hooked = Factorised()
        hooked.register_forward_hook(lambda module, args, output: output + 1)
        for network in (Preprocessing(), Classifying(), hooked):
            with pytest.raises(ValueError, match=r"(?s)`encoders` and `fuse`.*by path"):
                agm.masked_logits(network, inputs())
        paths = {name: f"encoders.{name}" for name in BOTH}
        assert_equals_separate_passes(Preprocessing(), inputs(), encoders=paths)

    def test_that_computes_the_same_without_fuse_is_taken(self) -> None:
        class Own(Factorised):
            def forward(self, **given: Tensor) -> Tensor:
                return self.head(
                    torch.cat([self.encoders["audio"](given["audio"]), self.encoders["visual"](given["visual"])], 1)
                )

        for masked in ("exact", "shared"):
            assert_equals_separate_passes(Own(), inputs(), masked=masked)

    def test_hooks_run_in_every_joint_pass(self) -> None:
        network, seen = Factorised(), []
        network.register_forward_hook(lambda module, args, output: seen.append(len(output)))
        for _ in range(3):
            agm.masked_logits(network, inputs())
        assert seen == [4, 4, 4]


class TestInPlace:
    class Continuing(Pairs):
        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            hidden = self.audio_net(audio)
            hidden += 1.5
            return [hidden.mul_(2.0), nn.functional.leaky_relu(self.visual_net(visual), 0.2, inplace=True)]

    class Rebinding(Factorised):
        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            features["audio"] = features["audio"].mul_(3.0) + 1.0
            return super().fuse(features)

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_features_are_modified_once(self, masked: Any) -> None:
        assert_equals_separate_passes(self.Continuing(), inputs(), masked=masked, encoders=BOTH)
        network = self.Rebinding()
        for _ in range(2):  # the batch that verifies, and one after it
            assert_equals_separate_passes(network, inputs(), masked=masked)
            agm.masked_logits(network, inputs(), masked=masked)

    def test_an_absent_callable_that_writes_to_its_argument(self) -> None:
        with pytest.raises(ValueError, match="wrote to its argument"):
            agm.masked_logits(Pairs(), inputs(), absent={"audio": lambda x: x.zero_()})


class Property(nn.Module):
    """Whose mode is set through a property."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rate = nn.Linear(6, 5), 0.3

    @property
    def training(self) -> bool:
        return self.__dict__.get("training", True)

    @training.setter
    def training(self, training: bool) -> None:
        self.__dict__["training"], self.__dict__["rate"] = training, 0.3 if training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), self.rate, True)


class Listening(nn.Module):
    """Who does something else when the mode is set."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.rate = nn.Linear(6, 5), 0.3

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "training":
            super().__setattr__("rate", 0.3 if value else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), self.rate, True)


@pytest.mark.parametrize("kind", [Property, Listening])
def test_modes_that_are_more_than_a_flag(kind: type[nn.Module]) -> None:
    model = agm.AGM(Pairs(kind()), ("audio", "visual"), encoders=BOTH)
    found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
    assert found.ok, found
    assert model.module.audio_net.rate == 0.3


class Writing(nn.Module):
    """An encoder that writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(2.0))


@pytest.mark.parametrize("absent", [nn.Parameter(rows(6, seed=9)), lambda x: x[:1]])
@pytest.mark.parametrize("passes", ["auto", "two"])
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_an_encoder_may_write_to_an_absent_row_that_is_someone_elses(absent: Any, passes: Any, masked: Any) -> None:
    network = Factorised()
    network.encoders["audio"] = Writing().double()
    model = agm.AGM(network, masked=masked, passes=passes, absent={"audio": absent})
    found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
    assert found.ok, found


class TestStatisticsOfTheBatch:
    def network(self) -> Pairs:
        return Pairs(audio=nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)))

    def test_subsets_do_not_mix(self) -> None:
        assert_equals_separate_passes(self.network(), inputs())
        assert_equals_separate_passes(self.network(), inputs(), masked="shared")

    def test_of_shared_features_do_not_mix(self) -> None:
        given = inputs() | {"audio": rows(4, 6, 7)}
        audio = nn.Sequential(
            nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5, track_running_stats=False), nn.Flatten(), nn.Linear(25, 5)
        )
        network = Pairs(audio=audio)
        assert_equals_separate_passes(network, given, encoders=BOTH, masked="shared")

    @pytest.mark.parametrize("options", [{}, {"masked": "shared"}, {"absent_gradient": False}], ids=str)
    @pytest.mark.parametrize("encoders", [BOTH, {"visual": "visual_net"}])
    def test_by_path_each_subset_has_those_of_its_own_pass(self, encoders: Any, options: dict[str, Any]) -> None:
        model = agm.AGM(self.network(), ("audio", "visual"), encoders=encoders, **options)
        inside = options.get("masked") == "shared" and encoders is BOTH  # where it sees the joint rows or absent ones
        assert ("one subset at a time, because `audio_net.1` normalises" in str(model.plan())) != inside
        for _ in range(2):
            result = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
            assert result.ok, str(result)
            model(**inputs(), target=torch.tensor([0, 1, 2, 0]))

    def test_old_spectral_norm_allows_two_forwards_before_a_backward(self) -> None:
        network = Pairs(audio=torch.nn.utils.spectral_norm(nn.Linear(6, 5)))
        for options in ({}, {"encoders": BOTH}):
            sum(agm.masked_logits(network, inputs(), **options).square().sum() for _ in range(2)).backward()


def test_a_recurrent_subclass_that_reads_its_mode() -> None:
    class Dropping(nn.GRU):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return nn.functional.dropout(super().forward(x)[0][:, -1], 0.5, self.training)

    network = Pairs(visual=Dropping(6, 5, batch_first=True))
    given = {"audio": rows(4, 6), "visual": rows(4, 7, 6, seed=1)}
    expected = separate(copy.deepcopy(network), given)
    torch.testing.assert_close(agm.masked_logits(network, given)[:2], expected[:2])


def test_a_kept_padding_mask_in_shared_mode() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.layer(x["values"], src_key_padding_mask=x["padding"])[:, 0, :5]

    network = Factorised()
    network.encoders["visual"] = Attending().double()
    padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2]).unsqueeze(1)
    given = {"audio": rows(4, 6), "visual": {"values": rows(4, 7, 6, seed=1), "padding": padding}}
    exact, shared = (agm.masked_logits(network, given, masked=m) for m in ("exact", "shared"))
    torch.testing.assert_close(exact, shared)


class TestAroundTheNetwork:
    target = torch.tensor([0, 1, 2, 0])

    def test_a_network_put_in_anothers_place_is_trained(self) -> None:
        model = agm.AGM(Pairs(), ("audio", "visual"), encoders=BOTH)
        model.module = copy.deepcopy(model.module)
        model(**inputs(), target=self.target).sum().backward()
        assert all(parameter.grad is not None for parameter in model.module.parameters())

    def test_a_learned_absent_input_is_a_parameter(self) -> None:
        token, pad = nn.Parameter(rows(6)), nn.Linear(6, 6).double()
        model = agm.AGM(Pairs(), ("audio", "visual"), absent={"audio": token, "visual": pad})
        assert {id(token), id(pad.weight)} < {id(parameter) for parameter in model.parameters()}
        assert {"absent.audio", "absent.visual.weight"} < set(model.state_dict())
        model.modulator.state.running_scores.copy_(torch.tensor([1.0, 2.0]))
        model(**inputs(), target=self.target).square().sum().backward()
        assert token.grad is not None
        assert token.grad.any()

    def test_wrappers_that_take_anything(self) -> None:
        class Wrapped(nn.Module):
            def __init__(self, network: nn.Module) -> None:
                super().__init__()
                self.network = network

            def forward(self, *args: Any, **kwargs: Any) -> Tensor:
                return self.network(*args, **kwargs)

        class Unnamed(Pairs):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
                return super().forward(x, y)

        given = inputs()
        for network in (Wrapped(Pairs()), Wrapped(Unnamed()), Unnamed()):
            model = agm.AGM(network, ("audio", "visual"))
            trained = model(given["audio"], given["visual"], target=self.target)
            torch.testing.assert_close(model.eval()(given["audio"], given["visual"]), trained)
        model = agm.AGM(Wrapped(Pairs()), ("audio", "visual"))
        torch.testing.assert_close(model(**given, target=self.target), model.eval()(**given))

    def test_positional_call_of_keyword_networks(self) -> None:
        given = inputs()
        model = agm.AGM(Factorised())
        trained = model(given["audio"], given["visual"], target=self.target)
        torch.testing.assert_close(model.eval()(given["audio"], given["visual"]), trained)


def test_tracing_modes_leave_no_trace_in_the_weights() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        agm.subset_weights(5)
    with torch.device("meta"):
        agm.subset_weights(4)
    assert agm.subset_weights(5).sum() == pytest.approx(1.0)
    assert agm.subset_weights(4).sum() == pytest.approx(1.0)


def test_no_sample_at_all() -> None:
    network = Pairs()
    for options in ({}, {"encoders": BOTH}):
        assert agm.masked_logits(network, inputs(0), **options).shape == (3, 0, 3)
