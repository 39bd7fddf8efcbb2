"""Networks of single modalities, trained apart from the network that a strategy balances."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from agm.strategies.batch import Criterion
from agm.strategies.heads import linear_heads
from agm.strategies.measuring import Batches
from agm.strategies.parts import Parts

__all__ = ["MakeOptimizer", "Teacher", "new_teachers", "sgd", "teach"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Teacher(nn.Module):
    """An encoder and a head: logits (B, C) of one modality's input.

    Args:
        encoder: gives its feature.
        head: takes it.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C), from what the encoder takes."""
        logits: Tensor = self.head(self.encoder(*args, **kwargs))
        return logits


def new_teachers(parts: Parts, widths: Mapping[str, int], num_classes: int) -> dict[str, nn.Module]:
    """Modality -> a copy of its encoder, with the weights of now, and a new linear head."""
    like = next(parts.network.parameters())
    heads = linear_heads(widths, num_classes)
    return {name: Teacher(copy.deepcopy(parts.encoders[name]), heads[name].to(like)) for name in parts.modalities}


def teach(
    teacher: nn.Module,
    name: str,
    parts: Parts,
    batches: Batches,
    epochs: int,
    criterion: Criterion,
    make_optimizer: MakeOptimizer,
) -> None:
    """Trains a network on one modality; afterwards it is in eval mode, and needs no gradient.

    Args:
        teacher: takes the input of the modality `name`.
        name: of the modality.
        parts: which know how its input is passed.
        batches: of (inputs, target, ...).
        epochs: passes over them.
        criterion: logits (B, C), target (B,) -> loss ().
        make_optimizer: parameters -> their optimizer.
    """
    teacher.train().requires_grad_(True)
    optimizer = make_optimizer(teacher.parameters())
    for _ in range(epochs):
        for inputs, target, *_ in batches:
            optimizer.zero_grad()
            criterion(parts.called(teacher, name, parts.taken(inputs)[name]), target).backward()
            optimizer.step()
    teacher.eval().requires_grad_(False)
    for parameter in teacher.parameters():
        parameter.grad = None


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    """SGD with learning rate 0.01 and momentum 0.9."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
