"""The fused linear head against logits that are made: time, and what lives at the peak of a forward and backward."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import agm
from agm.modulation.linear import fused_modulate_linear_cross_entropy
from bench.cases import Built, Case, Notes, Options
from bench.memory import resident, step_peak

BASELINE = "joint chunked"
OWN = ("fused",)
# (M, N, D, C): tokens, hidden size, classes
SHAPES = {"cpu": ((2, 1024, 256, 32768), (3, 1024, 256, 32768)), "cuda": ((2, 8192, 2048, 131072),)}
QUICK_SHAPES = ((2, 256, 64, 8192),)


class _Chunked(torch.autograd.Function):
    """The linear cross-entropy of one pass, its gradients made chunk by chunk in the forward, as Liger-Kernel does."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        loss = hidden.new_zeros(())
        rows = max(128, -(-hidden.numel() // len(weight)))
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = (hidden[part] @ weight.T).float()
            log_sum = logits.logsumexp(1, keepdim=True)
            loss += (log_sum.squeeze(1) - logits.gather(1, target[part, None]).squeeze(1)).sum()
            gradient = logits.sub_(log_sum).exp_()
            gradient.scatter_add_(1, target[part, None], gradient.new_full((len(gradient), 1), -1.0))
            gradient = gradient.div_(len(hidden)).to(hidden.dtype)
            grad_hidden[part] = gradient @ weight
            grad_weight.addmm_(gradient.T, hidden[part])
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grad), grad_weight.mul_(grad), None


def cases(options: Options) -> Iterator[Case]:
    shapes = QUICK_SHAPES if options.quick else SHAPES[options.device.type]
    for shape in shapes:
        if not options.modalities or shape[0] in options.modalities:
            yield case(shape, options)


def case(shape: tuple[int, int, int, int], options: Options) -> Case:
    modalities, rows, width, classes = shape
    dtype = torch.bfloat16 if options.device.type == "cuda" else torch.float32
    text = f"M={modalities} N={rows} D={width} C={classes}"
    facts = {"op": "modulate_linear_cross_entropy", "shape": text, "dtype": str(dtype).removeprefix("torch.")}
    return Case(facts, BASELINE, OWN, lambda: build(shape, dtype, options))


def build(shape: tuple[int, int, int, int], dtype: torch.dtype, options: Options) -> Built:
    modalities, rows, width, classes = shape
    made: dict[str, Any] = {"device": options.device, "dtype": dtype}
    hidden = torch.randn(2**modalities - 1, rows, width, **made).requires_grad_()
    joint = hidden.detach()[-1].clone().requires_grad_()
    weight = (torch.randn(classes, width, **made) / width**0.5).requires_grad_()
    target = torch.randint(classes, (rows,), device=options.device)
    state = agm.ModulationState(modalities, device=options.device)

    def fused() -> object:
        loss = fused_modulate_linear_cross_entropy(hidden, weight, target, state, alpha=1.5)
        return torch.autograd.grad(loss, (hidden, weight))

    def materialised() -> object:
        loss, _ = agm.fused_modulate_cross_entropy(F.linear(hidden, weight), target, state, alpha=1.5)
        return torch.autograd.grad(loss, (hidden, weight))

    def joint_chunked() -> object:
        return torch.autograd.grad(_Chunked.apply(joint, weight, target), (joint, weight))

    def joint_materialised() -> object:
        return torch.autograd.grad(F.cross_entropy(F.linear(joint, weight), target), (joint, weight))

    every = {
        BASELINE: joint_chunked,
        "fused": fused,
        "materialised": materialised,
        "joint materialised": joint_materialised,
    }
    variants = {name: call for name, call in every.items() if name == BASELINE or options.takes(name)}

    def notes() -> Notes:
        inputs = {name: [joint if name.startswith("joint") else hidden, weight, target] for name in variants}
        return {
            name: {"peak": step_peak(call, options.device) + resident(inputs[name])} for name, call in variants.items()
        }

    return Built(variants, notes)


def extras(row: Mapping[str, Any]) -> str:
    return f"peak {row['peak'] / 2**20:.0f} MiB"
