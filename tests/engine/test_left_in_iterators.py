"""What forward draws from iterators in attributes is what one joint pass draws, and tuples are looked into."""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm._module_state.iterators import copy_of, state_of

from .plain_network import ENCODERS, NAMES, OPTIONS, TARGET


def numbers() -> Iterator[int]:
    yield from range(1000)


ITERATORS: dict[str, Callable[[], Iterator[Any]]] = {
    "count": itertools.count,
    "count by halves": lambda: itertools.count(1.5, 0.5),
    "of a list": lambda: iter([5, 4, 3, 2, 1, 0, 9, 8, 7, 6, 5, 4]),
    "of a range": lambda: iter(range(3, 60)),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "an attribute": lambda it: it,
    "a list": lambda it: [0, it],
    "a deque": lambda it: deque([it]),
    "a dict": lambda it: {"steps": it},
    "an object": lambda it: SimpleNamespace(steps=it),
}


def of(place: Any) -> Any:
    if isinstance(place, SimpleNamespace):
        return place.steps
    return place["steps"] if isinstance(place, dict) else place[-1] if isinstance(place, (list, deque)) else place


class Encoder(nn.Module):
    def __init__(self, place: Any, asks: bool = False) -> None:
        super().__init__()
        self.linear, self.place, self.asks = nn.Linear(5, 6), place, asks
        self.drawn: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.place is not None and (self.training or not self.asks):
            self.drawn.append(next(of(self.place)))
        return self.linear(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    def __init__(self, own: Any, audio: Any, asks: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.place = own
        self.audio_net, self.visual_net = Encoder(audio, asks), Encoder(None)
        self.head = nn.Linear(12, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        if self.place is not None:
            next(of(self.place))
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise RuntimeError("on purpose")
        return x[:, :4]


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.randn(6, 5, dtype=torch.float64) for name in NAMES}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("where", ["the network", "an encoder", "an encoder that asks", "both"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ITERATORS)
def test_iterators_are_drawn_from_once(kind: str, place: str, where: str, options: dict[str, Any]) -> None:
    iterator, plain = ITERATORS[kind](), ITERATORS[kind]()
    held = PLACES[place](iterator)
    network = Net(held if where in ("the network", "both") else None, None if where == "the network" else held)
    network.audio_net.asks = where == "an encoder that asks"
    model = agm.AGM(network.double(), NAMES, **options)
    for _ in range(3):
        model(**inputs(), target=TARGET)
        next(plain)
        if where == "both":  # one iterator in two places stays one
            next(plain)
    assert of(held) is iterator
    assert network.audio_net.drawn == [] or len(network.audio_net.drawn) == 3
    assert next(iterator) == next(plain)


def test_a_failed_pass_leaves_the_iterator_in_its_place() -> None:
    iterator = itertools.count()
    network = Net(iterator, None).double()
    network.head = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        agm.AGM(network, NAMES)(**inputs(), target=TARGET)
    assert network.place is iterator
    assert next(iterator) == 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ITERATORS)
def test_verify_agrees_and_draws_nothing(kind: str, options: dict[str, Any]) -> None:
    iterator = ITERATORS[kind]()
    model = agm.AGM(Net(iterator, [iterator]).double(), NAMES, **options)
    model(**inputs(), target=TARGET)
    before = state_of(iterator)
    result = agm.verify(model, inputs(), TARGET)
    assert result.ok, str(result)
    assert "place" in result.left
    assert model.module.place is iterator
    assert state_of(iterator) == before


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("in_encoder", [False, True])
def test_verify_names_what_cannot_be_copied(in_encoder: bool, options: dict[str, Any]) -> None:
    if in_encoder and "encoders" in options and options.get("masked") is None and "passes" not in options:
        return  # its features of the joint pass serve, but for the absent row's pass
    iterator = numbers()
    network = Net(None, iterator) if in_encoder else Net(iterator, None)
    result = agm.verify(agm.AGM(network.double(), NAMES, **options), inputs(), TARGET)
    assert not result.ok
    assert ("`audio_net.place`" if in_encoder else "`place`") in result.advice[0]
    assert (network.audio_net.place if in_encoder else network.place) is iterator


def test_verify_takes_a_generator_that_is_left_alone_in_eval_mode() -> None:
    assert agm.verify(agm.AGM(Net(None, numbers(), asks=True).double(), NAMES), inputs(), TARGET).ok


def test_a_generator_is_not_drawn_from_by_a_trial_of_one_pass() -> None:
    network = Net(None, numbers(), asks=True).double()
    model = agm.AGM(network, NAMES, encoders=ENCODERS)
    for _ in range(3):
        model(**inputs(), target=TARGET)
    assert network.audio_net.drawn == [0, 1, 2]
    with pytest.raises(ValueError, match="cannot be copied"):
        agm.AGM(network, NAMES, encoders=ENCODERS, passes="one")(**inputs(), target=TARGET)


@pytest.mark.parametrize("kind", ITERATORS)
@pytest.mark.parametrize("drawn", [0, 1, 2, 20])
def test_a_copy_goes_on_as_the_iterator_does(kind: str, drawn: int) -> None:
    iterator = ITERATORS[kind]()
    list(itertools.islice(iterator, drawn))
    found: Any = copy_of(iterator)
    assert state_of(found) == state_of(iterator)
    first = list(itertools.islice(found, 4))
    if first:
        assert state_of(found) != state_of(iterator)
    assert list(itertools.islice(iterator, 4)) == first


def test_what_draws_from_another_iterator_is_copied_with_it() -> None:
    source = [1, 2, 3]
    for make in (
        lambda: enumerate(source),
        lambda: zip(source, itertools.count(), strict=False),
        lambda: map(abs, source),
    ):
        iterator: Any = make()
        next(iterator)
        found: Any = copy_of(iterator)
        assert next(found) == next(iterator)
    assert copy_of(numbers()) is None
    assert copy_of(enumerate(numbers())) is None


class Together(nn.Module):
    """Keeps a list and a dict in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(None, None)
        self.kept: tuple[list[Tensor], dict[str, Any]] = ([], {"steps": 0})

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        output = self.net(audio, visual)
        self.kept[0].append(output.detach())
        self.kept[1]["steps"] += 1
        return output


@pytest.mark.parametrize(
    "options", [{}, {"max_rows": 6}, {"encoders": {n: f"net.{p}" for n, p in ENCODERS.items()}}], ids=str
)
def test_containers_in_tuples_hold_what_the_joint_pass_left(options: dict[str, Any]) -> None:
    network = Together().double()
    model = agm.AGM(copy.deepcopy(network), NAMES, **options)
    for _ in range(2):
        model(**inputs(), target=TARGET)
        network(**inputs())
    assert model.module.kept[1] == {"steps": 2}
    torch.testing.assert_close(model.module.kept[0], network.kept[0])
