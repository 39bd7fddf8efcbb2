"""What strategies have in common that learn from frozen networks of one modality each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, Unpack

import torch
from torch import Tensor, nn

from agm._passes.by_protocol import is_factorised
from agm.strategies._checks import check_count
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Strategy
from agm.strategies.teachers import MakeOptimizer, Teacher, UnimodalTeacher, new_teachers, sgd, teach

__all__ = ["Taught", "feature_errors"]


class Taught(Strategy):
    """Base of strategies with a frozen teacher a modality, which are given or trained in a first stage.

    The first stage lies before the first step of the first epoch that `teaches`: a copy of each encoder, with the
    weights of that moment, and a linear head are trained on that modality alone for `teacher_epochs`, with a new
    optimizer at the present learning rate. It costs `teacher_epochs` passes over the training split through every
    encoder, which `extra_epochs` tells. The teachers are part of the state dict; a run that is broken off in the first
    stage begins it again.

    Args:
        network: see `Strategy`.
        teachers: modality -> `Teacher`, or a network with `encoders` and `fuse` of that modality alone. A strategy
            that learns from logits takes any module from the input to logits (B, C). They are not trained, and stay in
            eval mode.
        teacher_epochs: of teachers that are not given, >= 1.
        make_optimizer: parameters -> optimizer of a teacher; SGD with learning rate 0.01 and momentum 0.9 by default.
        num_classes, widths: of the network, where it does not say them and teachers are to be made.
        common: see `Strategy`.

    Raises:
        ValueError: teachers for other modalities or without features where these are needed; or none, and a network
            that does not say its widths and classes.
    """

    why_alone = "every process would train teachers of its own"
    asks_features: ClassVar[bool] = False  # whether it learns from the teachers' features too
    trained: Tensor  # () bool, whether the teachers are

    def __init__(
        self,
        network: nn.Module,
        *,
        teachers: Mapping[str, nn.Module] | None,
        teacher_epochs: int,
        make_optimizer: MakeOptimizer | None,
        num_classes: int | None,
        widths: Mapping[str, int] | None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.teacher_epochs = check_count("teacher_epochs", teacher_epochs)
        self.make_optimizer = make_optimizer or sgd
        self.own_teachers = teachers is None
        if teachers is None:
            self.needs = self.needs | {"train"}
            made = self._copies(network, num_classes, widths)
        else:
            made = self._given(teachers)
        self.teachers = nn.ModuleDict(made).requires_grad_(False)
        self.register_buffer("trained", torch.tensor(not self.own_teachers))

    @property
    def teaches(self) -> bool:
        """Whether the present epoch needs the teachers; those in the window do by default."""
        return self.active

    @property
    def extra_epochs(self) -> int:
        return self.teacher_epochs if self.own_teachers and bool(self.trained) else 0

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teachers.eval()
        return self

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch, train=train, validation=validation)
        if self.teaches and not bool(self.trained):
            batches = self.required(train, "train")
            for name, teacher in self.teachers.items():
                assert isinstance(teacher, Teacher)
                teacher.encoder.load_state_dict(self.parts.encoders[name].state_dict())
                teach(teacher, name, self.parts, batches, self.teacher_epochs, self.criterion, self.make_optimizer)
            self.trained.fill_(True)

    @torch.no_grad()
    def taught_logits(self, batch: Batch) -> Tensor:
        """(M, B, C) of the teachers."""
        rows = [self.parts.called(self.teachers[name], name, batch.inputs[name]) for name in self.modalities]
        return torch.stack(rows)

    @torch.no_grad()
    def taught(self, batch: Batch) -> tuple[dict[str, Any], Tensor]:
        """Modality -> its teacher's feature, and the logits (M, B, C) of all teachers."""
        features, rows = {}, []
        for name in self.modalities:
            teacher: Any = self.teachers[name]
            features[name], logits = self.parts.called(teacher.both, name, batch.inputs[name])
            rows.append(logits)
        return features, torch.stack(rows)

    def _copies(self, network: Any, num_classes: int | None, widths: Mapping[str, int] | None) -> dict[str, nn.Module]:
        widths = widths or getattr(network, "widths", None)
        classes = num_classes or getattr(network, "num_classes", None)
        if not widths or not classes:
            raise ValueError(
                "Expected argument `teachers`, or `widths` and `num_classes` to make them for a network that does not "
                f"say them, but got {widths!r} and {classes!r}."
            )
        return new_teachers(self.parts, widths, int(classes))

    def _given(self, teachers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        if set(teachers) != set(self.modalities):
            raise ValueError(
                f"Expected argument `teachers` to map each of {self.modalities}, but got {tuple(teachers)}."
            )
        made: dict[str, nn.Module] = {}
        for name in self.modalities:
            teacher: Any = teachers[name]
            if is_factorised(teacher) and tuple(teacher.encoders) == (name,):
                teacher = UnimodalTeacher(teacher, name)
            if self.asks_features and not callable(getattr(teacher, "both", None)):
                raise ValueError(
                    f"Expected the teacher of {name!r} to be a Teacher(encoder, head), or a network with `encoders` "
                    f"and `fuse` of that modality alone, but got {type(teacher).__name__}. {type(self).__name__} "
                    "learns from its features too."
                )
            made[name] = teacher
        return made


def feature_errors(features: Mapping[str, Any], taught: Mapping[str, Any]) -> Tensor:
    """() sum over the modalities of the mean squared difference between its feature and its teacher's.

    Args:
        features, taught: modality -> tensor, of one shape for a modality.

    Raises:
        ValueError: they are of two shapes, or no tensors.
    """
    errors = []
    for name, feature in features.items():
        wanted = taught[name]
        if not isinstance(feature, Tensor) or not isinstance(wanted, Tensor) or feature.shape != wanted.shape:
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in (feature, wanted)]
            raise ValueError(
                f"Expected the teacher of {name!r} to give features of the shape of the network's, {shapes[0]}, but "
                f"got {shapes[1]}. Give one whose encoder is of the kind of the network's."
            )
        errors.append((feature - wanted).square().mean())
    return torch.stack(errors).sum()
