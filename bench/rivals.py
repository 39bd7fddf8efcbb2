"""What people write instead, each in the way in which they write it.

`Sequential`, `Vectorised` and `Compiled` compute AGM: the tests replay the recorded training runs against them, so
their time means something. `ParameterScaling` computes something else, and says so.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.ops import reference

FLOOR = 1e-8


class _Scale(torch.autograd.Function):
    """The identity whose gradient is multiplied by a number: a backward hook on a response."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.coefficient, None


class _ScaleRows(torch.autograd.Function):
    """The joint logits forward; backward, the reference's."""

    @staticmethod
    def forward(ctx: Any, masked: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(scales)
        return masked[-1].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return reference.modulate_backward(grad, ctx.saved_tensors[0]), None


class _Passes:
    """2**M - 1 passes of the whole network one after another: the joint one, then the masked ones in eval mode."""

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], alpha: float, max_gap: float = 10.0) -> None:
        self.network, self.modalities = network, modalities
        self.alpha, self.max_gap = alpha, max_gap

    def __call__(self, target: Tensor, **inputs: Tensor) -> Tensor:
        return self.modulate(self._masked(inputs), target)

    def modulate(self, masked: list[Tensor], target: Tensor) -> Tensor:
        """Joint logits (B, C) whose backward is modulated, from one (B, C) a subset, the last the joint logits."""
        raise NotImplementedError

    def _masked(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        joint = self.network(**inputs)
        return [*self._proper_subsets(inputs), joint]

    def _proper_subsets(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        self.network.eval()
        rows = []
        for subset in range(1, 2 ** len(self.modalities) - 1):
            present = {
                name: inputs[name] if subset >> m & 1 else torch.zeros_like(inputs[name])
                for m, name in enumerate(self.modalities)
            }
            rows.append(self.network(**present))
        self.network.train()
        return rows


class Sequential(_Passes):
    """The published recipe: scores in a loop over samples, a synchronisation at each."""

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], alpha: float, max_gap: float = 10.0) -> None:
        super().__init__(network, modalities, alpha, max_gap)
        self.weights = agm.subset_weights(len(modalities)).tolist()
        self.running = [0.0] * len(modalities)
        self.steps = 0
        self.coefficients: list[float] = []

    def modulate(self, masked: list[Tensor], target: Tensor) -> Tensor:
        responses = [sum(w * z for w, z in zip(row, masked, strict=True)) for row in self.weights]
        self.coefficients = self._coefficients([self._score(phi, target) for phi in responses])
        logits: Tensor = sum(_Scale.apply(phi, k) for phi, k in zip(responses, self.coefficients, strict=True))
        return logits

    @staticmethod
    def _score(response: Tensor, target: Tensor) -> float:
        probabilities = F.softmax(response, dim=1)
        total = 0.0
        for i in range(len(target)):
            total += -math.log(max(probabilities[i][target[i]].item(), FLOOR))
        return total / len(target)

    def _coefficients(self, scores: list[float]) -> list[float]:
        self.steps += 1
        ratios, references = self._ratios(scores), self._ratios(self.running)
        t = self.steps
        self.running = [r * (t - 1) / t + s / t for r, s in zip(self.running, scores, strict=True)]
        return [math.exp(self.alpha * min(tau - r, self.max_gap)) for r, tau in zip(ratios, references, strict=True)]

    @staticmethod
    def _ratios(scores: list[float]) -> list[float]:
        return [math.exp(sum(s - own for s in scores) / (len(scores) - 1)) for own in scores]


