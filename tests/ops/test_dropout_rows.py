"""Dropout of the first rows, against torch's dropout of these by themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from agm.ops.dropout_rows import dropout_rows

from .counting import operations
from .samples import DTYPES, LAYOUTS, Room, fresh_memory_holds_nan, logits

SHAPES = (((3, 5), 2), ((4, 3, 7), 4), ((65, 130), 33), ((2, 1, 3, 3), 1), ((1, 0), 1))


def expected(x: Tensor, p: float, train_rows: int) -> Tensor:
    train, rest = x.split([train_rows, len(x) - train_rows])
    return torch.cat([F.dropout(train, p), rest])


def seeded(device: str) -> torch.Generator:
    torch.manual_seed(3)
    return torch.cuda.default_generators[0] if device == "cuda" else torch.default_generator


@pytest.mark.parametrize("p", [0.1, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers(room: Room, shape: tuple[tuple[int, ...], int], dtype: torch.dtype, p: float) -> None:
    """The same bits as torch, forward and backward, and the generator goes on from the same state."""
    forward, backward = room.op("dropout_rows"), room.op("dropout_rows_backward")
    sizes, train_rows = shape
    x = logits(*sizes, dtype=dtype, device=room.device).requires_grad_()
    grad = logits(*sizes, dtype=dtype, device=room.device, seed=1)
    generator = seeded(room.device)
    wanted = expected(x, p, train_rows)
    state = generator.get_state()
    (wanted_grad,) = torch.autograd.grad(wanted, x, grad)

    seeded(room.device)
    output, mask = forward(x.detach(), p, train_rows)
    assert torch.equal(generator.get_state(), state)
    assert torch.equal(output, wanted)
    assert mask.shape == (train_rows, *sizes[1:])
    assert torch.equal(backward(grad, mask, p), wanted_grad)


@pytest.mark.parametrize("layout", ["permuted", "sliced"])
def test_layouts(room: Room, layout: str) -> None:
    forward = room.op("dropout_rows")
    x = LAYOUTS[layout](logits(6, 5, 4, dtype=torch.float32, device=room.device))
    seeded(room.device)
    wanted = expected(x, 0.4, 4)
    seeded(room.device)
    assert torch.equal(forward(x, 0.4, 4)[0], wanted)


def test_every_element_is_written(room: Room) -> None:
    forward, backward = room.op("dropout_rows"), room.op("dropout_rows_backward")
    x = torch.ones(5, 7, device=room.device)
    with fresh_memory_holds_nan():
        output, mask = forward(x, 0.5, 3)
        grad = backward(x, mask, 0.5)
    assert torch.equal(output, grad)
    assert torch.equal(output[3:], x[3:])


def test_registration(room: Room) -> None:
    x = logits(4, 6, dtype=torch.float32, device=room.device)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")  # the others call it twice
    torch.library.opcheck(room.op("dropout_rows"), (x, 0.5, 3), test_utils=utilities)
    _, mask = room.op("dropout_rows")(x, 0.5, 3)
    torch.library.opcheck(room.op("dropout_rows_backward"), (x, mask, 0.5))


def test_a_compiler_neither_drops_nor_merges_what_draws() -> None:
    for overload in torch.ops.agm.dropout_rows.overloads():
        assert torch.Tag.nondeterministic_seeded in getattr(torch.ops.agm.dropout_rows, overload).tags


def test_one_operation_each_way() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    ours = [
        name.split(".")[1] for name in operations(lambda: dropout_rows(x, 0.5, 4).sum().backward()) if "dropout" in name
    ]
    assert ours == ["dropout_rows", "dropout_rows_backward"]
    torchs = operations(lambda: F.dropout(x, 0.5).sum().backward())
    assert len(operations(lambda: dropout_rows(x, 0.5, 4).sum().backward())) <= len(torchs)


@pytest.mark.parametrize(("p", "train_rows"), [(0.0, 3), (0.5, 0)])
def test_where_nothing_is_dropped_the_input_comes_back(p: float, train_rows: int) -> None:
    x = torch.ones(4, 3)
    state = torch.get_rng_state()
    assert dropout_rows(x, p, train_rows) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_compiles_without_a_break() -> None:
    compiled = torch.compile(dropout_rows, fullgraph=True, backend="aot_eager")
    x = torch.ones(6, 4, requires_grad=True)
    torch.manual_seed(0)
    made = compiled(x, 0.5, 4)
    torch.manual_seed(0)
    wanted = dropout_rows(x, 0.5, 4)
    assert torch.equal(made, wanted)
    assert torch.equal(*(torch.autograd.grad(one.square().sum(), x)[0] for one in (made, wanted)))


def test_differentiated_twice_raises() -> None:
    x = torch.ones(6, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(dropout_rows(x, 0.5, 4).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="`dropout_rows` not to be differentiated again"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(3, dtype=torch.int64), 0.5, 1), TypeError, "`input` to be float32.* but got torch.int64"),
        ((None, 0.5, 1), TypeError, "but got NoneType"),
        ((torch.ones(3), 1.5, 1), ValueError, r"probability in \[0, 1\], but got 1.5"),
        ((torch.ones(3).to_sparse(), 0.5, 1), TypeError, "`input` to be dense"),
        ((torch.ones(3), "a", 1), ValueError, "probability in .* but got 'a'"),
        ((torch.ones(3), float("nan"), 1), ValueError, "probability in .* but got nan"),
        ((torch.ones(3), 0.5, 1.5), TypeError, "`train_rows` to be an integer, but got 1.5"),
        ((torch.ones(3), 0.5, 4), ValueError, "from 0 to the 3 rows, but got 4"),
    ],
)
def test_refused(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dropout_rows(*arguments)
