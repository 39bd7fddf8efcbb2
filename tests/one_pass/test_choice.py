"""One pass through each encoder: whole training steps against those with two, and when it is refused."""

import copy
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import agm
from agm._one_pass.choice import choose
from agm.models import (
    EarlyFusion,
    FiLMFusion,
    GatedFusion,
    LateFusion,
    MLPEncoder,
    ResNet18,
    SmallCNN,
    TransformerEncoder,
)

BATCH, CLASSES = 5, 3


# Rows of an encoder's passes.
TWO, SPLIT, SHARED, JOINED = ("B", "B + 1"), ("2 B + 1",), ("B", "1"), ("B + 1",)


def encoded(model: agm.AGM) -> list[tuple[str, ...]]:
    """Rows of each encoder's passes, as the plan says."""
    found: dict[str, list[str]] = {}
    for line in model.plan().lines:
        if line.part.startswith("encoder"):
            found.setdefault(line.part, []).append(str(line).split(" row")[0])
    return [tuple(passes) for passes in found.values()]


def why(model: agm.AGM, name: str) -> str:
    return next(line.note for line in reversed(model.plan().lines) if line.part == f"encoder `{name}`")


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def target() -> Tensor:
    return torch.arange(BATCH) % CLASSES


def train(model: agm.AGM, inputs: Callable[[int], dict[str, Any]], lr: float = 0.05) -> dict[str, Any]:
    """All that training leaves behind."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    torch.manual_seed(7)
    history = []
    for step in range(3):
        optimizer.zero_grad()
        logits = model(**inputs(step), target=target())
        F.cross_entropy(logits, target()).backward()
        history.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        optimizer.step()
    return {
        "history": history,
        "state": model.state_dict(),
        "modes": [m.training for m in model.modules()],
        "generator": torch.get_rng_state(),
    }


def assert_one_is_two(
    network: nn.Module,
    inputs: Callable[[int], dict[str, Any]],
    expected: tuple[str, ...] = SPLIT,
    lr: float = 0.05,
    apart: tuple[str, ...] = TWO,
    **options: Any,
) -> None:
    network = network.double()
    models = {p: agm.AGM(copy.deepcopy(network), alpha=3.0, passes=p, **options) for p in ("one", "two")}
    one, two = (train(models[passes], inputs, lr) for passes in ("one", "two"))
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert set(encoded(models["one"])) == {expected}
    assert set(encoded(models["two"])) == {apart}


def vectors(step: int) -> dict[str, Tensor]:
    return {"audio": rows(BATCH, 4, seed=step), "visual": rows(BATCH, 6, seed=step + 10)}


def images(step: int) -> dict[str, Tensor]:
    return {"audio": rows(BATCH, 1, 9, 12, seed=step), "visual": rows(BATCH, 2, 3, 8, 8, seed=step + 10)}


def mlps() -> dict[str, nn.Module]:
    return {name: nn.Sequential(MLPEncoder(width, num_features=8), nn.Dropout(0.2)) for name, width in WIDTHS.items()}


def cnns() -> dict[str, nn.Module]:
    return {"audio": nn.Sequential(SmallCNN(1, 8), nn.Dropout(0.1)), "visual": SmallCNN(3, 8)}  # the latter of frames


WIDTHS = {"audio": 4, "visual": 6}
FEATURES = {"audio": 8, "visual": 8}


@pytest.mark.parametrize("fusion", [LateFusion, EarlyFusion, GatedFusion, FiLMFusion])
@pytest.mark.parametrize(("encoders", "inputs"), [(mlps, vectors), (cnns, images)])
def test_training_steps(fusion: Any, encoders: Any, inputs: Any) -> None:
    options = {"hidden": (12, 6)} if fusion is EarlyFusion else {}
    network = fusion(encoders(), CLASSES, num_features=FEATURES, **options)
    assert_one_is_two(copy.deepcopy(network), inputs)
    assert_one_is_two(network, inputs, JOINED, apart=SHARED, masked="shared")


@pytest.mark.parametrize("checkpoint", [False, True])
def test_training_steps_with_a_fusion_in_chunks(checkpoint: bool) -> None:
    network = EarlyFusion(mlps(), CLASSES, num_features=FEATURES, hidden=(12, 6))
    assert_one_is_two(network, vectors, max_rows=3, checkpoint=checkpoint)


@pytest.mark.parametrize(("masked", "one", "two"), [("exact", SPLIT, TWO), ("shared", JOINED, SHARED)])
def test_training_steps_of_transformers(masked: Any, one: tuple[str, ...], two: tuple[str, ...]) -> None:
    encoders = {
        name: TransformerEncoder(width, width=8, num_heads=2, dropout=0.3, max_length=7, pool="cls")
        for name, width in WIDTHS.items()
    }

    def inputs(step: int) -> dict[str, Any]:
        padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2, 6]).unsqueeze(1)
        return {
            "audio": {"x": rows(BATCH, 7, 4, seed=step), "padding_mask": padding},
            "visual": rows(BATCH, 5, 6, seed=step + 10),
        }

    assert_one_is_two(LateFusion(encoders, CLASSES), inputs, one, apart=two, masked=masked)


def test_training_steps_of_resnets() -> None:
    network = LateFusion({"audio": ResNet18(1), "visual": ResNet18(3)}, CLASSES)
    lr = 1e-4  # with more its gradients explode, and their rounding with them
    assert_one_is_two(copy.deepcopy(network), images, lr=lr)
    assert_one_is_two(network, images, JOINED, lr, SHARED, masked="shared")


def test_modalities_in_another_order_than_the_networks() -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES)
    assert_one_is_two(network, vectors, modalities=("visual", "audio"))


def test_frozen_and_cumulative_norms() -> None:
    network = LateFusion(
        {n: nn.Sequential(nn.Linear(w, 8), nn.BatchNorm1d(8, momentum=None)) for n, w in WIDTHS.items()},
        CLASSES,
        num_features=FEATURES,
    )
    for _ in range(2):
        assert_one_is_two(copy.deepcopy(network), vectors)
        assert_one_is_two(copy.deepcopy(network), vectors, JOINED, apart=SHARED, masked="shared")
        network.encoders["audio"].append(nn.Dropout(0.1))
        network.encoders["audio"][1].eval()


class Masked(nn.Module):
    """Its absent input keeps the padding mask of its sample, so that it has B absent rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.linear(given["x"]).masked_fill(given["padding"].unsqueeze(-1), 0.0)
        return {"pooled": self.norm(hidden.mean(1)), "length": (~given["padding"]).sum(1, keepdim=True)}


