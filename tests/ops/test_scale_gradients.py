"""k g in place, and k g + n. Without noise the arithmetic is elementwise, so every backend agrees to the last bit."""

import math
import random

import pytest
import torch
from torch import Tensor

from agm.ops import reference

from .samples import DTYPES, LAYOUTS, Room, logits

# Empty, single, odd, past one chunk of a kernel, past several.
SIZES = (0, 1, 2, 3, 129, 4096 + 33, 100003)

# How far a normal number may be from the reference's: both come from the same words, but logarithm, sine and cosine are
# off by a few units in the last place of the radius (at most 5.8) and of the angle (at most 2 pi).
NORMAL_TOLERANCE = 3e-6


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.view(1, -1, *tensor.shape[-2:]).to(memory_format=torch.channels_last)


ALL_LAYOUTS = {**LAYOUTS, "channels_last": channels_last}


def coefficients(room: Room) -> Tensor:
    """None of them a float32."""
    return torch.tensor([0.1, -1.7, 3e-5], dtype=torch.float64, device=room.device)


def groups_of(grads: list[Tensor]) -> list[int]:
    return [i % 3 for i in range(len(grads))]


def scaled(grad: Tensor, coefficient: Tensor) -> Tensor:
    """In float64 throughout, rounded once to the accumulation type and once to the gradient's."""
    wide = reference.accumulation_dtype(grad.dtype)
    return (coefficient.cpu().to(wide).double() * grad.cpu().double()).to(wide).to(grad.dtype)


def check(result: list[Tensor], before: list[Tensor], groups: list[int], factors: Tensor, seed: Tensor | None) -> None:
    """Compares with what `scaled` says, or with noise with k g + n in float64."""
    for number, (grad, own, group) in enumerate(zip(result, before, groups, strict=True)):
        assert grad.dtype == own.dtype
        assert grad.shape == own.shape
        if seed is None:
            assert torch.equal(grad.cpu(), scaled(own, factors[group])), number
            continue
        value = own.cpu().double()
        deviation = (value.std().item() if value.numel() > 1 else 0.0) + 1e-8
        noise = reference.philox_normal(seed.cpu(), number, value.numel()).double().view(value.shape)
        wanted = factors[group].item() * value + deviation * noise
        # Besides the noise: k and the deviation, both products and the sum are rounded to the accumulation type, the
        # result to its own.
        wide = torch.finfo(reference.accumulation_dtype(own.dtype)).eps
        parts = (factors[group].item() * value).abs() + deviation * noise.abs()
        allowed = NORMAL_TOLERANCE * deviation + 2 * wide * parts + torch.finfo(own.dtype).eps * wanted.abs()
        allowed += torch.finfo(own.dtype).smallest_normal * torch.finfo(own.dtype).eps
        off = (grad.cpu().double() - wanted).abs()
        assert (off <= allowed).all(), (number, (off - allowed).max())


def run(room: Room, grads: list[Tensor], seed: Tensor | None, groups: list[int] | None = None) -> None:
    """Runs the op on `grads` and compares all of them."""
    op = room.op("scale_gradients_")
    groups = groups_of(grads) if groups is None else groups
    factors, before = coefficients(room), [grad.clone() for grad in grads]
    places = [(grad.data_ptr(), grad.stride()) for grad in grads]
    assert op(grads, groups, factors, seed) is None
    assert [(grad.data_ptr(), grad.stride()) for grad in grads] == places
    check(grads, before, groups, factors, seed)
    assert torch.equal(factors, coefficients(room))


def seed_on(room: Room, noise: bool, value: int = -(2**62) - 12345) -> Tensor | None:
    return torch.tensor([value], device=room.device) if noise else None


@pytest.fixture(params=[False, True], ids=["plain", "noise"])
def noise(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers(room: Room, dtype: torch.dtype, noise: bool) -> None:
    grads = [logits(size, dtype=dtype, device=room.device, seed=size) for size in SIZES]
    run(room, grads, seed_on(room, noise))


def test_hundreds_of_small_tensors_of_all_dtypes(room: Room, noise: bool) -> None:
    """More of each type than one launch takes, of several groups, in any order."""
    grads = [logits(i % 23, dtype=DTYPES[i % 4], device=room.device, seed=i) for i in range(601)]
    run(room, grads, seed_on(room, noise), [i * 7 % 3 for i in range(601)])


def test_a_large_tensor_among_small_ones(room: Room, noise: bool) -> None:
    sizes = [3, 70001, 1, 8, 20011]
    grads = [logits(size, dtype=torch.float32, device=room.device, seed=size) for size in sizes]
    run(room, grads, seed_on(room, noise))


def test_more_chunks_than_a_gpu_takes_of_one_tensor(room: Room, noise: bool) -> None:
    grad = logits(512 * 8192 + 5, dtype=torch.bfloat16, device=room.device)
    run(room, [grad], seed_on(room, noise))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ALL_LAYOUTS)
