"""Rescaling the parameter gradients of real networks, as strategies that work on them do after every backward."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from agm.ops import _backends
from bench.cases import Built, Case, Options
from bench.head import extras, rates
from bench.networks import NETWORKS
from bench.shared import samples

__all__ = ["cases", "extras", "gradients", "variants"]

BASELINE = "reference"
OWN = ("cuda", "triton", "cpp", "reference")
NETWORKS_OF_CASES = {
    "2 x ResNet-18": ("av-mnist", 2),
    "3 x transformer": ("ur-funny", 3),
    "2 x small CNN": ("small", 2),
}


def cases(options: Options) -> Iterator[Case]:
    for text, (network, count) in NETWORKS_OF_CASES.items():
        if network in (options.networks or (("small",) if options.quick else ("av-mnist", "ur-funny", "small"))):
            for noise in (False, True):
                yield _case(text + (", noise" if noise else ""), network, count, noise, options)


def gradients(network: str, count: int, device: torch.device) -> tuple[list[Tensor], list[int]]:
    """A tensor each parameter of the encoders, and the modality that each belongs to."""
    encoders = [encoder.make("mean") for encoder in NETWORKS[network].modalities(count).values()]
    shapes = [(tuple(p.shape), group) for group, encoder in enumerate(encoders) for p in encoder.parameters()]
    grads = [samples.logits(*shape, dtype=torch.float32, device=device.type) for shape, _ in shapes]
    return grads, [group for _, group in shapes]


def _case(shape: str, network: str, count: int, noise: bool, options: Options) -> Case:
    def build() -> Built:
        grads, groups = gradients(network, count, options.device)
        moved = 2 * sum(grad.nbytes for grad in grads)  # read and written
        calls = variants(grads, groups, count, noise, options)
        return Built(calls, lambda: rates(calls, moved, options.device))

    facts = {"op": "scale_gradients_", "shape": shape, "dtype": "float32"}
    return Case(facts, BASELINE, OWN, build)


def variants(
    grads: list[Tensor], groups: list[int], count: int, noise: bool, options: Options
) -> dict[str, Callable[[], object]]:
    """Gradients stay of the size that they are, however often they are rescaled.

    Coefficients of 1 keep them; with noise, of their own standard deviation, they would grow without bound: there the
    coefficients are nearly 0, and a gradient becomes noise of the deviation that it had. What it drifts by in k numbers
    is of the order of sqrt(rounds / 2k), so that only tiny tensors move.
    """
    device = options.device
    coefficients = torch.full((count,), 1e-3 if noise else 1.0, dtype=torch.float64, device=device)
    seed = torch.ones(1, dtype=torch.int64, device=device) if noise else None
    serving = [
        name
        for name, backend in _backends.BACKENDS.items()
        if backend.why_not("scale_gradients_", device.type) is None and not (name == "triton" and device.type == "cpu")
    ]

    def rescaled_by(name: str) -> Callable[[], object]:
        op = _backends.select("scale_gradients_", device, name)

        def call() -> None:
            if seed is not None:
                seed.add_(1)  # the same noise again and again would let a gradient grow or vanish by the same factor
            op(grads, groups, coefficients, seed)

        return call

    calls = {name: rescaled_by(name) for name in serving if name == BASELINE or options.takes(name)}
    if options.takes("loop"):
        calls["loop"] = partial(_loop, grads, groups, coefficients, noise)
    if not noise and options.takes("foreach"):
        calls["foreach"] = partial(_foreach, grads, groups, coefficients)
    return calls


def _loop(grads: list[Tensor], groups: list[int], coefficients: Tensor, noise: bool) -> None:
    """As OGM-GE's authors write it: parameter by parameter, the coefficient and the deviation read by the host."""
    factors = coefficients.tolist()
    for grad, group in zip(grads, groups, strict=True):
        if noise:
            grad.copy_(grad * factors[group] + torch.zeros_like(grad).normal_(0, grad.std().item() + 1e-8))
        else:
            grad.mul_(factors[group])


def _foreach(grads: list[Tensor], groups: list[int], coefficients: Tensor) -> None:
    """By torch's own multi-tensor product, one call a modality."""
    factors = coefficients.tolist()
    for group, factor in enumerate(factors):
        torch._foreach_mul_([grad for grad, own in zip(grads, groups, strict=True) if own == group], factor)