class Trees(LateFusion):
    def fused_features(self, features: Any) -> Tensor:
        audio = features["audio"]["pooled"] / features["audio"]["length"]
        return super().fused_features({"audio": audio, "visual": features["visual"]})


def test_pytrees_with_absent_rows_of_their_own() -> None:
    network = Trees({"audio": Masked(), "visual": mlps()["visual"]}, CLASSES, num_features=FEATURES)

    def inputs(step: int) -> dict[str, Any]:
        padding = torch.arange(7) >= torch.tensor([7, 3, 5, 2, 6]).unsqueeze(1)
        return {"audio": {"x": rows(BATCH, 7, 4, seed=step), "padding": padding}, "visual": vectors(step)["visual"]}

    assert_one_is_two(copy.deepcopy(network), inputs)
    assert_one_is_two(network, inputs, JOINED, apart=SHARED, masked="shared")


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_gradients_of_inputs_and_of_a_learnt_absent_row(masked: Any) -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES).double()
    found = []
    for passes in ("one", "two"):
        absent = nn.Parameter(rows(4, seed=20))
        inputs = {name: x.requires_grad_() for name, x in vectors(0).items()}
        torch.manual_seed(0)
        options: dict[str, Any] = {"absent": {"audio": absent}, "passes": passes, "masked": masked}
        logits = agm.masked_logits(copy.deepcopy(network), inputs, **options)
        logits.backward(rows(*logits.shape, seed=30))
        found.append([logits.detach(), absent.grad, *(x.grad for x in inputs.values())])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_two_forwards_before_one_backward(masked: Any) -> None:
    network = LateFusion(mlps(), CLASSES, num_features=FEATURES).double()
    found = []
    for together in (False, True):
        model = agm.AGM(copy.deepcopy(network), alpha=2.0, passes="one", masked=masked)
        torch.manual_seed(0)
        losses = []
        for step in range(3):
            losses.append(model(**vectors(step), target=target()).square().sum())
            if not together:
                losses[-1].backward()
        if together:
            sum(losses).backward()  # type: ignore[union-attr]
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*found)