def test_layouts(room: Room, layout: str, dtype: torch.dtype, noise: bool) -> None:
    """The noise of an element follows from its place in the tensor, not in memory."""
    shapes = [(6, 40), (5, 129, 7), (3, 5, 3, 3), (2, 3, 1, 5)]
    plain = [logits(*shape, dtype=dtype, device=room.device, seed=i) for i, shape in enumerate(shapes)]
    run(room, [ALL_LAYOUTS[layout](grad) for grad in plain], seed_on(room, noise))


def test_what_lies_between_the_elements_is_left_alone(room: Room, noise: bool) -> None:
    whole = torch.full((20, 20), 7.0, device=room.device)
    grad = whole[1:-1:3, 2:-2:2]
    inside = torch.zeros_like(whole, dtype=torch.bool)
    inside[1:-1:3, 2:-2:2] = True
    run(room, [grad], seed_on(room, noise))
    assert (whole[~inside] == 7).all()
    assert (grad != 7).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half(room: Room, dtype: torch.dtype) -> None:
    """All 65,536 of them: subnormals, overflows to infinity, ties in the rounding, NaNs of every kind."""
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(dtype).to(room.device)
    factors = torch.tensor([1.0, -1 / 3, 3e-5, 9e-8, 70.0, 4e38, 0.0], dtype=torch.float64, device=room.device)
    grads = [every.clone() for _ in factors]
    room.op("scale_gradients_")(grads, list(range(len(factors))), factors, None)
    for grad, factor in zip(grads, factors, strict=True):
        torch.testing.assert_close(grad.cpu(), scaled(every, factor), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_deviation_of_numbers_far_from_zero(room: Room, dtype: torch.dtype) -> None:
    """With the coefficient 0 the noise alone is left: its deviation is the gradient's to 6 digits."""
    for mean in (0.0, 1e4, -3e4):
        grad = (logits(30011, dtype=torch.float64, device="cpu") + mean).to(device=room.device, dtype=dtype)
        deviation = grad.cpu().double().std()
        seed = torch.tensor([3], device=room.device)
        factors = torch.zeros(1, dtype=torch.float64, device=room.device)
        room.op("scale_gradients_")([grad], [0], factors, seed)
        drawn = reference.philox_normal(seed.cpu(), 0, grad.numel()).double()
        assert (grad.cpu().double().norm() / drawn.norm()).item() == pytest.approx(deviation.item(), rel=1e-6)


def test_a_constant_gradient_gets_noise_of_1e_8(room: Room) -> None:
    grads = [torch.full((size,), 0.3, device=room.device) for size in (1, 2, 9999)]
    factors = torch.zeros(1, dtype=torch.float64, device=room.device)
    room.op("scale_gradients_")(grads, [0, 0, 0], factors, torch.tensor([1], device=room.device))
    for number, grad in enumerate(grads):
        drawn = reference.philox_normal(torch.tensor([1]), number, grad.numel())
        torch.testing.assert_close(grad.cpu(), drawn * 1e-8, rtol=1e-5, atol=1e-13)


def test_the_noise_is_normal_and_independent(room: Room) -> None:
    """Of 2**18 numbers in each of four tensors that hold the same."""
    size = 2**18
    grads = [logits(size, dtype=torch.float64, device=room.device) for _ in range(4)]
    deviation = grads[0].std().item()
    op, factors = room.op("scale_gradients_"), torch.zeros(1, dtype=torch.float64, device=room.device)
    op(grads[:3], [0, 0, 0], factors, torch.tensor([17], device=room.device))
    op(grads[3:], [0], factors, torch.tensor([18], device=room.device))
    noise = torch.stack(grads).cpu() / deviation
    five = 5 / math.sqrt(size)  # standard errors of a mean of numbers of deviation 1
    assert (noise.mean(1).abs() < five).all()
    assert ((noise**2).mean(1) - 1).abs().max() < five * math.sqrt(2)
    assert (noise**3).mean(1).abs().max() < five * math.sqrt(15)
    assert ((noise**4).mean(1) - 3).abs().max() < five * math.sqrt(96)
    for limit in (1.0, 2.0, 3.0):
        share = math.erfc(limit / math.sqrt(2))
        assert ((noise.abs() > limit).double().mean(1) - share).abs().max() < five * math.sqrt(share * (1 - share))
    correlation = noise @ noise.T / size - torch.eye(4)
    assert (correlation - correlation.diag().diag()).abs().max() < five  # between tensors, between seeds
    for lag in (1, 2, 3, 4, 8):
        assert (noise[:, lag:] * noise[:, :-lag]).mean(1).abs().max() < five


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, -torch.inf, 1e4])
def test_poison_stays_in_its_tensor(room: Room, poison: float, dtype: torch.dtype, noise: bool) -> None:
    grads = [logits(300, dtype=dtype, device=room.device, seed=i) for i in range(5)]
    grads[2][77] = poison
    before, factors, seed = [grad.clone() for grad in grads], coefficients(room), seed_on(room, noise)
    room.op("scale_gradients_")(grads, [0] * 5, factors, seed)
    own = grads.pop(2)
    clean = before.pop(2)
    if math.isfinite(poison):
        assert own.isfinite().all()
    elif noise:
        assert own.isnan().all()  # there is no deviation
    else:
        torch.testing.assert_close(own.cpu(), scaled(clean, factors[0]), rtol=0, atol=0, equal_nan=True)
    if seed is None:
        check(grads, before, [0] * 4, factors, None)
    else:
        room.op("scale_gradients_")(before[:2], [0] * 2, factors, seed)
        assert torch.equal(torch.stack(grads[:2]), torch.stack(before[:2]))
        assert torch.stack(grads).isfinite().all()


