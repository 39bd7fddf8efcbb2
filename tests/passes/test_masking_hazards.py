"""Networks that would silently give wrong masked logits: each is right, or refused with a reason."""

import copy
import gc
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import agm

BOTH = {"audio": "audio_net", "visual": "visual_net"}


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(batch: int = 4) -> dict[str, Tensor]:
    return {"audio": rows(batch, 6), "visual": rows(batch, 6, seed=1)}


class Pairs(nn.Module):
    def __init__(self, audio: nn.Module | None = None, visual: nn.Module | None = None) -> None:
        super().__init__()
        self.audio_net = nn.Linear(6, 5) if audio is None else audio
        self.visual_net = nn.Linear(6, 5) if visual is None else visual
        self.head = nn.Linear(10, 3)
        self.double()

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [self.audio_net(audio), self.visual_net(visual)]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat(self.features(audio, visual), 1))


def separate(network: nn.Module, given: dict[str, Tensor]) -> Tensor:
    """The definition for two modalities, pass by pass."""
    joint = network(**given)
    network.eval()
    zeros = {name: torch.zeros_like(x) for name, x in given.items()}
    passes = [network(**{**zeros, "audio": given["audio"]}), network(**{**zeros, "visual": given["visual"]}), joint]
    network.train()
    return torch.stack(passes)


def assert_equals_separate_passes(network: nn.Module, given: dict[str, Tensor], **options: Any) -> None:
    expected = separate(copy.deepcopy(network), given)
    torch.testing.assert_close(agm.masked_logits(network, given, **options), expected)


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


