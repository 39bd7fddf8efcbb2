"""Sample-level modality valuation, and resampling by it."""

from __future__ import annotations

from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from agm.ops.reference import responses
from agm.strategies._checks import check_choice, check_count, check_number
from agm.strategies.measuring import Batches, by_number
from agm.strategies.parts import evaluation
from agm.strategies.strategy import Common, Draw, Strategy

__all__ = ["Valuation", "modality_values"]


class Valuation(Strategy):
    """Sample-level Modality Valuation (Wei et al., "Enhancing Multimodal Cooperation via Sample-level Modality
    Valuation", CVPR 2024): samples in which a modality says little are trained on that modality alone once more.

    After each epoch from the last of the warm-up on, in eval mode over the whole training set:

        v(S)  = |S| if the network on the modalities in S (features of the others 0) names the class, else 0
        phi_m = the Shapley value of modality m in the game v, of each sample

    and the next epoch has all samples, and besides,

    - at sample level: 3, 2, 1 or 0 copies of the sample with modality m alone, for phi_m below -0.1, up to 0.4, below
      1, and above; of each modality;
    - at modality level (two modalities): with p the mean phi of `part_ratio * N` samples, int(2/3 |p_a - p_v| alpha N)
      samples with only the modality of the smaller p. The subset and the samples are drawn with replacement.

    A modality is dropped by zeros in the place of its feature; in training its encoder still sees the sample. The
    paper leaves the number of copies to a decreasing function of phi_m; these steps are the released code's.

    Args:
        network: see `Strategy`.
        level: "sample" or "modality".
        warmup: epochs before the first resampled one, >= 1; 5 in the released code.
        part_ratio: of the samples that are valued at modality level; 0.2.
        alpha: of the amount at modality level; 1.
        common: see `Strategy`.

    Attributes:
        values: (N, M) float64 of the last valuation, by the number of the sample; None before it.

    Raises:
        ValueError: modality level with more than two modalities, for which the paper has no amount.

    Example:
        >>> strategy = Valuation(network, level="sample")
        >>> strategy.end_epoch(train=numbered_loader)        # of (inputs, target, index)
        >>> draw = strategy.draw(torch.randperm(samples))    # numbers of samples, and which modalities of each
    """

    needs = frozenset({"train", "index"})

    def __init__(
        self,
        network: nn.Module,
        *,
        level: Literal["sample", "modality"] = "sample",
        warmup: int = 5,
        part_ratio: float = 0.2,
        alpha: float = 1.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.level = check_choice("level", level, ("sample", "modality"))
        self.warmup = check_count("warmup", warmup)
        self.part_ratio, self.alpha = check_number("part_ratio", part_ratio), check_number("alpha", alpha)
        if level == "modality" and len(self.modalities) != 2:
            raise ValueError(
                f"Expected two modalities for level 'modality', whose amount is a difference of two, but got "
                f"{len(self.modalities)}. Use level='sample'."
            )
        self.values: Tensor | None = None
        self._list: Draw | None = None

    def draw(self, order: Tensor) -> Draw:
        if self._list is None or not self.active:
            return Draw(order)
        places = self.draws.permutation(len(self._list.index), order.device)
        present = self._list.present
        assert present is not None
        return Draw(self._list.index.to(order.device), present.to(order.device)).take(places)

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        # Those of the epoch that follows.
        if self.epoch + 1 < self.start + self.warmup or (self.stop is not None and self.epoch + 1 >= self.stop):
            return
        self.values = self._valued(self.required(train, "train"))
        samples, modalities = self.values.shape
        device = self.values.device
        whole = torch.arange(samples, device=device)
        one = torch.eye(modalities, dtype=torch.bool, device=device)
        if self.level == "sample":
            copies = _copies(self.values)
            index = whole.repeat_interleave(copies.sum(1))
            kept = one.repeat(samples, 1).repeat_interleave(copies.flatten(), 0)
        else:
            index = self._more_of_the_weaker(self.values)
            kept = one[int(self.mean_values[0] >= self.mean_values[1])].expand(len(index), -1)
        self._list = Draw(torch.cat([whole, index]), torch.cat([torch.ones_like(one[:1]).expand(samples, -1), kept]))

    def _more_of_the_weaker(self, values: Tensor) -> Tensor:
        samples, device = len(values), values.device
        subset = self.draws.with_replacement(samples, int(self.part_ratio * samples), device)
        self.mean_values = values[subset].mean(0)
        first, second = self.mean_values.tolist()
        amount = 2 / 3 * abs(first - second) * self.alpha
        return self.draws.with_replacement(samples, int(amount * samples), device)

    def _valued(self, train: Batches) -> Tensor:
        """(N, M) float64, by the number of the sample."""

        def value(inputs: Any, target: Tensor) -> Tensor:
            with evaluation(self.network):
                features, _ = self.parts.run(inputs)
                logits = self.parts.subset_logits(inputs, features)
            return modality_values(logits.argmax(-1).eq(target))

        return by_number(train, value)

    def get_extra_state(self) -> dict[str, Any]:
        drawn = self._list
        return {} if drawn is None else {"index": drawn.index, "present": drawn.present}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._list = Draw(state["index"], state["present"]) if state else None


def modality_values(correct: Tensor) -> Tensor:
    """The Shapley value of each modality of each sample, (N, M) float64.

    Args:
        correct: (2**M - 1, N) bool, whether the modalities in bitmask `row + 1` together name the class.
    """
    sizes = torch.tensor([row.bit_count() for row in range(1, len(correct) + 1)], dtype=torch.float64)
    worth = correct.double() * sizes.to(correct.device).unsqueeze(1)
    return responses(worth.unsqueeze(-1)).squeeze(-1).T.double()


def _copies(values: Tensor) -> Tensor:  # (N, M) -> (N, M) int64
    return (values < 1).long() + (values <= 0.4).long() + (values < -0.1).long()
