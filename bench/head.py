"""What each op costs alone, on every backend that serves it here: microseconds, and the ratio to the reference."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from measure import interleaved, summary
from torch import Tensor

from agm.ops import _backends
from agm.ops.reference import accumulation_dtype

# (M, B, C): few numbers, where calls cost more than work; the paper's datasets; large batches; large vocabularies
SHAPES = ((2, 64, 10), (2, 64, 309), (3, 64, 101), (6, 64, 101), (2, 4096, 309), (2, 64, 10000))
LARGE_SHAPES = ((2, 16384, 1024), (3, 8192, 1024), (2, 2048, 32768))  # on a GPU: beyond its caches
# Features of each modality (B, D_m) for the expansion, and shapes of parameters for the gradients.
FEATURES = ((64, (512, 512)), (16, (768, 768, 768)), (4096, (128, 128)), (2, (8, 8)))
SETTINGS = (1.5, 10.0, 1e-8, -100)


def _numbers(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def _state(modalities: int, device: torch.device) -> tuple[Tensor, Tensor]:
    values = torch.ones(5, modalities, dtype=torch.float64, device=device)
    return values, torch.ones(modalities + 4, dtype=torch.int64, device=device)


def modulation_cases(
    shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, tuple[Any, ...], int]]:
    """(op, arguments, bytes that have to be moved)."""
    modalities, batch, classes = shape
    rows, size = 2**modalities - 1, batch * classes * dtype.itemsize
    masked = _numbers(rows, batch, classes, device=device, dtype=dtype)
    target = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(0)).to(device)
    grad, scales = masked[-1].clone(), torch.linspace(-1, 1, rows, dtype=torch.float64, device=device)
    yield "modulate", (masked, target, *_state(modalities, device), *SETTINGS, True), rows * size
    yield "modulate_backward", (grad, scales), (rows + 1) * size
    step = (masked, target, *_state(modalities, device), None, *SETTINGS, 0.1, True)
    yield "modulate_cross_entropy", step, rows * size
    wide = accumulation_dtype(dtype)
    loss, normalizer = torch.ones((), device=device, dtype=wide), torch.zeros(2, batch, device=device, dtype=wide)
    normalizer[0], normalizer[1] = masked[-1].amax(1), torch.logsumexp(masked[-1].to(wide), 1) - masked[-1].amax(1)
    sums = torch.tensor([batch, classes], dtype=torch.float64, device=device)
    backward = (loss, None, grad, target, None, normalizer, sums, scales, -100, 0.1)
    yield "modulate_cross_entropy_backward", backward, (rows + 1) * size
    present, absent = masked[:modalities].clone(), masked[:modalities, 0].clone()
    additive = (present, absent, absent[0].clone(), None, target, *_state(modalities, device), *SETTINGS, True)
    yield "modulate_additive", additive, (modalities + 1) * size
    both = torch.linspace(-1, 1, 2 * modalities + 2, dtype=torch.float64, device=device).view(2, -1)
    yield "modulate_additive_backward", (grad, both, False), (modalities + 1) * size


def expansion_cases(
    batch: int, widths: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[str, tuple[Any, ...], int]]:
    present = [_numbers(batch, width, device=device, dtype=dtype) for width in widths]
    absent = [_numbers(1, width, device=device, dtype=dtype) for width in widths]
    rows = 2 ** len(widths) - 2
    size = (rows + 1) * batch * sum(widths) * dtype.itemsize
    yield "expand_subsets", (present, absent, True), size
    grad = _numbers(rows * batch, sum(widths), device=device, dtype=dtype)
    yield "expand_subsets_backward", (grad, list(widths), batch, True), size


def gradient_cases(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str, tuple[Any, ...], int]]:
    """The gradients of two ResNet-18."""
    from agm.models import ResNet18

    shapes = [tuple(parameter.shape) for _ in range(2) for parameter in ResNet18(1).parameters()]
    grads = [_numbers(*shape, device=device, dtype=dtype) for shape in shapes]
    groups = [2 * number // len(grads) for number in range(len(grads))]
    coefficients = torch.tensor([1.0, 1.0], dtype=torch.float64, device=device)
    size = 2 * sum(grad.numel() for grad in grads) * dtype.itemsize
    yield "scale_gradients_", "2 x ResNet-18", (grads, groups, coefficients, None), size
    seed = torch.ones(1, dtype=torch.int64, device=device)
    yield "scale_gradients_", "2 x ResNet-18, noise", (grads, groups, coefficients, seed), size


def cases(dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, str, tuple[Any, ...], int]]:
    """(op, shape in words, arguments, bytes that have to be moved)."""
    for shape in SHAPES + (LARGE_SHAPES if device.type == "cuda" else ()):
        for op, arguments, size in modulation_cases(shape, dtype, device):
            yield op, "M={} B={} C={}".format(*shape), arguments, size
    for batch, widths in FEATURES:
        for op, arguments, size in expansion_cases(batch, widths, dtype, device):
            yield op, f"B={batch} D={'+'.join(map(str, widths))}", arguments, size
    yield from gradient_cases(dtype, device)


def variants(op: str, arguments: tuple[Any, ...], device: torch.device) -> dict[str, Callable[[], object]]:
    """Each backend that serves the op here, by name; the interpreter is none of them."""
    serving = [
        name
        for name, backend in _backends.BACKENDS.items()
        if backend.why_not(op, device.type) is None and not (name == "triton" and device.type == "cpu")
    ]
    return {name: partial(_backends.select(op, device, name), *arguments) for name in serving}


def run(rounds: int, device: torch.device, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """Prints the table and returns its rows."""
    rows = []
    print(f"{'op':32} {'shape':24} {'backend':10} {'us':>9} {'GB/s':>7} {'over reference':>15} {'20 %':>6} {'80 %':>6}")
    for op, shape, arguments, size in cases(dtype, device):
        seconds = interleaved(variants(op, arguments, device), rounds, device)
        for name, values in seconds.items():
            row = {"suite": "head", "op": op, "shape": shape, "dtype": str(dtype), "backend": name, "bytes": size}
            row |= summary(values, seconds["reference"])
            rows.append(row)
            ratios = f"{row['ratio']:15.3f} {row['ratio_20']:6.3f} {row['ratio_80']:6.3f}"
            rate = size / row["seconds"] / 1e9
            print(f"{op:32} {shape:24} {name:10} {1e6 * row['seconds']:9.1f} {rate:7.1f} {ratios}", flush=True)
    return rows
