"""Rows that meet, one pass where it is not safe, what the plan says, and layers in common."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm._one_pass.choice import choose
from agm.models import (
    LateFusion,
)

from .choosing import (
    CLASSES,
    FEATURES,
    JOINED,
    PATHS,
    SHARED,
    SPLIT,
    TWO,
    WIDTHS,
    Pair,
    assert_one_is_two,
    dropping,
    encoded,
    normed,
    plain,
    same_width,
    target,
    train,
    vectors,
    why,
)


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
            assert encoded(model) == [SPLIT, TWO]
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


class Norming(nn.Sequential):
    """In eval mode it has statistics of the rows that it is given."""

    def __init__(self, width: int) -> None:
        norm = nn.BatchNorm1d(4, track_running_stats=False)
        super().__init__(nn.Linear(width, 8), nn.Unflatten(1, (4, 2)), norm, nn.Flatten(), nn.Linear(8, 8))


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("passes", ["two", "auto"])
def test_statistics_of_the_batch_are_those_of_present_rows_and_of_absent_ones(
    passes: Any, flat: bool, gradient: bool
) -> None:
    visual = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)) if flat else Norming(6)
    network = LateFusion({"audio": normed(4), "visual": visual}, CLASSES, num_features=FEATURES).double()
    model = agm.AGM(network, passes=passes, absent_gradient=gradient)
    assert "normalises with the statistics of the batch" in why(model, "visual")
    for _ in range(2):
        found = agm.verify(model, vectors(0), target())
        assert found.ok, found
        model(**vectors(0), target=target())
    assert encoded(model)[1] == TWO
    with pytest.raises(ValueError, match=r"`passes` to be 'auto' or 'two' for the encoder of `visual`"):
        agm.AGM(network, passes="one").plan()


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
            ("exact", {"one": [SPLIT, JOINED], "two": [TWO, TWO], "auto": [SPLIT, JOINED]}),
            ("shared", {"one": [JOINED, JOINED], "two": [SHARED, SHARED], "auto": [JOINED, JOINED]}),
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
        assert encoded(shared) == [JOINED, JOINED]

    @pytest.mark.parametrize("device", ["cuda", "cpu"])
    def test_auto_splits_rows_on_every_device(self, device: str) -> None:
        assert choose("audio", normed(4), "auto", torch.device(device)).how == "split"
        assert choose("audio", normed(4), "auto", torch.device(device), shared=True).how == "joined"


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
