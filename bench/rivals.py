"""What people write instead: the published recipe of AGM, pass by pass and sample by sample.

Each rival computes AGM exactly; the tests replay the recorded training runs against it, so its time means something.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm


class _Scale(torch.autograd.Function):
    """The identity whose gradient is multiplied by a number: a backward hook on a response."""

    @staticmethod
    def forward(ctx, x: Tensor, coefficient: float) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        return grad * ctx.coefficient, None


class Sequential:
    """2**M - 1 passes one after another, then scores in a loop over samples, a synchronisation at each."""

    def __init__(self, network: nn.Module, modalities: tuple[str, ...], alpha: float, max_gap: float = 10.0) -> None:
        self.network, self.modalities = network, modalities
        self.alpha, self.max_gap = alpha, max_gap
        self.weights = agm.subset_weights(len(modalities)).tolist()
        self.running = [0.0] * len(modalities)
        self.steps = 0
        self.coefficients: list[float] = []

    def __call__(self, target: Tensor, **inputs: Tensor) -> Tensor:
        masked = self._masked(inputs)
        responses = [sum(w * z for w, z in zip(row, masked, strict=True)) for row in self.weights]
        self.coefficients = self._coefficients([self._score(phi, target) for phi in responses])
        return sum(_Scale.apply(phi, k) for phi, k in zip(responses, self.coefficients, strict=True))

    def _masked(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        joint = self.network(**inputs)
        self.network.eval()
        rows = []
        for subset in range(1, 2 ** len(self.modalities) - 1):
            present = {
                name: inputs[name] if subset >> m & 1 else torch.zeros_like(inputs[name])
                for m, name in enumerate(self.modalities)
            }
            rows.append(self.network(**present))
        self.network.train()
        return [*rows, joint]

    @staticmethod
    def _score(response: Tensor, target: Tensor) -> float:
        probabilities = F.softmax(response, dim=1)
        total = 0.0
        for i in range(len(target)):
            total += -math.log(max(probabilities[i][target[i]].item(), 1e-8))
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