_NOTES: WeakKeyDictionary["Log", list[Any]] = WeakKeyDictionary()


class Log:
    """What calls note for a test: nothing in the network's attributes, which would be put back."""

    @property
    def notes(self) -> list[Any]:
        return _NOTES.setdefault(self, [])


class Seen(nn.Module):
    """Notes the rows of its calls."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.log = Log()

    @property
    def rows(self) -> list[int]:
        return self.log.notes

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        return self.inside(x)


def seen(step: Callable[[], object], encoders: list[Seen]) -> list[list[int]]:
    """The rows of each encoder's calls in a step after the first, which also compares numbers."""
    step()
    for encoder in encoders:
        encoder.rows.clear()
    step()
    return [encoder.rows for encoder in encoders]


def plain(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Dropout(0.0))


def normed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU())


def dropping(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Dropout(0.2))


@pytest.mark.parametrize(
    ("make", "passes", "exact", "shared"),
    [
        (normed, "one", [2 * BATCH + 1], [BATCH + 1]),
        (normed, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (normed, "auto", [BATCH, BATCH + 1], [BATCH, 1]),
        (dropping, "one", [2 * BATCH + 1], [BATCH + 1]),
        (dropping, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (dropping, "auto", [2 * BATCH + 1], [BATCH + 1]),
        (plain, "one", [BATCH + 1], [BATCH + 1]),
        (plain, "two", [BATCH, BATCH + 1], [BATCH, 1]),
        (plain, "auto", [BATCH + 1], [BATCH + 1]),
    ],
)
@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_rows_that_an_encoder_sees(
    make: Callable[[int], nn.Module], passes: Any, exact: list[int], shared: list[int], masked: Any
) -> None:
    encoders = {name: Seen(make(width)) for name, width in WIDTHS.items()}
    network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
    model = agm.AGM(network, passes=passes, masked=masked)
    expected = exact if masked == "exact" else shared
    counts = seen(lambda: model(**vectors(0), target=target()), list(encoders.values()))
    assert counts == [expected, expected]


def test_features_are_shared_where_nothing_depends_on_the_mode() -> None:
    def network() -> nn.Module:
        return LateFusion({name: plain(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES)

    assert_one_is_two(network(), vectors, expected=JOINED)
    paths = {name: f"encoders.{name}" for name in WIDTHS}
    models = [agm.AGM(network().double(), encoders=paths, passes=passes) for passes in ("one", "two")]
    models[1].load_state_dict(models[0].state_dict())
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert encoded(models[0]) == [JOINED, JOINED]


class Pair(nn.Module):
    """Encoders that only paths name."""

    def __init__(self, make: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.audio_net, self.visual_net = Seen(make(4)), Seen(make(6))
        self.head = nn.Linear(16, CLASSES)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


PATHS = {"audio": "audio_net", "visual": "visual_net"}


@pytest.mark.parametrize(
    ("make", "masked", "passes", "expected"),
    [
        (normed, "exact", "one", [2 * BATCH + 1]),
        (normed, "exact", "two", [BATCH, BATCH + 1]),
        (normed, "exact", "auto", [BATCH, BATCH + 1]),
        (dropping, "exact", "auto", [2 * BATCH + 1]),
        (plain, "exact", "one", [BATCH + 1]),
        (plain, "exact", "two", [BATCH, BATCH + 1]),
        (plain, "exact", "auto", [BATCH + 1]),
        (normed, "shared", "one", [BATCH + 1]),
        (normed, "shared", "auto", [BATCH, 1]),
        (dropping, "shared", "auto", [BATCH + 1]),
        (dropping, "shared", "two", [BATCH, 1]),
        (plain, "shared", "auto", [BATCH + 1]),
    ],
)
def test_rows_that_an_encoder_named_by_path_sees(
    make: Callable[[int], nn.Module], masked: Any, passes: Any, expected: list[int]
) -> None:
    network = Pair(make)
    model = agm.AGM(network, ("audio", "visual"), encoders=PATHS, masked=masked, passes=passes)
    counts = seen(lambda: model(**vectors(0), target=target()).sum(), [network.audio_net, network.visual_net])
    assert counts == [expected, expected]


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("make", [normed, dropping, plain])
def test_training_steps_with_encoders_named_by_path(make: Callable[[int], nn.Module], masked: Any) -> None:
    network = Pair(make)
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    models = [agm.AGM(copy.deepcopy(network), passes=passes, **options) for passes in ("one", "two")]
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    one, two = (JOINED, SHARED) if masked == "shared" else (JOINED if make is plain else SPLIT, TWO)
    assert [encoded(model) for model in models] == [[one, one], [two, two]]
    found = agm.verify(models[0], vectors(0), target())
    assert found.ok, found


class Before(Pair):
    """What it does to the input of an encoder before that is given it: there an absent row is another one."""

    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__(dropping)
        self.how = how

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return super().forward(self.how(audio), visual)


class LargeBatches:
    """Another way for the masked rows than for those of the joint pass."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + 1.0 if len(x) > BATCH else x


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [lambda x: x + 1.0, lambda x: x.add_(1.0), lambda x: x.detach()])
def test_an_encoder_named_by_path_that_is_given_something_else(how: Any, masked: Any) -> None:
    model = agm.AGM(Before(how), ("audio", "visual"), encoders=PATHS, masked=masked)
    for _ in range(2):
        found = agm.verify(model, vectors(0), target())
        assert found.ok, found
        model(**vectors(0), target=target())
    assert encoded(model) == ([SHARED, JOINED] if masked == "shared" else [TWO, SPLIT])
    assert "in its own way" in why(model, "audio")


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [LargeBatches(), lambda x: (x.data.add_(1.0), x)[1]])
def test_an_encoder_named_by_path_whose_rows_are_others_in_the_masked_pass(how: Any, masked: Any) -> None:
    """In the joint pass it is given the inputs as they are, as far as one can see."""
    network = Before(how)
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    models = [agm.AGM(copy.deepcopy(network), passes=passes, **options) for passes in ("auto", "two")]
    auto, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(auto, two, rtol=1e-11, atol=1e-11)
    assert encoded(models[0]) == ([SHARED, JOINED] if masked == "shared" else [TWO, SPLIT])
    assert "it is given other rows" in why(models[0], "audio")


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_rows_are_compared_where_an_encoder_takes_one_pass_only_later(masked: Any) -> None:
    """The network has been looked at before, with two."""
    network = Before(LargeBatches())
    options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS, "masked": masked}
    train(agm.AGM(network, passes="two", **options), vectors)
    models = [agm.AGM(network, passes=passes, **options) for passes in ("auto", "two")]
    state = copy.deepcopy(network.state_dict())
    found = []
    for model in models:
        network.load_state_dict(state)
        torch.manual_seed(7)
        found.append([model(**vectors(step), target=target()) for step in range(2)][-1])
        network.zero_grad()
        found[-1].square().sum().backward()
        found.append([parameter.grad for parameter in network.parameters()])
    torch.testing.assert_close(found[1], found[3], rtol=1e-11, atol=1e-11)


class Drifting(nn.Module):
    """Rows that depend on one another, which no code shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))


class TestRowsThatMeet:
    @pytest.mark.parametrize("extra", [[], [nn.BatchNorm1d(8)]])
    def test_of_a_factorised_network(self, extra: list[nn.Module]) -> None:
        encoders = {"audio": normed(4), "visual": nn.Sequential(Drifting(), *extra)}
        network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
        state = copy.deepcopy(network.state_dict())
        with pytest.raises(ValueError, match=r"`passes`.*encoder of `visual`.*'one'"):
            agm.AGM(network, passes="one")(**vectors(0), target=target())
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
        if not extra:
            model = agm.AGM(network, passes="auto")
            model(**vectors(0), target=target())
            assert encoded(model) == [TWO, TWO]
            assert "over the dimension of the rows" in why(model, "visual")
            assert agm.verify(model, vectors(0), target()).ok  # present rows and the absent one do not meet

    @pytest.mark.parametrize("extra", [[], [nn.BatchNorm1d(8)]])
    def test_of_shared_features(self, extra: list[nn.Module]) -> None:
        encoders = {"audio": dropping(4), "visual": nn.Sequential(Drifting(), *extra)}
        network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
        state = copy.deepcopy(network.state_dict())
        with pytest.raises(ValueError, match=r"`passes`.*encoder of `visual`.*'one'.*proved to be the same"):
            agm.AGM(network, passes="one", masked="shared")(**vectors(0), target=target())
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
        models = [agm.AGM(copy.deepcopy(network), passes=p, masked="shared") for p in ("auto", "two")]
        auto, two = (train(model, vectors) for model in models)
        torch.testing.assert_close(auto, two, rtol=1e-11, atol=1e-11)
        assert encoded(models[0]) == [JOINED, SHARED]

    def test_of_an_encoder_named_by_path(self) -> None:
        network = Pair(plain)
        network.visual_net = Drifting().double()
        options: dict[str, Any] = {"modalities": ("audio", "visual"), "encoders": PATHS}
        model = agm.AGM(copy.deepcopy(network), **options)
        for _ in range(2):  # present rows and the absent one do not meet
            found = agm.verify(model, vectors(0), target())
            assert found.ok, found
            model(**vectors(0), target=target())
        assert encoded(model) == [JOINED, TWO]
        with pytest.raises(ValueError, match=r"encoder of `visual`.*over the dimension of the rows"):
            agm.AGM(network, passes="one", **options)(**vectors(0), target=target())


@pytest.mark.parametrize("passes", ["one", "two", "auto"])
def test_statistics_of_the_batch_are_refused(passes: Any) -> None:
    """In eval mode they would be those of present and absent rows together."""
    encoders = {
        "audio": normed(4),
        "visual": nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)),
    }
    model = agm.AGM(LateFusion(encoders, CLASSES, num_features=FEATURES).double(), passes=passes)
    state = copy.deepcopy(model.state_dict())
    for act in (lambda: model(**vectors(0), target=target()), model.plan):
        with pytest.raises(ValueError, match=r"encoder of `visual`.*`1` normalises with the statistics of the batch"):
            act()
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_statistics_of_the_batch_are_those_of_the_joint_rows_and_of_the_absent_one_in_shared_mode() -> None:
    encoders = {
        name: nn.Sequential(nn.Linear(width, 8), nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4, track_running_stats=False))
        for name, width in WIDTHS.items()
    }
    encoders = {name: nn.Sequential(*encoder, nn.Flatten()) for name, encoder in encoders.items()}
    network = LateFusion(encoders, CLASSES, num_features=FEATURES)
    assert_one_is_two(network, vectors, JOINED, apart=SHARED, masked="shared")


