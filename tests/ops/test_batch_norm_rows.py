"""Train rows and eval rows through one batch norm, against two passes of torch and against float64."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agm.ops import reference
from agm.ops.batch_norm_rows import batch_norm_rows

from .counting import operations
from .samples import LAYOUTS, Room, fresh_memory_holds_nan, logits

MOMENTUM, EPS = 0.3, 1e-5
# (shape, train rows): one value more than none, no eval rows, odd, a channel of several tiles, several blocks of rows
SHAPES = (
    ((2, 1), 2),
    ((3, 5), 2),
    ((9, 70), 9),
    ((300, 7), 270),
    ((2, 3, 7), 1),
    ((4, 5, 5), 3),
    ((5, 2, 600), 2),
    ((4, 3, 5, 5), 2),
    ((3, 2, 23, 24), 2),
    ((3, 2, 3, 2, 4), 1),
)
# Of the input, and of statistics and parameters.
DTYPES = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
)
MEMORY = {4: torch.channels_last, 5: torch.channels_last_3d}


@dataclass
class Norm:
    input: Tensor
    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    grad: Tensor
    train_rows: int

    def map(self, change: Callable[[Tensor], Tensor]) -> "Norm":
        fields = {name: change(one) if isinstance(one, Tensor) else one for name, one in vars(self).items()}
        return Norm(**fields)

    def run(self, room: Room) -> list[Tensor]:
        """Output, updated statistics, gradients of input, weight and bias, by the ops themselves."""
        norm = self.map(lambda one: one.to(room.device))
        results = room.op("batch_norm_rows")(*list(vars(norm).values())[:5], norm.train_rows, MOMENTUM, EPS)
        output, mean, var, saved_mean, saved_invstd = results
        assert saved_mean.dtype == saved_invstd.dtype == reference.accumulation_dtype(norm.input.dtype)
        grads = room.op("batch_norm_rows_backward")(
            norm.grad, norm.input, norm.weight, saved_mean, saved_invstd, mean, var, norm.train_rows, EPS
        )
        return [output, mean, var, *grads]

    def two_passes(self) -> list[Tensor]:
        """The same from two batch norms of torch."""
        norm = self.map(lambda one: one.detach().cpu())
        norm.running_mean, norm.running_var = norm.running_mean.clone(), norm.running_var.clone()
        affine = [None if one is None else one.requires_grad_() for one in (norm.weight, norm.bias)]
        x = norm.input.requires_grad_()
        cut = [norm.train_rows, len(x) - norm.train_rows]
        train, rest = x.split(cut)
        output = F.batch_norm(train, norm.running_mean, norm.running_var, *affine, True, MOMENTUM, EPS)
        if cut[1]:
            evaluated = F.batch_norm(rest, norm.running_mean, norm.running_var, *affine, False, MOMENTUM, EPS)
            output = torch.cat([output, evaluated])
        wanted = [x, *(one for one in affine if one is not None)]
        grads = torch.autograd.grad(output, wanted, norm.grad)
        return [output.detach(), norm.running_mean, norm.running_var, *grads]


def norm_of(
    shape: tuple[int, ...],
    train_rows: int,
    dtypes: tuple[torch.dtype, torch.dtype] = DTYPES[0],
    *,
    affine: bool = True,
    offset: float = 2.0,
) -> Norm:
    channels = shape[1]
    dtype, own = dtypes
    drawn = [logits(channels, dtype=own, device="cpu", seed=seed) for seed in range(1, 5)]
    weight, bias = (drawn[2] + 1, drawn[3]) if affine else (None, None)
    x = (1.5 * logits(*shape, dtype=torch.float64, device="cpu") + offset).to(dtype)
    grad = logits(*shape, dtype=dtype, device="cpu", seed=9)
    return Norm(x, drawn[0], drawn[1].abs() + 0.5, weight, bias, grad, train_rows)


def check(room: Room, norm: Norm) -> None:
    """Bit-equal to two passes on the reference; elsewhere no further from float64 than these and a few roundings."""
    before = norm.map(torch.clone)
    made = norm.run(room)
    for name, one in vars(before).items():
        assert not isinstance(one, Tensor) or torch.equal(one, getattr(norm, name)), name
    wanted = norm.two_passes()
    exact = norm.map(Tensor.double).two_passes()
    layout = reference.memory_format(norm.input)
    for index, (result, passes, truth) in enumerate(zip(made, wanted, exact, strict=False)):
        assert result.dtype == passes.dtype, index
        assert index not in (0, 3) or result.is_contiguous(memory_format=layout)
        if room.backend == "reference" and room.device == "cpu":
            assert torch.equal(result, passes), index
            continue
        wide = torch.finfo(reference.accumulation_dtype(norm.input.dtype)).eps
        scale = truth.norm() + (norm.input.double().norm() if index == 0 else 0)
        if index > 3:  # a sum over all rows, to which each adds a rounding
            scale = norm.grad.double().norm() * norm.input.double().norm()
        stored = room.rounding(result.dtype) * truth.norm()
        allowed = (passes.double() - truth).norm() + 4 * wide * scale + stored
        if result.dtype != reference.accumulation_dtype(result.dtype):
            allowed += torch.finfo(result.dtype).eps * truth.norm() / 8  # what is rounded to 16 bits may round anew
        assert (result.cpu().double() - truth).norm() <= allowed, index


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[tuple[int, ...], int], dtype: tuple[torch.dtype, torch.dtype]) -> None:
    if (room.backend, room.device) == ("triton", "cpu") and dtype in DTYPES[2:] and shape != SHAPES[4]:
        pytest.skip("the interpreter takes its time, and half types differ in loads and stores alone")
    check(room, norm_of(*shape, dtype))


@pytest.mark.parametrize("layout", ["channels last", "permuted", "sliced", "shifted"])
@pytest.mark.parametrize("shape", [((4, 3, 5, 7), 2), ((3, 2, 3, 2, 4), 1), ((5, 40, 1, 1), 3), ((4, 1, 3, 3), 2)])
def test_layouts(room: Room, shape: tuple[tuple[int, ...], int], layout: str) -> None:
    norm = norm_of(*shape)
    if layout == "channels last":
        memory = MEMORY[len(shape[0])]
        norm.input = norm.input.contiguous(memory_format=memory)  # and a gradient that is not
    else:
        norm.input, norm.grad = LAYOUTS[layout](norm.input), LAYOUTS[layout](norm.grad)
    check(room, norm)


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_not_affine(room: Room, dtype: tuple[torch.dtype, torch.dtype]) -> None:
    check(room, norm_of((5, 4, 3), 3, dtype, affine=False))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_numbers_far_from_zero(room: Room, offset: float) -> None:
    """The variance is not the difference of two large numbers."""
    norm = norm_of((40, 3, 9), 30, offset=offset)
    _, _, var, *_ = norm.run(room)
    _, _, expected, *_ = norm.map(Tensor.double).two_passes()
    torch.testing.assert_close(var.cpu().double(), expected, rtol=3e-6, atol=0)


def test_constant_channels(room: Room) -> None:
    if room.backend == "reference":
        pytest.skip("torch rounds the mean")
    norm = norm_of((6, 3, 4), 4)
    norm.input[:] = torch.tensor([0.1, -7.0, 1e6])[:, None]
    output, _, var, *_ = norm.run(room)
    assert torch.equal(var.cpu(), (1 - MOMENTUM) * norm.running_var)
    assert norm.bias is not None
    torch.testing.assert_close(output[:4].cpu(), norm.bias[None, :, None].expand(4, 3, 4), rtol=0, atol=0)


def test_what_is_not_finite_stays_in_its_channel(room: Room) -> None:
    norm = norm_of((6, 3, 4), 4)
    norm.input[1, 1, 2] = torch.nan
    made, wanted = norm.run(room), norm.two_passes()
    for result, expected in zip(made, wanted, strict=True):
        assert torch.equal(result.cpu().isnan(), expected.isnan())


@pytest.mark.parametrize("shape", [((6, 5, 3), 4), ((70, 40), 60)], ids=str)
def test_every_element_is_written(room: Room, shape: tuple[tuple[int, ...], int]) -> None:
    norm = norm_of(*shape)
    expected = norm.run(room)
    with fresh_memory_holds_nan():
        made = norm.run(room)
    assert all(torch.equal(result, wanted) for result, wanted in zip(made, expected, strict=True))


def test_same_bits_with_any_number_of_threads() -> None:
    room, norm = Room("cpp", "cpu"), norm_of((600, 600), 500)
    room.op("batch_norm_rows")
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(norm.run(room))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(results[0], results[1], strict=True))
    assert all(torch.equal(one, other) for one, other in zip(results[0], results[2], strict=True))


@pytest.mark.parametrize("layout", ["compact", "channels last", "permuted"])
def test_registration(room: Room, layout: str) -> None:
    if (room.backend, room.device) == ("triton", "cpu") and layout == "permuted":
        pytest.skip("the interpreter takes its time, and the kernels are given a compact copy")
    norm = norm_of((4, 3, 2, 2), 3)
    if layout == "channels last":
        norm.input = norm.input.contiguous(memory_format=torch.channels_last)
    if layout == "permuted":
        norm.input = LAYOUTS[layout](norm.input)
    norm = norm.map(lambda one: one.to(room.device))
    op = room.op("batch_norm_rows")
    arguments = (*list(vars(norm).values())[:5], norm.train_rows, MOMENTUM, EPS)
    torch.library.opcheck(op, arguments)
    saved = op(*arguments)[1:]
    backward = (norm.grad, norm.input, norm.weight, *saved[2:], *saved[:2], norm.train_rows, EPS)
    torch.library.opcheck(room.op("batch_norm_rows_backward"), backward)


# ---- The front door.


def learning(norm: Norm) -> Norm:
    for one in (norm.input, norm.weight, norm.bias):
        if one is not None:
            one.requires_grad_()
    return norm


def front(norm: Norm, backend: str = "auto") -> tuple[Tensor, Tensor, Tensor]:
    given = (norm.input, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.train_rows)
    return batch_norm_rows(*given, MOMENTUM, EPS, backend=backend)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_gradients_by_finite_differences(backend: str) -> None:
    norm = learning(norm_of((4, 2, 3), 2, DTYPES[1]))
    assert norm.weight is not None

    def output(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Through the train rows' statistics, but not through the updated ones, as in two passes.
        result, _, _ = batch_norm_rows(
            x, norm.running_mean, norm.running_var, weight, bias, 2, 0.0, EPS, backend=backend
        )
        return result

    torch.autograd.gradcheck(output, (norm.input, norm.weight, norm.bias))


def test_the_front_door_writes_to_nothing_and_its_statistics_carry_no_gradient() -> None:
    norm = learning(norm_of((6, 4, 5), 4))
    versions = [one._version for one in vars(norm).values() if isinstance(one, Tensor)]
    output, mean, var = front(norm, "reference")
    assert versions == [one._version for one in vars(norm).values() if isinstance(one, Tensor)]
    assert output.requires_grad
    assert [mean.requires_grad, var.requires_grad] == [False, False]
    wanted = norm.two_passes()
    grads = torch.autograd.grad(output, [norm.input, norm.weight, norm.bias], norm.grad)
    for result, expected in zip([output, mean, var, *grads], wanted, strict=True):
        assert torch.equal(result, expected)


def test_differentiated_twice_raises() -> None:
    norm = learning(norm_of((6, 4), 4))
    (grad,) = torch.autograd.grad(front(norm)[0].square().sum(), norm.input, create_graph=True)
    with pytest.raises(RuntimeError, match=r'`batch_norm_rows` not to be differentiated again.*passes="two"'):
        grad.sum().backward()


def test_no_more_operations_than_one_batch_norm() -> None:
    norm = learning(norm_of((6, 4, 5), 4))
    ours = operations(lambda: front(norm)[0].backward(norm.grad))
    own = norm_of((6, 4, 5), 4)
    arguments = learning(own)
    torchs = operations(
        lambda: F.batch_norm(
            arguments.input, own.running_mean, own.running_var, own.weight, own.bias, True, MOMENTUM, EPS
        ).backward(own.grad)
    )
    assert len(ours) <= len(torchs)
    assert sum("batch_norm" in name for name in ours) == 2
    with torch.no_grad():
        assert len(operations(lambda: front(norm))) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_break(dynamic: bool) -> None:
    compiled = torch.compile(front, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (6, 9):
        norm = learning(norm_of((rows, 4, 5), 4))
        output, mean, var = compiled(norm)
        expected, wanted_mean, wanted_var = front(norm)
        assert torch.equal(output, expected)
        assert torch.equal(mean, wanted_mean)
        assert torch.equal(var, wanted_var)
        (made,) = torch.autograd.grad(output, norm.input, norm.grad)
        (wanted,) = torch.autograd.grad(expected, norm.input, norm.grad)
        assert torch.equal(made, wanted)


WRONG = {
    "no train rows": ({"train_rows": 0}, ValueError, "`train_rows` to be from 1 to the 4 rows"),
    "more than there are": ({"train_rows": 5}, ValueError, "but got 5"),
    "one value a channel": ({"input": torch.ones(4, 3), "train_rows": 1}, ValueError, "more than 1 value per channel"),
    "one dimension": ({"input": torch.ones(4)}, ValueError, r"\(rows, channels, ...\)"),
    "integers": ({"input": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "`input` to be float32"),
    "sparse": ({"input": torch.ones(4, 3).to_sparse()}, TypeError, "`input` to be dense"),
    "8 bits": ({"input": torch.ones(4, 3, 2).to(torch.float8_e4m3fn)}, TypeError, "`input` to be float32"),
    "no number of rows": ({"train_rows": "2"}, TypeError, "`train_rows` to be an integer, but got '2'"),
    "statistics elsewhere": ({"running_mean": torch.ones(3, device="meta")}, ValueError, "`running_mean` to be on cpu"),
    "weight elsewhere": ({"weight": torch.ones(3, device="meta")}, ValueError, "`weight` to be on cpu"),
    "one running statistic": ({"running_mean": None}, TypeError, "`running_mean` to be a tensor"),
    "another number of channels": ({"weight": torch.ones(4)}, ValueError, r"`weight` to have shape \(3,\)"),
    "another dtype": ({"bias": torch.ones(3, dtype=torch.float64)}, TypeError, "`bias` to be torch.float32"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused(name: str) -> None:
    change, error, message = WRONG[name]
    norm = norm_of((4, 3, 2), 2)
    for field, value in change.items():
        setattr(norm, field, value)
    with pytest.raises(error, match=message):
        front(norm)


def test_torch_refuses_one_value_a_channel_too() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        F.batch_norm(torch.ones(1, 3), torch.zeros(3), torch.ones(3), training=True)


@pytest.mark.parametrize(
    ("momentum", "eps", "message"),
    [
        (None, EPS, "`batches` to be given where `momentum` is None"),
        (math.nan, EPS, "`momentum` to be a finite number or None, but got nan"),
        ("0.1", EPS, "`momentum`"),
        (MOMENTUM, -1e-5, "`eps` to be a finite number >= 0, but got -1e-05"),
        (MOMENTUM, math.inf, "`eps`"),
    ],
)
def test_numbers_that_are_none_are_refused(momentum: object, eps: object, message: str) -> None:
    norm = norm_of((4, 3, 2), 2)
    with pytest.raises(ValueError, match=message):
        batch_norm_rows(norm.input, norm.running_mean, norm.running_var, None, None, 2, momentum, eps)
