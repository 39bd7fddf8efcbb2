"""Encoders of which nobody can tell whether one pass is two: each in its own way."""

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .passes import BATCH


class Mode(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1.0 if self.training else x


class ModeByName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + getattr(self, "training")  # noqa: B009


class ModeInProperty(nn.Module):
    @property
    def shift(self) -> float:
        return float(self.training)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift


class ModeOfAnother(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer.training


def shifted(module: nn.Module, x: Tensor) -> Tensor:
    return x + module.training


class ModeInAFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return shifted(self, x)


class ModeInAClosure(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum(map(lambda part: part * self.training, [x]))


class ModeInABase(Mode):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2.0


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.dropout(x), 0.1)


class NoChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = F.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(x)


class FunctionalNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, None, None, True)


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Chance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.9 else x * 2.0


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = [nn.Dropout(0.1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](x)


class Recomputing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=False)


class Norm(nn.BatchNorm1d):
    pass


class Hooked(nn.Linear):
    def __init__(self, hook: str) -> None:
        super().__init__(4, 4)
        getattr(self, f"register_{hook}")(lambda *_: None)


class Replaced(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 4)
        self.forward = lambda x: x * 2.0  # type: ignore[method-assign]


class Mixing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - 1e-6 * x.mean(0)


class Picking(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * x[x > 0].sum()


class Tracking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1.0)
        return x


class Positional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[: BATCH + 1], x[BATCH + 1 :] * 2.0])


class LenBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if len(x) == BATCH else x


class CountBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if x.shape[0] > 6 else x


class CountNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) / x.size(0)


class Swallowing(nn.Module):
    """Goes on where something fails."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return x - x.mean(0)
        except Exception:
            return x


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad - grad.mean(0)


class OwnBackward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(self.linear(x)) * 2.0


class NumpyChance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if np.random.rand() < 0.9 else x * 2.0


class Queue(nn.Module):
    """Keeps features of past batches in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(13, 4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        self.queue[: len(x)] = x.detach()
        return x


class Storing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


class DropsAlways(nn.Module):
    """A dropout that eval mode does not switch off."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, True)


class AttendsAlways(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        p = 0.3 if self.training else 0.2
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p).squeeze(1)


class NormsAlways(nn.Module):
    """A norm that eval mode does not switch off."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)


class ToNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2.0) + 0.0 * x


class Sorting(nn.Module):
    """Samples in the order of what they are."""

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return x[order]


class ThroughBooleans(nn.Module):
    """Rows meet where no number that is none would show."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 0.0).any(0)


class OnTime(nn.Module):
    """Ends early by the values of its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x if (x.abs() < 100.0).all() else x * 2.0