class TestForcedWhereItIsNotSafe:
    @pytest.mark.parametrize(
        ("inside", "reason"),
        [
            (nn.TransformerEncoderLayer(8, 2, 8), "attends across rows"),
            (nn.RReLU(), "random slopes"),
            (torch.nn.utils.spectral_norm(nn.Linear(8, 8)), "hooks"),
        ],
    )
    def test_raises_with_the_reason(self, inside: nn.Module, reason: str) -> None:
        encoders = {"audio": normed(4), "visual": nn.Sequential(nn.Linear(6, 8), inside)}
        network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
        state = copy.deepcopy(network.state_dict())
        with pytest.raises(ValueError, match=rf"`passes`.*`visual`.*'one'.*{reason}"):
            agm.AGM(network, passes="one")(**vectors(0), target=target())
        torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
        model = agm.AGM(network)
        model(**vectors(0), target=target())
        assert encoded(model)[1] == TWO
        assert reason in why(model, "visual")

    def test_by_path(self) -> None:
        with pytest.raises(ValueError, match=r"`passes`.*`audio`.*random slopes"):
            agm.masked_logits(
                Pair(lambda width: nn.Sequential(normed(width), nn.RReLU())), vectors(0), encoders=PATHS, passes="one"
            )

    def test_of_one_piece(self) -> None:
        with pytest.raises(ValueError, match=r"`passes`.*Name them in `encoders`"):
            agm.masked_logits(Pair(normed), vectors(0), passes="one")

    def test_of_unknown_words(self) -> None:
        with pytest.raises(ValueError, match=r"`passes` to be 'auto', 'one' or 'two', but got 1"):
            agm.AGM(Pair(normed), ("audio", "visual"), passes=1)  # type: ignore[arg-type]


