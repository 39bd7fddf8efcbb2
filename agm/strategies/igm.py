"""Interactive enhancement: alternating modalities that keep to each other's flat directions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from agm.strategies._checks import check_count, check_flag, check_number
from agm.strategies.alternating import Alternating
from agm.strategies.batch import Batch
from agm.strategies.heads import linear_heads, pooled
from agm.strategies.measuring import Batches, macro_f1
from agm.strategies.parts import evaluation
from agm.strategies.projectors import input_covariances, project_, soft_projector
from agm.strategies.strategy import Common, Outcome
from agm.strategies.vectors import Vector, gradient

__all__ = ["IGM"]


class IGM(Alternating):
    """IGM (Jiang et al., "Interactive Multimodal Learning via Flat Gradient Modification", IJCAI 2025; before as MIE,
    "Multimodal Classification via Modal-Aware Interactive Enhancement", 2024).

    One modality is trained at a time, its encoder and its head, in stages of one epoch or more. A step takes the
    gradient where it is steepest nearby, and keeps the head off the directions that the modality before varies in:

        e   = rho * g / |g|,                g the gradient of CE(u_m, y) over encoder and head
        G   = gradient of CE(u_m, y) at theta + e, applied at theta
        G_W = G_W P,                        W the weight of the head that reads the feature
        P   = V diag(exp(-temperature (l - l_min) / (l_max - l_min))) V^T,    K = V diag(l) V^T

    K is the sum, over all passes of the modality trained before this one, of h h^T, h the mean of its feature over a
    batch of the training set, in eval mode after that pass. Predictions are the mean of the modalities' softmaxes.

    The network's own fusion is neither trained nor used: `predictor` predicts. The outcome of a step is that of the
    modality in training, whose statistics "terms" are both losses.

    Departures of the released code (`released=True`): inputs are mixed (mixup), and the loss has `flat` parts of the
    head's, moved by e, on the features of the mixed input with labels that are not mixed; e is a tensor at a time, with
    `rho` for the encoder and `rho_head`, and the step starts from the moved weights, which are never put back. (Its
    settings for rho, 1e-10 to 1e-15, make that nothing.) K is made of the last stage alone, for every linear layer of
    encoder and head, and projects every linear layer of the same shape. Each stage begins with the weights of the best
    epoch so far (macro F1 of the prediction: on the test set there, on the validation split here) and with an
    optimizer without state.

    Args:
        network: see `Strategy`; only its encoders are used.
        stages: epochs of each stage, over and over; (1,) is the paper's pass, (25, 50, 25, 50 ...) the release's on
            CREMA-D, (2, 30) on Sarcasm, (10, 30) on Twitter2015, 50 on NVGesture.
        rho: >= 0; 0.05, ours: the paper's is not known.
        temperature: tau in the paper, >= 0; 0.4.
        rho_head: of the released form; `rho` by default.
        flat: share of the flat loss in the released form, in [0, 1]; 0.3.
        released: as the released code.
        common: see `Strategy`. `heads` are needed; `linear_heads` makes those of the paper's form.

    Raises:
        ValueError: no heads.

    Example:
        >>> strategy = IGM(network, heads=linear_heads(network.widths, 6))
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        stages: Sequence[int] = (1,),
        rho: float = 0.05,
        temperature: float = 0.4,
        rho_head: float | None = None,
        flat: float = 0.3,
        released: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        if not self.heads:
            raise ValueError(
                "Expected argument `heads` to map each modality to its head, but got none. Give for example "
                "heads=agm.strategies.linear_heads(network.widths, num_classes)."
            )
        self.stages = tuple(check_count("stages", length) for length in stages) or (1,)
        self.rho, self.temperature = check_number("rho", rho), check_number("temperature", temperature)
        self.rho_head = self.rho if rho_head is None else check_number("rho_head", rho_head)
        self.flat, self.released = check_number("flat", flat), check_flag("released", released)
        self.needs = frozenset({"train", "validation"} if self.released else {"train"})
        self.covariances: dict[str, Tensor] = {}  # modality -> K of its features (paper)
        self.projectors: dict[str, Tensor] = {}  # modality -> P; or path of a layer's weight -> P (released)
        self._best: tuple[float, dict[str, Any] | None] = (-1.0, None)  # score and weights of the best epoch

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        return linear_heads(network.widths, num_classes)

    def combine(self, alone: Mapping[str, Tensor]) -> Tensor:
        shares = torch.stack([alone[name].log_softmax(-1) for name in self.modalities])
        return shares.logsumexp(0) - math.log(len(shares))

    @property
    def stage(self) -> int:
        """Number of the present stage."""
        return self._stage_of(self.epoch)[0]

    @property
    def trained(self) -> str:
        """The modality that the present stage trains."""
        return self.modalities[self.stage % len(self.modalities)]

    def _stage_of(self, epoch: int) -> tuple[int, int]:
        """Number of the stage of an epoch, and the epoch's number in it."""
        rounds, left = divmod(max(epoch - self.start, 0), sum(self.stages))
        for place, length in enumerate(self.stages):
            if left < length:
                return rounds * len(self.stages) + place, left
            left -= length
        raise AssertionError

    # Between epochs.

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        stage, since = self._stage_of(epoch)
        if not self.released or since:
            return
        if self._best[1] is not None:
            self.module.load_state_dict(self._best[1]["module"])
            self.heads.load_state_dict(self._best[1]["heads"])
        if self.optimizer is not None:
            self.optimizer.state.clear()
        if stage:
            before = self.modalities[(stage - 1) % len(self.modalities)]
            modules = [self.parts.encoders[before], self.heads[before]]
            with evaluation(self):
                found = input_covariances(
                    modules, self.required(train, "train"), lambda inputs: self._logits(before, inputs)
                )
            paths = {layer: name for name, layer in self.named_modules() if isinstance(layer, nn.Linear)}
            self.projectors = {paths[layer]: soft_projector(k, self.temperature) for layer, k in found.items()}

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        if self.released:
            score = macro_f1(self._predicted, self.required(validation, "validation"))
            if score > self._best[0]:
                weights = {"module": self.module.state_dict(), "heads": self.heads.state_dict()}
                self._best = (score, copy.deepcopy(weights))
            return
        if not self.active or self._stage_of(self.epoch + 1)[1]:
            return
        total, name = self.covariances.get(self.trained), self.trained
        for inputs, *_ in self.required(train, "train"):
            with evaluation(self):
                mean = pooled(self.parts.encode(name, inputs)).mean(0)
            outer = torch.outer(mean, mean)
            total = outer if total is None else total.to(outer.device) + outer
        assert total is not None
        self.covariances[name] = total
        self.projectors[name] = soft_projector(total, self.temperature)

    # A step.

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        name, step = self.trained, self._released_step if self.released else self._flat_step
        self.zero_grad(set_to_none=True)
        yield step(name, batch.inputs, batch.target)

    def _flat_step(self, name: str, inputs: Mapping[str, Any], target: Tensor) -> Outcome:
        parameters = self._trained_with(name)
        logits = self._logits(name, inputs)
        loss = self.criterion(logits, target)
        steepest = gradient(loss, parameters)
        kept: Vector = [p.detach().clone() for p in parameters]
        known = [(p, g) for p, g in zip(parameters, steepest, strict=True) if g is not None]
        norm = nn.utils.get_total_norm([g for _, g in known])
        # Nowhere to go where the gradient is 0.
        reach = torch.where(norm > 0, self.rho / norm, 0.0) if self.active else torch.zeros_like(norm)
        with torch.no_grad():
            torch._foreach_add_([p.data for p, _ in known], torch._foreach_mul([g for _, g in known], reach))
        moved = self.criterion(self._logits(name, inputs), target)
        moved.backward()
        with torch.no_grad():
            torch._foreach_copy_([p.data for p in parameters], kept)
            self._project_head(name)
        self.latest = {"terms": torch.stack([loss.detach(), moved.detach()])}
        return Outcome(loss.detach(), logits.detach())

    def _project_head(self, name: str) -> None:
        before = self.modalities[(self.modalities.index(name) - 1) % len(self.modalities)]
        projector = self.projectors.get(before)
        if projector is None or not self.active:
            return
        (weight, *_) = [p for p in self.heads[name].parameters() if p.dim() == 2]
        if weight.shape[1] != len(projector):
            raise ValueError(
                f"Expected features of one width, but got {len(projector)} for {before} and {weight.shape[1]} for "
                f"{name}: IGM projects the head of one by the features of the other."
            )
        project_(weight, projector)

    def _released_step(self, name: str, inputs: Mapping[str, Any], target: Tensor) -> Outcome:
        head = self.heads[name]
        weight = self.draws.beta(1.0)
        order = self.draws.permutation(len(target), target.device)
        mixed = pytree.tree_map(lambda leaf: weight * leaf + (1 - weight) * leaf[order], inputs[name])
        feature = self.parts.called(self.parts.encoders[name], name, mixed)
        logits = head(feature)
        loss = weight * self.criterion(logits, target) + (1 - weight) * self.criterion(logits, target[order])
        parameters = self._trained_with(name)
        found = gradient(loss, parameters, retain=True)
        own = {id(p) for p in head.parameters()}
        shifts = [
            None if g is None else (self.rho_head if id(p) in own else self.rho) * g / g.norm()
            for p, g in zip(parameters, found, strict=True)
        ]
        moved = {id(p): p.detach() + s for p, s in zip(parameters, shifts, strict=True) if s is not None}
        names = dict(head.named_parameters())
        there = {key: moved[id(p)].requires_grad_() for key, p in names.items() if id(p) in moved}
        flat = self.criterion(cast(Tensor, torch.func.functional_call(head, there, (feature,))), target)
        # Through the features to the encoder as it is, and to the head as it was moved.
        places = [there.get(next((k for k, q in names.items() if q is p), ""), p) for p in parameters]
        slope = torch.autograd.grad(flat, places, allow_unused=True)
        with torch.no_grad():
            for p, g, h, shift in zip(parameters, found, slope, shifts, strict=True):
                both = [part for part in (_scaled(g, 1 - self.flat), _scaled(h, self.flat)) if part is not None]
                if both:
                    p.grad = torch.stack(both).sum(0)
                if shift is not None:
                    p.add_(shift)
            self._project_layers(name)
        self.latest = {"terms": torch.stack([loss.detach(), flat.detach()])}
        return Outcome(loss.detach(), logits.detach())

    def _project_layers(self, name: str) -> None:
        for module in (self.parts.encoders[name], self.heads[name]):
            for layer in module.modules():
                if not isinstance(layer, nn.Linear):
                    continue
                for path, projector in self.projectors.items():
                    other = cast(nn.Linear, self.get_submodule(path))
                    if other is not layer and other.weight.shape == layer.weight.shape:
                        project_(cast(nn.Parameter, layer.weight), projector)

    def _predicted(self, given: Any) -> Tensor:
        """(B, C) in eval mode, of what a step is given."""
        predictor = self.predictor
        with evaluation(predictor):
            logits: Tensor = predictor(given)
        return logits

    def _logits(self, name: str, inputs: Mapping[str, Any]) -> Tensor:
        return self.alone(name, self.parts.encode(name, inputs))

    def _trained_with(self, name: str) -> list[nn.Parameter]:
        both = (*self.parts.encoders[name].parameters(), *self.heads[name].parameters())
        return [p for p in both if p.requires_grad]

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "covariances": dict(self.covariances),
            "projectors": dict(self.projectors),
            "score": self._best[0],
            "best": self._best[1],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.covariances, self.projectors = dict(state["covariances"]), dict(state["projectors"])
        self._best = (float(state["score"]), state["best"])


def _scaled(part: Tensor | None, share: float) -> Tensor | None:
    return None if part is None else share * part