class Factorised(nn.Module):
    """`encoders` and `fuse`, with what a subclass does around them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"audio": nn.Linear(6, 5), "visual": nn.Linear(6, 5)})
        self.head = nn.Linear(10, 3)
        self.double()

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, **given: Tensor) -> Tensor:
        return self.fuse({name: encoder(given[name]) for name, encoder in self.encoders.items()})


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


class TestGradientHooks:
    """A hook of the fusion on features sees their gradient in its own pass, and once."""

    class Fused(Factorised):
        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return super().fuse({name: hooked(x) for name, x in features.items()})

    class ByPath(Pairs):
        def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
            return [hooked(x) for x in super().features(audio, visual)]

    @pytest.mark.parametrize("dropout", [0.0, 0.3])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize(("kind", "options"), [(Fused, {}), (ByPath, {"encoders": BOTH})])
    def test_step(self, kind: Any, options: dict[str, Any], masked: Any, passes: Any, dropout: float) -> None:
        network = kind()
        for name, encoder in list(network.named_modules()):
            if name.endswith(("audio_net", "visual_net", ".audio", ".visual")):
                network.set_submodule(name, nn.Sequential(encoder, nn.Dropout(dropout)))
        model = agm.AGM(network, ("audio", "visual"), masked=masked, passes=passes, **options)
        found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
        assert found.ok, found


def hooked(x: Tensor) -> Tensor:
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * gradient.abs())  # not linear: of a sum it is another one
    return x


class TestAroundAnEncoder:
    """What forward does there holds in the masked passes."""

    class Around(Factorised):
        around: Any = None

        def forward(self, **given: Tensor) -> Tensor:
            features = {"visual": self.encoders["visual"](given["visual"])}
            return self.fuse({"audio": type(self).around(self.encoders["audio"], given["audio"]), **features})

    class Frozen(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            with torch.no_grad():
                return encoder(x)

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            features["audio"].mul_(self.head.weight[0, :5])  # written to with gradients
            return super().fuse(features)

    class Reentrant(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return checkpoint(encoder, x.requires_grad_(), use_reentrant=True)

    class Coarse(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return encoder(x).float()

    class Own(Around):
        """Whose forward does without `fuse`."""

        def forward(self, **given: Tensor) -> Tensor:
            visual = self.encoders["visual"](given["visual"])
            return self.head(torch.cat([self.around(self.encoders["audio"], given["audio"]), visual], 1))

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([features["audio"], features["visual"]], 1))

    class OwnFrozen(Own, Frozen):
        pass

    class OwnReentrant(Own, Reentrant):
        pass

    class Detaching(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return encoder(x).detach()

    class Dropping(Around):
        @staticmethod
        def around(encoder: nn.Module, x: Tensor) -> Tensor:
            return nn.functional.dropout(encoder(x), 0.5, encoder.training)

    @pytest.mark.parametrize("compiled", [False, True])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("kind", [Frozen, OwnFrozen, Detaching, Coarse, Dropping])
    def test_is_done_there_too(self, kind: type[Factorised], masked: Any, passes: Any, compiled: bool) -> None:
        network = kind().float() if kind is self.Coarse else kind()
        if compiled:
            network.encoders["audio"].compile(backend="eager")
            if kind is self.Dropping and masked == "shared":
                pytest.skip("of a compiled encoder the features are those that fuse is given")
        given = {name: x.float() if kind is self.Coarse else x for name, x in inputs().items()}
        paths = {name: f"encoders.{name}" for name in BOTH}
        for encoders in (None,) if compiled else (None, paths):
            own: dict[str, Any] = {"masked": masked, "passes": passes, "encoders": encoders}
            model = agm.AGM(copy.deepcopy(network), ("audio", "visual"), **own)
            for _ in range(3):
                found = agm.verify(model, given, torch.tensor([0, 1, 2, 0]), tolerance=1e-1)
                assert found.ok, str(found)
                assert max(found.logits.values()) < 1e-6  # gradients are coarse sums

    @pytest.mark.parametrize("other", [Reentrant, OwnReentrant])
    @pytest.mark.parametrize("passes", ["auto", "two"])
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_a_reentrant_checkpoint_does_not_freeze_an_encoder(self, masked: Any, passes: Any, other: Any) -> None:
        found = []
        for kind in (Factorised, other):
            torch.manual_seed(0)
            model = agm.AGM(kind(), alpha=2.0, masked=masked, passes=passes)
            if masked == "shared" and kind is other:
                with pytest.raises(ValueError, match="use_reentrant=False"):
                    model(**inputs(), target=torch.tensor([0, 1, 2, 0]))
                return
            for _ in range(2):
                model(**inputs(), target=torch.tensor([0, 1, 2, 0])).square().sum().backward()
            found.append([parameter.grad for parameter in model.parameters()])
        torch.testing.assert_close(*found)


def test_statistics_of_absent_rows_that_are_one_a_sample() -> None:
    network = Pairs(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, track_running_stats=False)))
    absent = {"audio": lambda x: x * 0.1 + 1.0}
    model = agm.AGM(network, ("audio", "visual"), encoders=BOTH, masked="shared", absent=absent)
    found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
    assert found.ok, found


class TestHooksOfAnEncoder:
    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_that_detach_what_it_returns(self, masked: Any) -> None:
        network = Factorised()
        network.encoders["audio"].register_forward_hook(lambda module, args, output: output.detach())
        model = agm.AGM(network, masked=masked)
        for _ in range(2):
            found = agm.verify(model, inputs(), torch.tensor([0, 1, 2, 0]))
            assert found.ok, found
            model(**inputs(), target=torch.tensor([0, 1, 2, 0])).sum().backward()

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    def test_that_make_its_weights_in_a_compiled_step(self, masked: Any) -> None:
        histories = []
        for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
            torch.manual_seed(0)
            network = Factorised()
            network.encoders["audio"] = nn.utils.weight_norm(network.encoders["audio"])
            model = agm.AGM(network, alpha=2.0, masked=masked)
            step, optimizer = wrap(model), torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                optimizer.zero_grad()
                step(**inputs(), target=torch.tensor([0, 1, 2, 0])).square().sum().backward()
                optimizer.step()
            histories.append(list(model.parameters()))
        torch.testing.assert_close(*histories)


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

    @pytest.mark.parametrize("encoders", [BOTH, {"visual": "visual_net"}])
    def test_by_path_are_refused(self, encoders: Any) -> None:
        network = self.network()
        state = copy.deepcopy(network.state_dict())
        for act in (lambda model: model(**inputs(), target=torch.zeros(4).long()), lambda model: model.plan()):
            with pytest.raises(ValueError, match=r"`audio_net\.1` normalises.*leave `encoders` out"):
                act(agm.AGM(network, ("audio", "visual"), encoders=encoders))
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)

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


class Checkpointed(Pairs):
    """Checkpoints inside an encoder, and around the other one."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(audio=self.Inside(reentrant), visual=self.Inside(None))
        self.reentrant = reentrant

    class Inside(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 5))
            self.reentrant = reentrant

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                return self.layers(x)
            return checkpoint(self.layers, x, use_reentrant=self.reentrant)

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        if self.reentrant is None:
            return [self.audio_net(audio), self.visual_net(visual)]
        return [self.audio_net(audio), checkpoint(self.visual_net, visual, use_reentrant=self.reentrant)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"encoders": BOTH}, {"encoders": BOTH, "masked": "shared"}])