class TestPlan:
    @pytest.mark.parametrize(
        ("masked", "found"),
        [
            ("exact", {"one": [SPLIT, JOINED], "two": [TWO, TWO], "auto": [TWO, JOINED]}),
            ("shared", {"one": [JOINED, JOINED], "two": [SHARED, SHARED], "auto": [SHARED, JOINED]}),
        ],
    )
    def test_in_words(self, masked: Any, found: dict[Any, list[tuple[str, ...]]]) -> None:
        encoders = {"audio": normed(4), "visual": plain(6)}
        for passes, expected in found.items():
            network = LateFusion(encoders, CLASSES, num_features=FEATURES).double()
            model = agm.AGM(network, passes=passes, masked=masked)
            before = str(model.plan())
            model(**vectors(0), target=target())
            assert str(model.plan()) == before
            assert encoded(model) == expected
        expects = {"exact": "no layer depends on the mode", "shared": "an absent row alone would cost a pass"}
        assert expects[masked] in why(model, "visual")

    def test_of_other_networks(self) -> None:
        part = agm.AGM(Pair(plain), ("audio", "visual"), encoders={"visual": "visual_net"})
        assert encoded(part) == [JOINED]
        shared = agm.AGM(Pair(normed), ("audio", "visual"), encoders=PATHS, masked="shared")
        assert encoded(shared) == [SHARED, SHARED]

    def test_auto_splits_rows_on_cuda(self) -> None:
        assert choose("audio", normed(4), "auto", torch.device("cuda")).how == "split"
        assert choose("audio", normed(4), "auto", torch.device("cuda"), shared=True).how == "joined"


