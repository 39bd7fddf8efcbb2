"""Sustained boosting of the modality that is behind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_count, check_flag, check_number
from agm.strategies.alternating import Alternating
from agm.strategies.batch import Batch
from agm.strategies.heads import pooled
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Outcome

__all__ = ["AUG"]


class AUG(Alternating):
    """AUG (Yang et al., "Rethinking Multimodal Learning from the Perspective of Mitigating Classification Ability
    Disproportion", NeurIPS 2025), of two modalities: the one that is behind gets one more head, and another.

    Head t of a modality gives p_t = W relu(L_t h), W common to all heads of all modalities. Each batch makes one
    update a modality, in turn, with P_n = p_1 + ... + p_n of its n heads:

        n = 1:  CE(P_1, y)
        n > 1:  CE(P_n, y) + CE(P_(n-1), y) - mean over the batch of r log softmax(p_n)_y
                r = 1 - residual * sum over t < n of softmax(p_t)_y,   without a graph

    After the first epoch of the window and every `check` epochs, the scores s_m = sum over the epoch's samples of
    softmax(P_n)_y decide: s_1 / s_2 > sigma + tau gives a head to the second modality, < sigma - tau to the first. Its
    weights are Xavier-normal, its bias 0. Predictions are `merge` P of the first plus (1 - merge) P of the second.

    The network's own fusion is neither trained nor used: `predictor` predicts. Set `optimizer` before training, to
    which new heads are given (the parameters of its first group); set it before a state dict is loaded, too.

    Departures of the released code: `released=True`, r takes softmax(P_(n-1))_y in the place of the sum; and
    `train_added=False`, new heads are never given to the optimizer and keep their first weights.

    Args:
        network: see `Strategy`; only its encoders are used.
        hidden: width of L_t h; 256.
        residual: lambda in the paper, in [0, 1]; 0.5 in the released code, searched among 0.1, 0.2, 0.33, 0.5 and 1.
        check: epochs between decisions; 20 on CREMA-D, 5 on Twitter2015, 1 on Sarcasm, 10 on the others.
        sigma, tau: 1 and 0.01.
        merge: share of the first modality in the prediction; 0.4 for audio with 0.6 for video.
        widths: modality -> width of its feature, for a network that does not say it.
        num_classes: C, for a network that does not say it.
        released, train_added: see above.
        common: see `Strategy`. Features that are not vectors are averaged over their tokens.

    Raises:
        ValueError: another number of modalities than two, or widths or classes that are not known.

    Example:
        >>> strategy = AUG(network, check=20)
        >>> strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.01)
    """

    scores: Tensor  # (M,) float64, of the epoch so far

    def __init__(
        self,
        network: nn.Module,
        *,
        hidden: int = 256,
        residual: float = 0.5,
        check: int = 20,
        sigma: float = 1.0,
        tau: float = 0.01,
        merge: float = 0.4,
        widths: Mapping[str, int] | None = None,
        num_classes: int | None = None,
        released: bool = False,
        train_added: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        if len(self.modalities) != 2:
            raise ValueError(f"Expected two modalities, between which AUG decides, but got {len(self.modalities)}.")
        self.hidden, self.check = check_count("hidden", hidden), check_count("check", check)
        self.residual, self.merge = check_number("residual", residual), check_number("merge", merge)
        self.sigma, self.tau = check_number("sigma", sigma), check_number("tau", tau)
        self.released, self.train_added = check_flag("released", released), check_flag("train_added", train_added)
        known: Any = network
        widths, classes = widths or getattr(known, "widths", None), num_classes or getattr(known, "num_classes", None)
        if not widths or not classes:
            raise ValueError(
                "Expected arguments `widths` (modality -> width of its feature) and `num_classes` for a network that "
                f"does not say them, but got {widths!r} and {classes!r}."
            )
        like = next(network.parameters())
        made: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.layers = nn.ModuleDict(
            {name: nn.ModuleList([nn.Linear(widths[name], self.hidden, **made)]) for name in self.modalities}
        )
        self.output = nn.Linear(self.hidden, classes, **made)
        self._added: list[str] = []  # modalities, in the order in which they got a head
        self.register_buffer("scores", torch.zeros(2, dtype=torch.float64))

    @property
    def added(self) -> tuple[str, ...]:
        """The modalities that got a head, in that order."""
        return tuple(self._added)

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        first, second = (alone[name] for name in self.modalities)
        return self.merge * first + (1 - self.merge) * second

    def alone(self, name: str, feature: Any) -> Tensor:
        return torch.stack(self._heads(name, feature)).sum(0)

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self.scores.zero_()

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        features, target = batch.features, batch.target
        losses = []
        for place, name in enumerate(self.modalities):
            self.zero_grad(set_to_none=True)
            heads = self._heads(name, features[name])
            loss = self._boosted(heads, target)
            loss.backward()
            losses.append(loss.detach())
            total = torch.stack([logits.detach() for logits in heads]).sum(0)
            self.scores[place] += _true(total.softmax(-1), target).sum()
            self.latest = {"score": torch.stack(losses)} if place else {}
            yield self.ensemble_outcome(batch)

    def _heads(self, name: str, feature: Any) -> list[Tensor]:
        vector = pooled(feature)
        return [self.output(torch.relu(layer(vector))) for layer in cast(nn.ModuleList, self.layers[name])]

    def _boosted(self, heads: Sequence[Tensor], target: Tensor) -> Tensor:
        if len(heads) == 1:
            return self.criterion(heads[0], target)
        newest, before = heads[-1], torch.stack(list(heads[:-1]))
        previous = before.sum(0)
        known = previous.softmax(-1) if self.released else before.softmax(-1).sum(0)
        left = 1 - self.residual * _true(known, target).detach()
        fresh = -(left * _true(newest.log_softmax(-1), target)).mean()
        return self.criterion(previous + newest, target) + self.criterion(previous, target) + fresh

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        since = self.epoch - self.start
        if not self.active or (since > 0 and (since + 1) % self.check):
            return
        first, second = self.scores.tolist()
        if first > (self.sigma + self.tau) * second:
            self._add(self.modalities[1])
        elif first < (self.sigma - self.tau) * second:
            self._add(self.modalities[0])

    def _add(self, name: str) -> None:
        if self.train_added and self.optimizer is None:
            raise RuntimeError(
                "Expected attribute `optimizer` of AUG to be the optimizer before a head is added, but it is None. "
                "Set it, or give train_added=False for the released form, in which new heads are not trained."
            )
        self._grow(name)
        layer = cast(nn.ModuleList, self.layers[name])[-1]
        self.draws.xavier(cast(nn.Linear, layer).weight)
        nn.init.zeros_(cast(nn.Linear, layer).bias)

    def _grow(self, name: str) -> None:
        layers = cast(nn.ModuleList, self.layers[name])
        like = cast(nn.Linear, layers[0]).weight
        layer = nn.Linear(like.shape[1], like.shape[0], device=like.device, dtype=like.dtype)
        layers.append(layer)
        self._added.append(name)
        if self.train_added and self.optimizer is not None:
            # Not a group of its own, which a scheduler made before would not know.
            self.optimizer.param_groups[0]["params"].extend(layer.parameters())

    def get_extra_state(self) -> dict[str, Any]:
        return {"added": list(self._added)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        # Before the weights of the heads are loaded, which come after those of this module.
        if self._added != state["added"][: len(self._added)]:
            raise ValueError(
                f"Expected a state with heads for {self._added} first, but got one for {state['added']}. Load it into "
                "a new strategy."
            )
        for name in state["added"][len(self._added) :]:
            self._grow(name)


def _true(values: Tensor, target: Tensor) -> Tensor:  # (B, C), (B,) -> (B,)
    return values.gather(1, target.unsqueeze(1)).squeeze(1)
