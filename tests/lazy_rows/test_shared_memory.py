"""Views of deferred rows that are written to."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm._lazy_rows.tensor import CannotDefer, Deferred, written

from .deferring import Made, check, features, rows

# Who writes to a tensor, writes to its views; `by` is zero where a network begins, so that no logits tell.
SHARED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a view": lambda x, by: [x.view(-1, 2, 3).add_(by.view(2, 3)), x][1],
    "a view of a view": lambda x, by: [x.view(-1, 2, 3)[:, 0].add_(by[:3]), x * 2][1],
    "the tensor": lambda x, by: [x[:, :4], x.add_(by)][0],
    "the tensor, kept": lambda x, by: [x.unsqueeze(1), x.add_(by)][0].squeeze(1),
    "a view of another": lambda x, by: [x.permute(0, 1), x.flatten(0).add_(by[0])][0],
    "the transposed": lambda x, by: [x.unsqueeze(1).transpose(1, 2).add_(by.view(6, 1)), x][1],
    "itself": lambda x, by: [x.contiguous().add_(by), x.relu()][1],
    "the same dtype": lambda x, by: [x.double().add_(by), x + 1][1],
    "an item": lambda x, by: [x[:, 1:].__setitem__((slice(None), 0), by[0]), x][1],
}


def activated_in_place(x: Tensor, by: Tensor) -> Tensor:
    view = x.view(-1, 2, 3)
    F.relu(x, inplace=True)
    return view + by[0]


@pytest.mark.parametrize("name", [*SHARED, "an activation"])
def test_what_shares_memory(name: str) -> None:
    """A tensor is not used as it was before a view of it was written to, nor the reverse."""
    function = SHARED.get(name, activated_in_place)
    deferred = Deferred.of(rows(), 0, features(6)[0])
    with pytest.raises(CannotDefer, match="shares its memory"):
        written(function(deferred, torch.zeros(6).double()))


def test_what_is_a_copy_shares_no_memory() -> None:
    def fusion(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        total = sum([a])
        total += Made.row  # type: ignore[assignment]
        copy = b.clone()
        copy[:, 0] = 1.0
        view = c.view(-1, 2, 3)
        view[:, 0] = 2.0
        return a + total + b * copy + view.flatten(1)

    assert type(check(fusion, features(6), rows())) is Tensor


class Zeroed(nn.Module):
    """A fusion that adds a parameter, zero at first, to a view of its features, in place."""

    def __init__(self, offers: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({name: nn.Linear(4, 6) for name in "abc"})
        self.position = nn.Parameter(torch.zeros(2, 3))
        self.head = nn.Linear(6, 5)
        if offers:
            self.encoders, self.fuse = self.nets, self._fuse

    def _fuse(self, features: dict[str, Tensor]) -> Tensor:
        tokens = features["a"].view(-1, 2, 3)
        tokens += self.position
        return self.head(features["a"]) + self.head(features["b"]) + self.head(features["c"])

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        given = {"a": a, "b": b, "c": c}
        fuse = getattr(self, "fuse", self._fuse)
        return fuse({name: net(given[name]) for name, net in self.nets.items()})


class Later(Zeroed):
    """A fusion that writes to what it has a view of once the parameter is no longer zero: no first batch shows it."""

    def _fuse(self, features: dict[str, Tensor]) -> Tensor:
        result: Tensor = self.head(features["a"])
        view = result.view(-1, 5)
        if self.position.count_nonzero():
            result += self.position[0, 0]
        return view


@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("made", [Zeroed, Later])
def test_a_view_written_to_in_a_model(made: type[Zeroed], offers: bool) -> None:
    torch.manual_seed(0)
    network = made(offers).double()
    model = agm.AGM(network, tuple("abc"), encoders=None if offers else {one: f"nets.{one}" for one in "abc"})
    inputs = {one: torch.randn(5, 4, dtype=torch.float64) for one in "abc"}
    target = torch.randint(5, (5,))
    for _ in range(2):
        assert agm.verify(model, inputs, target).ok
        nn.init.ones_(network.position)