class Vectorised(_Passes):
    """The same passes; scores, coefficients and responses as tensors, with nothing read by the host."""

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], alpha: float, max_gap: float = 10.0) -> None:
        super().__init__(network, modalities, alpha, max_gap)
        device = next(network.parameters(), torch.empty(0)).device
        self.weights = agm.subset_weights(len(modalities), device=device)
        self.running = torch.zeros(len(modalities), dtype=torch.float64, device=device)
        self.coefficients = torch.ones_like(self.running)
        self.steps = 0

    def modulate(self, masked: list[Tensor], target: Tensor) -> Tensor:
        rows = torch.stack(masked)
        responses = torch.einsum("ms,sbc->mbc", self.weights.to(rows.dtype), rows)
        with torch.no_grad():
            self.coefficients = kappa = self._coefficients(self._scores(responses, target))
        if responses.requires_grad:
            responses.register_hook(lambda grad: grad * kappa.to(grad.dtype)[:, None, None])
        return responses.sum(0)

    @staticmethod
    def _scores(responses: Tensor, target: Tensor) -> Tensor:
        index = target.expand(len(responses), -1).unsqueeze(-1)
        picked = F.log_softmax(responses, dim=-1).gather(-1, index)
        return (-picked).clamp(max=-math.log(FLOOR)).double().mean((1, 2))

    def _coefficients(self, scores: Tensor) -> Tensor:
        self.steps += 1
        ratios, references = self._ratios(scores), self._ratios(self.running)
        self.running = self.running * ((self.steps - 1) / self.steps) + scores / self.steps
        return (self.alpha * (references - ratios).clamp(max=self.max_gap)).exp()

    @staticmethod
    def _ratios(scores: Tensor) -> Tensor:
        return ((scores.sum() - len(scores) * scores) / (len(scores) - 1)).exp()


class Constant:
    """A function of the reference under `torch.compile`, the table of Shapley weights being a constant.

    Dynamo does not see caches: it would build the table anew in every call, which nobody wants to compare with.

    Args:
        function: what is compiled, for static shapes.
        backend: of `torch.compile`.
    """

    def __init__(self, function: Callable[..., Any], backend: str = "inductor") -> None:
        self.compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, *args: Any) -> Any:
        _module.weights_on = _weights_on
        try:
            return self.compiled(*args)
        finally:
            _module.weights_on = _cached


_module: Any = sys.modules["agm.ops.reference.modulate"]  # the package has a function by its name
_cached = _module.weights_on


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _weights_on(device: torch.device, modalities: int) -> Tensor:
    weights: Tensor = _cached(device, modalities)
    return weights


def _reference_step(
    masked: Tensor, target: Tensor, values: Tensor, counts: Tensor, alpha: float, max_gap: float
) -> Tensor:
    scales = reference.modulate(masked.detach(), target, values, counts, alpha, max_gap, FLOOR, -100, True)
    result: Tensor = _ScaleRows.apply(masked, scales)
    return result


class Compiled(_Passes):
    """The same passes; what follows is `agm.ops.reference` under `torch.compile`.

    Args:
        backend: of `torch.compile`.
    """

    def __init__(
        self,
        network: nn.Module,
        modalities: tuple[str, ...],
        alpha: float,
        max_gap: float = 10.0,
        *,
        backend: str = "inductor",
    ) -> None:
        super().__init__(network, modalities, alpha, max_gap)
        self.state = agm.ModulationState(len(modalities), device=next(network.parameters(), torch.empty(0)).device)
        self._step = Constant(_reference_step, backend)

    @property
    def coefficients(self) -> Tensor:
        return self.state.coefficients

    def modulate(self, masked: list[Tensor], target: Tensor) -> Tensor:
        state = self.state.values, self.state.counts
        logits: Tensor = self._step(torch.stack(masked), target, *state, self.alpha, self.max_gap)
        return logits


class ParameterScaling(Vectorised):
    """Not AGM: no gradient flows through a masked pass; the joint loss's parameter gradients are multiplied instead.

    Each parameter by the coefficient of the modality that its name names; those of the fusion keep their gradients.
    The recipe of a toolkit of this field. Call `scale()` between `backward` and the optimizer's step.
    """

    def __call__(self, target: Tensor, **inputs: Tensor) -> Tensor:
        joint: Tensor = self.network(**inputs)
        with torch.no_grad():
            masked = torch.stack([*self._proper_subsets(inputs), joint])
            responses = torch.einsum("ms,sbc->mbc", self.weights.to(masked.dtype), masked)
            self.coefficients = self._coefficients(self._scores(responses, target))
        return joint

    def scale(self) -> None:
        for name, parameter in self.network.named_parameters():
            for modality, kappa in zip(self.modalities, self.coefficients, strict=True):
                if is_of(name, modality) and parameter.grad is not None:
                    parameter.grad.mul_(kappa.to(parameter.grad.dtype))


def is_of(parameter: str, modality: str) -> bool:
    """Whether a parameter's name says that it belongs to a modality: "encoders.audio.conv1.weight", "audio_net.0"."""
    return any(part.removesuffix("_net").removesuffix("_encoder") == modality for part in parameter.split("."))
