"""A first batch compares one pass with two, where a user's code names its mode: nobody sees `is` compare it."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

from ..passes.meeting_networks import NAMES, PATHS, TARGET, batch

CALLS: list[int] = []  # out of the network's reach


def drop(x: Tensor, training: Any) -> Tensor:
    return F.dropout(x, 0.5, True) if training is True else x


def keep(x: Tensor, training: Any) -> Tensor:
    return x if training is False else F.dropout(x, 0.5, True)


def by_type(x: Tensor, training: Any) -> Tensor:
    return F.dropout(x, 0.5, True) if type(training) == bool and training else x  # noqa: E721


def deep(x: Tensor, training: Any) -> Tensor:
    return drop(x, training)


class Dropping:
    def __call__(self, x: Tensor, training: Any) -> Tensor:
        return drop(x, training)


class Inner(nn.Module):
    def forward(self, x: Tensor, training: Any) -> Tensor:
        return drop(x, training)


GLOBAL = [drop]


class Encoder(nn.Linear):
    def __init__(self) -> None:
        super().__init__(5, 8)
        self.functions: Any = {"drop": drop, "list": [drop], "partial": functools.partial(drop), "object": Dropping()}
        self.inner = Inner()

    def own(self, x: Tensor, training: Any) -> Tensor:
        return x * 2 if training is True else x

    @staticmethod
    def static(x: Tensor, training: Any) -> Tensor:
        return x * 2 if training is True else x

    @property
    def mode(self) -> Any:
        return self.training

    def dropped(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        CALLS.append(len(x))
        return self.dropped(super().forward(x).tanh())


FORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "method": lambda s, x: s.own(x, s.training),
    "static method": lambda s, x: s.static(x, s.training),
    "dict": lambda s, x: s.functions["drop"](x, s.training),
    "list": lambda s, x: s.functions["list"][0](x, s.training),
    "partial": lambda s, x: s.functions["partial"](x, s.training),
    "object": lambda s, x: s.functions["object"](x, s.training),
    "module": lambda s, x: s.inner(x, s.training),
    "deep": lambda s, x: deep(x, s.training),
    "global list": lambda s, x: GLOBAL[0](x, s.training),
    "is False": lambda s, x: keep(x, s.training),
    "type": lambda s, x: by_type(x, s.training),
    "getattr": lambda s, x: drop(x, getattr(s, "training")),  # noqa: B009
    "vars": lambda s, x: drop(x, vars(s)["training"]),
    "property": lambda s, x: drop(x, s.mode),
    "bound": lambda s, x: functools.partial(drop, training=s.training)(x),
    "batch norm": lambda s, x: F.batch_norm(x, None, None, training=True) if s.functions and s.mode is True else x,
}


class Network(nn.Module):
    def __init__(self, form: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)

        class Own(Encoder):
            def dropped(self, x: Tensor) -> Tensor:
                return form(self, x)

        self.audio_net, self.visual_net, self.head = Own(), nn.Linear(5, 8), nn.Linear(16, 3)
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


@pytest.mark.parametrize("options", [{}, {"masked": "shared"}, {"absent_gradient": False}], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_code_that_compares_its_mode_has_two_passes(form: str, options: dict[str, Any]) -> None:
    model = agm.AGM(Network(FORMS[form]), NAMES, alpha=2.0, encoders=PATHS, **options)
    for _ in range(2):
        result = agm.verify(model, batch(), TARGET)
        assert result.ok, str(result)
        model(**batch(), target=TARGET)


@pytest.mark.parametrize("shared", [False, True])
def test_what_hands_its_mode_on_has_one_pass_and_is_looked_at_once(shared: bool) -> None:
    options: dict[str, Any] = {"masked": "shared"} if shared else {}
    network = Network(lambda s, x: F.dropout(x, 0.5, training=s.training))
    model = agm.AGM(network, NAMES, encoders=PATHS, **options)
    model._passes.record.looks = 0  # at absent rows that amplify
    counts = []
    for _ in range(4):
        CALLS.clear()
        model(**batch(), target=TARGET)
        counts.append(list(CALLS))
    assert len(counts[0]) > 1
    assert counts[1:] == [[7 if shared else 13]] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_autocast_is_no_difference(dtype: torch.dtype) -> None:
    network = Network(lambda s, x: F.layer_norm(F.dropout(x, 0.5, training=s.training), (8,))).float()
    model = agm.AGM(network, NAMES, encoders=PATHS)
    for _ in range(2):
        CALLS.clear()
        with torch.autocast("cpu", dtype):
            model(**{name: x.float() for name, x in batch().items()}, target=TARGET)
    assert CALLS[0] == 13


class Offering(Network):
    """`encoders` and `fuse`."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"audio": self.audio_net, "visual": self.visual_net}

    def fuse(self, features: Any) -> Tensor:
        return self.head(torch.cat([features["audio"], features["visual"]], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fuse({"audio": self.audio_net(audio), "visual": self.visual_net(visual)})


def test_a_first_batch_of_one_sample_is_looked_at_too() -> None:
    model = agm.AGM(Offering(FORMS["dict"]), NAMES, alpha=2.0)
    model(**{name: x[:1] for name, x in batch().items()}, target=TARGET[:1])
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)
