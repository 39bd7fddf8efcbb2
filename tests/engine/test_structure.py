"""What a step does not look for anew: that it is looked for again when it has changed."""

import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from agm._inputs.trees import flattened, leaves_of, mapped, unflattened
from agm._module_state.generators import kept_generators
from agm._module_state.structure import Structures


def network() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.Dropout())


def nested(net: Any) -> Any:
    return net[1]


CHANGES: dict[str, Callable[[Any], object]] = {
    "a mode": lambda net: nested(net)[0].eval(),
    "a layer": lambda net: nested(net).__setitem__(1, nn.Tanh()),
    "one more layer": lambda net: nested(net).append(nn.ReLU()),
    "one layer less": lambda net: nested(net).pop(1),
    "other layers in another order": lambda net: nested(net).__setattr__(
        "_modules", {"0": nested(net)[1], "1": nested(net)[0]}
    ),
    "the same layers under other names": lambda net: nested(net).__setattr__(
        "_modules", {"1": nested(net)[0], "0": nested(net)[1]}
    ),
    "a kind": lambda net: setattr(net[0], "__class__", nn.Bilinear),
    "a forward hook": lambda net: net[0].register_forward_hook(lambda *given: None),
    "a backward hook": lambda net: net[0].register_full_backward_hook(lambda *given: None),
    "a forward": lambda net: setattr(net[0], "forward", lambda x: x),
    "a buffer": lambda net: net[0].register_buffer("seen", torch.zeros(())),
    "a compiled call": lambda net: net[0].compile(backend="eager"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_structure_is_found_anew_after_a_change(change: str) -> None:
    net, structures = network().train(), Structures()
    before = structures.of(net)
    assert structures.of(net) is before
    CHANGES[change](net)
    after = structures.of(net)
    assert after is not before
    assert structures.of(net) is after


def test_what_is_chosen_for_a_structure_stays_as_long_as_it_does() -> None:
    net, structures = network(), Structures()
    made: list[object] = []

    def choose() -> object:
        made.append(object())
        return made[-1]

    def chosen() -> object:
        found = structures.of(net)
        assert found is not None
        return found.chosen("key", choose)

    assert chosen() is chosen()
    net.eval()
    assert chosen() is made[1]
    assert len(made) == 2


def test_settings_of_layers_are_read_every_time() -> None:
    """They are no part of the structure: whoever chooses by them has them in the key."""
    net = network().train()
    structure = Structures().of(net)
    assert structure is not None
    assert structure.depending() == (True, True)
    net[2].p = 0.0
    assert structure.depending() == (False, True)  # level by level
    assert not structure.mixes_samples()
    net[1][0].running_mean = None
    assert structure.mixes_samples()


DRAWS: dict[str, Callable[[], object]] = {
    "a number of numpy": np.random.rand,
    "one of a pair of numpy": np.random.randn,
    "a number of python": random.random,
    "one of a pair of python": lambda: random.gauss(0, 1),
    "a number of torch": lambda: torch.rand(1),
}


@pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64])
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("times", [1, 2])
def test_generators_are_put_back(draw: str, times: int, kind: Any) -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(kind(1))
        if times == 2:
            DRAWS[draw]()  # the other one of a pair is kept by then
        put_back = kept_generators()
        first = DRAWS[draw]()
        DRAWS[draw]()
        put_back()
        assert DRAWS[draw]() == first
    finally:
        np.random.set_bit_generator(before)


Pair = namedtuple("Pair", "left right")
X, Y = torch.zeros(2), torch.ones(2)

TREES: list[Any] = [
    *(X, None, 3, "s", (), [], {}, (X,), [X, None], {"b": X, "a": [Y, (3, "s")]}, ((X,), {}), ((X, Y), {"k": [X]})),
    *(Pair(X, 1), OrderedDict(b=X, a=Y), (Pair(X, 2), Y), {"a": {}}, object(), [range(2)]),
]


@pytest.mark.parametrize("place", range(len(TREES)))
def test_trees_are_those_of_pytree(place: int) -> None:
    tree = TREES[place]
    leaves, structure = pytree.tree_flatten(tree)
    assert [id(leaf) for leaf in leaves_of(tree)] == [id(leaf) for leaf in leaves]
    found, own = flattened(tree)
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in leaves]
    assert own == structure
    assert pytree.tree_structure(unflattened(found, own)) == structure
    seen = mapped(lambda leaf: (leaf,), tree)
    assert pytree.tree_structure(seen) == pytree.tree_structure(pytree.tree_map(lambda leaf: (leaf,), tree))
    both = mapped(lambda leaf, other: leaf is other, tree, tree)
    assert all(pytree.tree_leaves(both))


def test_trees_end_where_they_are_told_to() -> None:
    tree = {"a": [1, 2], "b": (X, [3])}

    def ends(value: Any) -> bool:
        return type(value) is list

    assert list(map(type, leaves_of(tree, is_leaf=ends))) == list(map(type, pytree.tree_leaves(tree, is_leaf=ends)))
