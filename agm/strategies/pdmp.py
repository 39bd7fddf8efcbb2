"""Performance-dominant modality prioritization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_count, check_number
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Strategy
from agm.strategies.teachers import MakeOptimizer, new_teachers, sgd, teach

__all__ = ["PDMP"]


class PDMP(Strategy):
    """PDMP (Wei et al., "PDMP: Rethinking Balanced Multimodal Learning via Performance-Dominant Modality
    Prioritization", arXiv 2604.05773): the modality that does best alone is to lead.

        k_m = gamma_p  for the modality whose unimodal network is the most accurate,  gamma_r  for the rest

    and the gradient of encoder m is multiplied by k_m.

    Source: the paper's abstract and its settings' names, no code. What is ours: the default values, which the authors
    tune for each dataset; that accuracy on the validation split ranks; and the unimodal networks where `dominant` is
    not given, trained at the first epoch of the window: a copy of each encoder with the weights of that moment and a
    linear head, for `ranking_epochs`. Of equals the first one leads.

    Args:
        network: see `Strategy`.
        dominant: the modality that does best alone, if that is known; nothing is trained to find it then.
        gamma_p: of that modality, >= 0; 2, ours.
        gamma_r: of the others, >= 0; 1, ours.
        ranking_epochs: of each unimodal network; 5, ours.
        make_optimizer: parameters -> optimizer of one; SGD with learning rate 0.01 and momentum 0.9 by default.
        num_classes, widths: of the network, where it does not say them and `dominant` is to be found.
        common: see `Strategy`.

    Attributes:
        accuracies: (M,) float64, of the unimodal networks on the validation split; NaN before they are measured.

    Raises:
        ValueError: `dominant` is no modality; or none and a network that does not say its widths and classes.

    Example:
        >>> strategy = PDMP(network, dominant="audio", gamma_p=2.0)
    """

    scales = True
    why_alone = "it trains networks of single modalities on each process's own share"
    accuracies: Tensor
    place: Tensor  # () int64 of the dominant modality; -1 before it is known

    def __init__(
        self,
        network: nn.Module,
        *,
        dominant: str | None = None,
        gamma_p: float = 2.0,
        gamma_r: float = 1.0,
        ranking_epochs: int = 5,
        make_optimizer: MakeOptimizer | None = None,
        num_classes: int | None = None,
        widths: Mapping[str, int] | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.gamma_p, self.gamma_r = check_number("gamma_p", gamma_p), check_number("gamma_r", gamma_r)
        self.ranking_epochs = check_count("ranking_epochs", ranking_epochs)
        self.make_optimizer = make_optimizer or sgd
        known: Any = self.network
        self._widths = dict(widths or getattr(known, "widths", None) or {})
        self._num_classes = num_classes or getattr(known, "num_classes", None) or 0
        place = -1
        if dominant is not None:
            place = self.modalities.index(check_choice("dominant", dominant, self.modalities))
        elif not self._widths or not self._num_classes:
            raise ValueError(
                "Expected argument `dominant`, or `widths` and `num_classes` to find it for a network that does not "
                f"say them, but got {self._widths!r} and {self._num_classes!r}."
            )
        else:
            self.needs = frozenset({"train", "validation"})
        count = len(self.modalities)
        self.register_buffer("accuracies", torch.full((count,), torch.nan, dtype=torch.float64))
        self.register_buffer("place", torch.tensor(place))

    @property
    def extra_epochs(self) -> int:
        return 0 if bool(self.accuracies.isnan().all()) else self.ranking_epochs

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        if self.active and int(self.place) < 0:
            self._rank(self.required(train, "train"), self.required(validation, "validation"))

    def modulate(self, batch: Batch) -> None:
        leads = torch.arange(len(self.modalities), device=self.place.device) == self.place
        coefficients = torch.where(leads, self.gamma_p, self.gamma_r)
        self.scale(coefficients)
        self.latest = {"score": self.accuracies, "coefficient": coefficients}

    def _rank(self, train: Batches, validation: Batches) -> None:
        for place, (name, teacher) in enumerate(new_teachers(self.parts, self._widths, self._num_classes).items()):
            teach(teacher, name, self.parts, train, self.ranking_epochs, self.criterion, self.make_optimizer)
            self.accuracies[place] = self._accuracy(name, teacher, validation)
        self.place.copy_(self.accuracies.argmax())

    @torch.no_grad()
    def _accuracy(self, name: str, teacher: nn.Module, validation: Batches) -> float:
        hits = samples = 0
        for inputs, target, *_ in validation:
            logits = self.parts.called(teacher, name, self.parts.taken(inputs)[name])
            hits += int(logits.argmax(-1).eq(target).sum())
            samples += len(target)
        if not samples:
            raise ValueError("Expected the validation split to hold a sample or more, but got none.")
        return hits / samples
