"""Row-split batch norm without running statistics, and with those that are averages of all batches."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm.ops import reference
from agm.ops.batch_norm_rows import batch_norm_rows

from .counting import operations
from .samples import Room, logits

EPS = 1e-5
COUNTED = 6  # batches before
# (shape, train rows)
SHAPES = (((9, 70), 5), ((3, 5, 7), 1), ((5, 2, 600), 2), ((4, 3, 5, 5), 2), ((300, 7), 270), ((4, 3, 2), 4))
MIXED = ((torch.float32, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.float32))


def tensors(shape: tuple[int, ...], dtype: torch.dtype, own: torch.dtype, affine: bool) -> list[Any]:
    """Input, running mean and variance, weight, bias, and the gradient of the output."""
    drawn = [logits(shape[1], dtype=own, device="cpu", seed=seed) for seed in range(1, 5)]
    x = (1.5 * logits(*shape, dtype=torch.float64, device="cpu") + 2).to(dtype)
    weight, bias = (drawn[2] + 1, drawn[3]) if affine else (None, None)
    return [x, drawn[0], drawn[1].abs() + 0.5, weight, bias, logits(*shape, dtype=dtype, device="cpu", seed=9)]


def two_passes(given: list[Any], train_rows: int, running: bool) -> list[Tensor]:
    """Output, updated statistics if there are any, and gradients, of two norms of torch."""
    x, mean, var, weight, bias, grad = [None if one is None else one.detach().clone() for one in given]
    leaves = [one.requires_grad_() for one in (x, weight, bias) if one is not None]
    statistics = (mean, var) if running else (None, None)
    share = 1.0 / (COUNTED + 1)
    output = F.batch_norm(x[:train_rows], *statistics, weight, bias, True, share, EPS)
    if train_rows < len(x):
        rest = F.batch_norm(x[train_rows:], *statistics, weight, bias, not running, share, EPS)
        output = torch.cat([output, rest])
    grads = torch.autograd.grad(output, leaves, grad)
    return [output.detach(), *(statistics if running else ()), *grads]


def one_pass(room: Room, given: list[Any], train_rows: int, running: bool) -> list[Tensor]:
    x, mean, var, weight, bias, grad = [None if one is None else one.to(room.device) for one in given]
    statistics = (mean, var) if running else (None, None)
    batches = torch.tensor(COUNTED, device=room.device) if running else None
    forward, backward = room.op("batch_norm_rows"), room.op("batch_norm_rows_backward")
    found = forward(x, *statistics, weight, bias, train_rows, 0.0, EPS, batches)
    output, updated_mean, updated_var, saved_mean, saved_invstd = found
    wide = reference.accumulation_dtype(x.dtype)
    assert saved_mean.dtype == saved_invstd.dtype == wide
    assert saved_mean.shape == saved_invstd.shape == ((x.shape[1],) if running else (2, x.shape[1]))
    grads = backward(grad, x, weight, saved_mean, saved_invstd, updated_mean, updated_var, train_rows, EPS)
    if not running:
        assert updated_mean.shape == updated_var.shape == (0,)
    own = [] if weight is None else grads[1:]
    return [output, *((updated_mean, updated_var) if running else ()), grads[0], *own]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("dtype", MIXED, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("running", [True, False], ids=["average", "none"])
def test_numbers(
    room: Room, running: bool, shape: tuple[tuple[int, ...], int], dtype: tuple[torch.dtype, torch.dtype], affine: bool
) -> None:
    given = tensors(shape[0], *dtype, affine)
    made, wanted = one_pass(room, given, shape[1], running), two_passes(given, shape[1], running)
    exact = two_passes([None if one is None else one.double() for one in given], shape[1], running)
    for index, (result, passes, truth) in enumerate(zip(made, wanted, exact, strict=True)):
        assert result.dtype == passes.dtype, index
        if room.backend == "reference" and room.device == "cpu":
            assert torch.equal(result, passes), index
            continue
        scale = given[-1].double().norm() * given[0].double().norm() if index > len(made) - 3 else truth.norm() + 1
        wide = torch.finfo(reference.accumulation_dtype(given[0].dtype)).eps
        allowed = (passes.double() - truth).norm() + 8 * wide * scale + room.rounding(result.dtype) * truth.norm()
        assert (result.cpu().double() - truth).norm() <= allowed, index


@pytest.mark.parametrize("running", [True, False], ids=["average", "none"])
def test_channels_last(room: Room, running: bool) -> None:
    given = tensors((4, 3, 5, 7), torch.float32, torch.float32, True)
    given[0] = given[0].contiguous(memory_format=torch.channels_last)
    made, wanted = one_pass(room, given, 2, running), two_passes(given, 2, running)
    assert made[0].is_contiguous(memory_format=torch.channels_last)
    for result, passes in zip(made, wanted, strict=True):
        torch.testing.assert_close(result.cpu(), passes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("running", [True, False], ids=["average", "none"])
def test_registration(room: Room, running: bool) -> None:
    x, mean, var, weight, bias, grad = [one.to(room.device) for one in tensors((4, 3, 2), *MIXED[0], True)]
    op = room.op("batch_norm_rows")
    batches = torch.tensor(COUNTED, device=room.device)
    arguments = (x, mean, var, weight, bias, 3, 0.0, EPS, batches)
    if not running:
        x, grad, rows = torch.cat([x, x]), torch.cat([grad, grad]), 4
        arguments = (x, None, None, weight, bias, rows, 0.0, EPS, None)
    torch.library.opcheck(op, arguments)
    saved = op(*arguments)[1:]
    backward = (grad, x, weight, *saved[2:], *saved[:2], arguments[5], EPS)
    torch.library.opcheck(room.op("batch_norm_rows_backward"), backward)


# ---- The front door.


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradients_through_statistics_of_both_kinds_of_rows(backend: str) -> None:
    x, _, _, weight, bias, _ = tensors((4, 2, 3), *MIXED[1], True)
    leaves = [one.requires_grad_() for one in (x, weight, bias)]

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm_rows(x, None, None, weight, bias, 2, 0.1, EPS, backend=backend)[0]

    torch.autograd.gradcheck(output, leaves)


def test_an_average_of_all_batches_is_that_of_torch_and_reads_no_counter() -> None:
    norm, own = nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=None)
    for seed in range(3):
        x = logits(6, 3, dtype=torch.float32, device="cpu", seed=seed)
        own(x[:4])
        with torch.no_grad():
            given = (x, norm.running_mean, norm.running_var, norm.weight, norm.bias, 4, None, norm.eps)
            counted = operations(lambda given=given: batch_norm_rows(*given, batches=norm.num_batches_tracked))
            _, mean, var = batch_norm_rows(*given, batches=norm.num_batches_tracked)
        assert len(counted) == 1, counted
        norm.running_mean, norm.running_var = mean, var
        norm.num_batches_tracked.add_(1)
    torch.testing.assert_close(norm.state_dict(), own.state_dict())


def test_there_is_nothing_to_update_without_running_statistics() -> None:
    _, mean, var = batch_norm_rows(torch.randn(4, 3), None, None, None, None, 2, 0.1, EPS)
    assert mean is None
    assert var is None


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one of two": ({"running_mean": None}, TypeError, "Pass both running statistics, or neither"),
    "no counter": ({"momentum": None}, ValueError, "`batches` to be given where `momentum` is None"),
    "a counter beside a momentum": ({"batches": torch.tensor(1)}, ValueError, "`batches` to be given where"),
    "no whole number": ({"momentum": None, "batches": torch.tensor(1.0)}, ValueError, "`batches` to be a whole number"),
    "a counter elsewhere": (
        {"momentum": None, "batches": torch.tensor(1, device="meta")},
        ValueError,
        "`batches` to be on cpu",
    ),
    "one value a channel": (
        {"input": torch.ones(3, 3), "running_mean": None, "running_var": None},
        ValueError,
        "in the rows behind the train rows",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    change, error, message = WRONG[name]
    given = {"input": torch.ones(4, 3), "running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    given |= {"weight": None, "bias": None, "train_rows": 2, "momentum": 0.1, "eps": EPS, **change}
    with pytest.raises(error, match=message):
        batch_norm_rows(**given)