def test_activation_checkpointing(reentrant: bool, options: dict[str, Any]) -> None:
    """What is recomputed in the backward has the network's modes of then, not those of the masked pass."""
    plain, checkpointed = Checkpointed(None), Checkpointed(reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    gradients = []
    for network in (plain, checkpointed):
        given = {name: x.requires_grad_() for name, x in inputs().items()}  # as reentrant checkpoints need
        torch.manual_seed(0)
        if reentrant and network is checkpointed and options.get("masked") == "shared":
            with pytest.raises(ValueError, match="use_reentrant=False"):
                agm.masked_logits(network, given, **options)
            return
        masked = agm.masked_logits(network, given, **options)
        masked.backward(rows(*masked.shape, seed=5))
        gradients.append([masked.detach(), *(parameter.grad for parameter in network.parameters())])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_an_error_in_a_checkpoint_leaves_no_hooks_and_takes_none() -> None:
    network = Checkpointed(False)
    model = agm.AGM(network, ("audio", "visual"), encoders=BOTH)
    handle = network.visual_net.layers[1].register_forward_hook(lambda *_: 1 / 0)
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with pytest.raises(ZeroDivisionError):
            model(**inputs(), target=torch.tensor([0, 1, 2, 0]))
        handle.remove()
        gc.collect()
        packed.clear()
        rows(2).requires_grad_().square()
        assert len(packed) == 1


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


COMPILED_INPUTS = {"audio": rows(5, 4, seed=1), "visual": rows(5, 4, seed=2)}
COMPILED_PATHS = {"audio": "audio_net", "visual": "visual_net"}


class TestCompiledParts:
    """Each either computes what the network does or says what to do; none is compiled anew from step to step."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.audio_net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
            self.visual_net = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
            self.head = nn.Sequential(nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))

    class Encoder(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:  # torch compiles no frame of its own modules by itself
            return super().forward(x)

    class Fusing(Net):
        @property
        def encoders(self) -> dict[str, nn.Module]:
            return {"audio": self.audio_net, "visual": self.visual_net}

        def fuse(self, features: dict[str, Tensor]) -> Tensor:
            return self.head(torch.cat([features["audio"], features["visual"]], 1))

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})

    @pytest.mark.parametrize(
        ("kind", "part", "by_path"),
        [
            (Net, "", False),
            (Fusing, "", False),
            (Net, "audio_net", True),
            (Fusing, "audio_net", False),
            (Net, "head", True),
            (Fusing, "head", False),
        ],
    )
    def test_step(self, kind: type[nn.Module], part: str, by_path: bool) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        network, counted = kind().double(), 0

        def counting(graph: Any, example: Any) -> Any:
            nonlocal counted
            counted += 1
            return graph

        if part:
            setattr(network, part, torch.compile(network.get_submodule(part), backend=counting))
        else:
            network.compile(backend=counting)
        model = agm.AGM(network, tuple(COMPILED_PATHS), encoders=COMPILED_PATHS if by_path else None)
        target = torch.tensor([0, 1, 2, 0, 1])
        for number in range(5):
            model(**COMPILED_INPUTS, target=target).sum().backward()
            if number == 1:
                compiled = counted
        assert counted == compiled > 0
        if part == "audio_net":
            assert "it is compiled" in str(model.plan()) or "norms would take" in str(model.plan())
        result = agm.verify(model, COMPILED_INPUTS, target)
        assert result.ok, result

    @pytest.mark.parametrize("masked", ["exact", "shared"])
    @pytest.mark.parametrize("by_path", [False, True])
    def test_an_encoder_is_not_broken_up_where_it_need_not_be(self, masked: Any, by_path: bool) -> None:
        torch._dynamo.reset()
        graphs: list[Any] = []
        network = self.Fusing().double()
        network.audio_net = self.Encoder(nn.Linear(4, 6), nn.Dropout(0.2)).double()
        network.audio_net.compile(backend=lambda graph, example: graphs.append(graph) or graph)
        model = agm.AGM(network, masked=masked, encoders=COMPILED_PATHS if by_path else None)
        assert "it is compiled" in str(model.plan())
        for _ in range(4):
            model(**COMPILED_INPUTS, target=torch.tensor([0, 1, 2, 0, 1]))
        ops = [[node.target for node in graph.graph.nodes if node.op == "call_function"] for graph in graphs]
        assert ops
        assert min(map(len, ops)) > 1  # the layers of one pass are one graph

    @pytest.mark.parametrize("compile_", [lambda net: torch.compile(net), lambda net: net.compile() or net])
    def test_a_compiled_network_whose_encoders_are_named_by_path(self, compile_: Any) -> None:
        model = agm.AGM(compile_(self.Net()), tuple(COMPILED_PATHS), encoders=COMPILED_PATHS)
        with pytest.raises(ValueError, match=r"Compile the encoders"):
            model(**COMPILED_INPUTS, target=torch.zeros(5).long())