class TestLayersInCommon:
    """Their running statistics have the updates of all who call them before any eval row is normalised."""

    def assert_refused(self, network: nn.Module, reason: str) -> None:
        with pytest.raises(ValueError, match=rf"`audio`.*in common with {reason}"):
            agm.AGM(network.double(), passes="one")(**same_width(0), target=target())

    def test_of_two_encoders(self) -> None:
        backbone = normed(4)
        encoders = {name: nn.Sequential(backbone, nn.Linear(8, 8)) for name in WIDTHS}
        self.assert_refused(LateFusion(encoders, CLASSES, num_features=FEATURES), "the encoder of `visual`")

    def test_of_one_encoder_under_two_names(self) -> None:
        encoder = normed(4)
        network = LateFusion({name: encoder for name in WIDTHS}, CLASSES, num_features=FEATURES)
        self.assert_refused(network, "the encoder of `visual`")

    def test_of_an_encoder_and_the_fusion(self) -> None:
        network = LateFusion({name: normed(4) for name in WIDTHS}, CLASSES, num_features=FEATURES)
        network.again = network.encoders["audio"][1]
        self.assert_refused(network, "the rest of the network")

    def test_are_fine_where_nothing_depends_on_the_mode(self) -> None:
        backbone = plain(4)
        encoders = {name: nn.Sequential(backbone, nn.Linear(8, 8)) for name in WIDTHS}
        assert_one_is_two(LateFusion(encoders, CLASSES, num_features=FEATURES), same_width, expected=JOINED)