@pytest.mark.parametrize("factor", [0.0, torch.nan, torch.inf])
def test_coefficients_propagate(room: Room, factor: float) -> None:
    """A coefficient of 0 does not hide what is not finite, and one that is not finite stays in its group."""
    content = torch.tensor([0.0, 1.0, -2.0, torch.nan, torch.inf], device=room.device)
    grads = [content.clone(), content.clone()]
    factors = torch.tensor([factor, 2.0], dtype=torch.float64, device=room.device)
    room.op("scale_gradients_")(grads, [0, 1], factors, None)
    torch.testing.assert_close(grads[0], content * factor, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(grads[1], content * 2, rtol=0, atol=0, equal_nan=True)


def test_empty_lists(room: Room, noise: bool) -> None:
    op = room.op("scale_gradients_")
    if room.backend != "reference":
        op([], [], coefficients(room), seed_on(room, noise))
    run(room, [torch.empty(0, 3, device=room.device), torch.empty(2, 0, device=room.device)], seed_on(room, noise))


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 2**32, 5 * 2**40 + 3])
def test_seeds(room: Room, seed: int) -> None:
    run(room, [logits(17, dtype=torch.float32, device=room.device)], seed_on(room, True, seed))


def test_same_bits_again(room: Room) -> None:
    results = []
    for _ in range(2):
        grads = [logits(size, dtype=torch.float32, device=room.device) for size in (50001, 40000, 3)]
        room.op("scale_gradients_")(grads, [0, 1, 2], coefficients(room), seed_on(room, True))
        results.append(torch.cat(grads))
    assert torch.equal(*results)


def test_same_bits_with_any_number_of_threads(noise: bool) -> None:
    room = Room("cpp", "cpu")
    op, threads, results = room.op("scale_gradients_"), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            sizes = [200003, 5, 1, 0, 65536, 70001, *range(100)]
            grads = [logits(size, dtype=DTYPES[i % 4], device="cpu", seed=i) for i, size in enumerate(sizes)]
            op(grads, groups_of(grads), coefficients(room), seed_on(room, noise))
            results.append(torch.cat([grad.double() for grad in grads]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("case", range(25))
def test_fuzz(room: Room, case: int) -> None:
    dice = random.Random(case)
    grads = []
    for number in range(dice.randrange(1, 30)):
        shape = [dice.choice([1, 2, 3, 5, 8, 17, 64]) for _ in range(dice.randrange(1, 4))]
        if dice.random() < 0.1:
            shape[-1] = 0
        grad = logits(*shape, dtype=dice.choice(DTYPES), device=room.device, seed=1000 * case + number)
        grads.append(LAYOUTS[dice.choice(list(LAYOUTS))](grad))
    groups = [dice.randrange(3) for _ in grads]
    run(room, grads, seed_on(room, dice.random() < 0.5, dice.randrange(-(2**63), 2**63)), groups)


@pytest.mark.parametrize(("layout", "noise"), [("compact", False), ("sliced", True)])
def test_registration(room: Room, layout: str, noise: bool) -> None:
    grads = [LAYOUTS[layout](logits(4, 6, dtype=dtype, device=room.device)) for dtype in DTYPES]
    torch.library.opcheck(
        room.op("scale_gradients_"), (grads, groups_of(grads), coefficients(room), seed_on(room, noise))
    )


@pytest.mark.parametrize("fault", ["group", "negative", "length", "dtype"])
def test_native_checks_come_before_any_work(fault: str) -> None:
    room = Room("cpp", "cpu")
    op = room.op("scale_gradients_")
    grads = [torch.ones(3), torch.ones(3, dtype=torch.int64 if fault == "dtype" else torch.float32)]
    groups = {"group": [0, 3], "negative": [0, -1], "length": [0], "dtype": [0, 1]}[fault]
    with pytest.raises((RuntimeError, NotImplementedError)):
        op(grads, groups, coefficients(room), None)
    assert all((grad == 1).all() for grad in grads)
