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

__all__ = ["MakeOptimizer", "Teacher", "UnimodalTeacher", "new_teachers", "sgd", "teach"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class Teacher(nn.Module):
    """An encoder and a head: logits (B, C) of one modality's input.

    Args:
        encoder: gives its feature.
        head: takes it.

    Example:
        >>> strategy = UMT(network, teachers={"audio": Teacher(audio_net, nn.Linear(512, 6)), "image": image_teacher})
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def both(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The feature and the logits (B, C), from what the encoder takes."""
        feature = self.encoder(*args, **kwargs)
        return feature, self.head(feature)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C), from what the encoder takes."""
        return self.both(*args, **kwargs)[1]


class UnimodalTeacher(nn.Module):
    """A network with `encoders` and `fuse` of one modality, called as a `Teacher` is.

    Args:
        network: such as `unimodal:NAME` trains.
        name: of its modality.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def both(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The feature and the logits (B, C), from what the encoder takes."""
        network: Any = self.network
        feature = network.encoders[self.name](*args, **kwargs)
        return feature, network.fuse({self.name: feature})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C), from what the encoder takes."""
        return self.both(*args, **kwargs)[1]


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
        teacher: takes the input of the modality `name`. What is frozen in that encoder is frozen in a `Teacher`'s.
        name: of the modality.
        parts: which know how its input is passed.
        batches: of (inputs, target, ...).
        epochs: passes over them.
        criterion: logits (B, C), target (B,) -> loss ().
        make_optimizer: parameters -> their optimizer.
    """
    teacher.train().requires_grad_(True)
    if isinstance(teacher, Teacher):
        for own, like in zip(teacher.encoder.parameters(), parts.encoders[name].parameters(), strict=True):
            own.requires_grad_(like.requires_grad)
    optimizer = make_optimizer(p for p in teacher.parameters() if p.requires_grad)
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