def same_width(step: int) -> dict[str, Tensor]:
    return {name: x[:, :4] for name, x in vectors(step).items()}


class Around(LateFusion):
    """Encodes as `how` says."""

    how: Callable[[nn.Module, Tensor], Tensor]

    def forward(self, /, **inputs: Tensor) -> Tensor:
        return self.fuse({name: self.how(encoder, inputs[name]) for name, encoder in self.encoders.items()})


def _reentrant(encoder: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(encoder, x.requires_grad_(), use_reentrant=True)


def _frozen(encoder: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return encoder(x)


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("make", [normed, plain])
@pytest.mark.parametrize(
    "how",
    [
        _frozen,
        lambda encoder, x: checkpoint(encoder, x, use_reentrant=False),
        _reentrant,
    ],
)
def test_what_a_network_encodes_in_its_own_way_takes_two_passes(
    make: Callable[[int], nn.Module], how: Callable[[nn.Module, Tensor], Tensor], masked: Any
) -> None:
    network = Around({name: make(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES).double()
    network.how = how
    models = [agm.AGM(copy.deepcopy(network), passes=p, masked=masked) for p in ("one", "two")]  # type: ignore[arg-type]
    if masked == "shared" and how is _reentrant:
        with pytest.raises(ValueError, match="use_reentrant=False"):
            train(models[0], vectors)
        return
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)
    assert encoded(models[0]) == ([TWO, TWO] if masked == "exact" else [SHARED, SHARED])
    assert "in its own way" in why(models[0], "audio")
    for model in models:
        found = agm.verify(model, vectors(0), target())
        assert found.ok, found


class Doubling(nn.Module):
    """Writes to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mul_(2.0))


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize("how", [_frozen, lambda encoder, x: encoder(x)])
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm1d(8)])
def test_an_encoder_may_write_to_its_input(
    how: Callable[[nn.Module, Tensor], Tensor], norm: Callable[[], nn.Module], masked: Any
) -> None:
    encoders = {name: nn.Sequential(Doubling(width), norm()) for name, width in WIDTHS.items()}
    network = Around(encoders, CLASSES, num_features=FEATURES).double()
    network.how = how
    models = [agm.AGM(copy.deepcopy(network), passes=p, masked=masked) for p in ("one", "two")]  # type: ignore[arg-type]
    one, two = (train(model, vectors) for model in models)
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-11)


def test_a_fusion_may_write_to_the_features_that_are_shared() -> None:
    class Writing(LateFusion):
        def fuse(self, features: Any) -> Tensor:
            return super().fuse({name: x.mul_(2.0) for name, x in features.items()})

    network = Writing({name: nn.Linear(width, 8) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES)
    assert_one_is_two(copy.deepcopy(network), vectors, expected=JOINED)
    assert_one_is_two(network, vectors, JOINED, apart=SHARED, masked="shared")


def test_inputs_of_other_kinds_of_tensor() -> None:
    class Other(Tensor):
        pass

    model = agm.AGM(LateFusion({name: plain(width) for name, width in WIDTHS.items()}, CLASSES, num_features=FEATURES))
    inputs = {name: x.float().as_subclass(Other) for name, x in vectors(0).items()}
    model(**inputs, target=target())
    assert "is a Other" in why(model, "audio")


def test_a_step_reads_nothing_from_the_device(no_reads: TorchDispatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    encoders = {"audio": normed(4), "visual": plain(6)}
    model = agm.AGM(LateFusion(encoders, CLASSES, num_features=FEATURES).double(), passes="one")
    model(**vectors(0), target=target()).sum().backward()
    with no_reads:
        model(**vectors(1), target=target()).sum().backward()
