"""Norms that exchange statistics with other processes, in one pass: as plain ones, and exchanged once."""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from agm._one_pass.choice import choose
from agm._one_pass.layouts import Unsplit
from agm._one_pass.split_pass import split_pass, what_runs
from agm._one_pass.synchronised import Exchanges

from .exchanging import logged, synchronised
from .passes import BATCH, REST, both, one_pass, rows, two_passes
from .test_row_split import record, trained


class Again(nn.Module):
    """One norm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x) + x * 2.0)


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "2d": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (4, 3, 2, 2)),
    "cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (4,)),
    "without parameters": (lambda: nn.BatchNorm2d(4, affine=False), (4, 3, 2)),
    "without statistics": (lambda: nn.BatchNorm1d(4, track_running_stats=False), (4,)),
    "momentum 1": (lambda: nn.BatchNorm1d(4, momentum=1.0), (4,)),
    "in place after it": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.3, True), nn.ReLU(True)), (4,)),
    "after a dropout": (lambda: nn.Sequential(nn.Dropout(0.3), nn.BatchNorm1d(4)), (4,)),
    "two": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Tanh(), nn.BatchNorm1d(3)), (4,)),
    "one called twice": (Again, (4,)),
    "beside a plain one": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.InstanceNorm1d(4)), (4, 3)),
}


def assert_same(module: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> None:
    """One pass with norms that exchange gives the numbers of two passes with plain ones, in every respect."""
    train, rest = (rows(count, *shape, seed=seed).to(dtype) for count, seed in ((BATCH, 0), (REST, 1)))
    module = module.to(dtype)
    exchanging = synchronised(module)
    with logged() as log:
        found = record(one_pass, exchanging, train, rest)
    norms = sum(type(layer) is nn.SyncBatchNorm for layer in exchanging.modules())
    calls = 2 if isinstance(module, Again) else norms
    assert [way for way, _ in log] == ["forward"] * 2 * calls + ["backward"] * 2 * calls  # of two forwards
    expected = record(two_passes, module, train, rest)
    assert torch.equal(found["generator"], expected["generator"])
    tolerance = 1e-12 if dtype is torch.float64 else 5e-2
    for name in ("outputs", "buffers", "gradients"):
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [*KINDS])
def test_kinds(kind: str) -> None:
    make, shape = KINDS[kind]
    assert_same(trained(make()), shape)


def test_half_types() -> None:
    assert_same(trained(nn.BatchNorm2d(4)), (4, 3, 2), torch.bfloat16)


@pytest.mark.parametrize("layout", ["channels last", "sliced"])
def test_layouts(layout: str) -> None:
    train, rest = rows(BATCH, 4, 3, 2), rows(REST, 4, 3, 2, seed=1)
    if layout == "sliced":
        train, rest = (x[..., ::2] for x in (train, rest))
    else:
        train, rest = (x.to(memory_format=torch.channels_last) for x in (train, rest))
    norm = trained(nn.BatchNorm2d(4)).double()
    with logged():
        found = record(one_pass, synchronised(norm), train, rest)
    torch.testing.assert_close(found, record(two_passes, norm, train, rest), rtol=1e-12, atol=1e-12)


def test_autocast() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 1), trained(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 2, 1))
    train, rest = rows(BATCH, 2, 3, 3).float(), rows(REST, 2, 3, 3, seed=1).float()
    exchanging = synchronised(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with logged() as log:
            found = one_pass(exchanging, train, rest)
        expected = two_passes(module, train, rest)
    assert log == [("forward", 4)]
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)
    torch.testing.assert_close(exchanging[1].running_var, module[1].running_var, rtol=1e-5, atol=1e-5)


def test_in_eval_mode() -> None:
    """Frozen norms exchange nothing."""
    module = nn.Sequential(trained(nn.BatchNorm1d(4)).eval(), nn.Linear(4, 4)).double()
    module[0].training = False
    train, rest = rows(BATCH, 4), rows(REST, 4, seed=1)
    exchanging = synchronised(module)
    exchanging[0].training = False
    with logged() as log:
        found = one_pass(exchanging, train, rest)
    assert log == []
    torch.testing.assert_close(found, two_passes(module, train, rest), rtol=1e-12, atol=1e-12)


class Wakes(nn.Module):
    """Sets a frozen norm to training mode while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.SyncBatchNorm(4).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        self.norm.train()
        return self.norm(x)


def test_a_norm_whose_mode_is_changed_exchanges_nothing() -> None:
    train = rows(BATCH, 4)
    with logged() as log, pytest.raises(Unsplit, match="it changes its mode"):
        split_pass(Wakes(), ((train,), {}), {id(train): rows(REST, 4)}, BATCH, REST, serves=False)
    assert log == []


class Sized(nn.Module):
    """Asks for the number of rows behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x.relu() if int(x.shape[0]) > 1 else x)


def test_a_look_exchanges_nothing() -> None:
    train, rest = rows(BATCH, 4), rows(REST, 4, seed=1)
    module = Sized().double()
    exchanging = synchronised(module)
    before = {name: value.clone() for name, value in exchanging.named_buffers()}
    with logged() as log:
        what_runs(exchanging, ((train,), {}), {id(train): rest}, BATCH, REST)
        assert log == []
        torch.testing.assert_close(dict(exchanging.named_buffers()), before, rtol=0.0, atol=0.0)
        found = torch.cat(both(exchanging, train, rest))
    torch.testing.assert_close(found, two_passes(module, train, rest), rtol=1e-12, atol=1e-12)


def test_rows_that_alone_have_a_gradient() -> None:
    """By themselves train rows have none there, so that a norm of another process would not exchange it."""
    train, rest = rows(BATCH, 4), rows(REST, 4).requires_grad_()
    norm = nn.SyncBatchNorm(4).double()
    with logged() as log:
        with pytest.raises(Unsplit, match="a gradient that its absent rows have"):
            split_pass(norm, ((train,), {}), {id(train): rest}, BATCH, REST, serves=False)
        assert log == []
        with torch.no_grad():
            split_pass(norm, ((train,), {}), {id(train): rest}, BATCH, REST, serves=False)
        split_pass(norm, ((train.requires_grad_(),), {}), {id(train): rest}, BATCH, REST, serves=False)
        assert log == [("forward", 4)] * 2


class Own(nn.SyncBatchNorm):
    pass


def test_norms_with_a_way_of_their_own() -> None:
    device = torch.device("cpu")
    replaced = nn.SyncBatchNorm(4)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    with logged():
        for norm in (Own(4), replaced):
            chosen = choose("audio", nn.Sequential(norm), "auto", device)
            assert chosen.how == "two"
            assert "exchanges statistics with other processes in a way of its own" in chosen.why
        assert choose("audio", nn.SyncBatchNorm(4), "auto", device).how == "split"
        assert choose("audio", Own(4).eval(), "auto", device).how == "joined"
    assert choose("audio", Own(4), "one", device).how == "split"  # by itself


def test_a_group_of_one() -> None:
    """What exchanges nothing is a plain norm."""
    with logged():
        norm = nn.SyncBatchNorm(4)
        assert len(Exchanges([norm, nn.BatchNorm1d(4)]).norms) == 1
        with patch.object(torch.distributed, "get_world_size", lambda group=None: 1):
            assert Exchanges([norm]).norms == []
