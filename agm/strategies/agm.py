"""Adaptive Gradient Modulation, under the interface of the others."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from inspect import signature
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from agm.engine import AGM as Engine
from agm.modulation.modulator import Outside
from agm.modulation.scores import ScoreName
from agm.ops.reference import COEFFICIENTS, RATIOS, REFERENCE_RATIOS, SCORES
from agm.strategies._checks import check_flag, check_number
from agm.strategies.batch import Batch
from agm.strategies.bounding import BoundedPasses
from agm.strategies.measuring import Batches
from agm.strategies.mlb import balance_by_confidence
from agm.strategies.smoothing import SmoothedModulator
from agm.strategies.strategy import Common, Strategy

__all__ = ["AGM"]

_SHOWN = {
    "score": SCORES,
    "ratio": RATIOS,
    "reference_ratio": REFERENCE_RATIOS,
    "coefficient": COEFFICIENTS,
}


_BETA_MAX = 2.0  # of MLB: symmetric


class AGM(Strategy):
    """AGM (Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023): the
    strategy `agm.AGM`, which has the formulas. `module` is that wrapper.

    It scales the gradient that flows into each modality's response, not those of parameters. `heads` have no part in
    it, but in the unimodal losses of `multi_loss`.

    Args:
        network: see `Strategy`.
        alpha, max_gap, floor, score, masked, absent_gradient, absent_refresh: as of `agm.AGM`. The authors' alpha: 2.5
            on AV-MNIST, 1.5 on CREMA-D, 4.0 on UR-Funny; their gap: none, 10 and 7.
        smoothing: of the coefficients over the steps, in [0, 1), see `agm.strategies.SmoothedModulator`; 0 is the
            published method.
        bound: of what the masked passes may add to the gradient of an encoder, as a share of what the joint pass gives
            it: below 1 no encoder's update turns around, and 0 leaves the joint pass's gradient times the mean
            coefficient (`agm.strategies.BoundedPasses` has the formula). None, the published method, has no bound.
        outside: of `agm.Modulator`: "joint" trains plainly outside the window; "published" takes scores in every epoch
            and keeps the last coefficients from `stop` on.
        multi_loss: add the losses of each modality alone to the loss, sum_m CE(u_m, y), as `MultiLoss` does with
            weight 1. Their gradients are not modulated. Not published.
        mlb_alpha: with `multi_loss`, multiply the gradients of encoders and heads, AGM's and those of the unimodal
            losses together, by the coefficients of `MLB` too, with this alpha and its `beta_max` of 2. Not published.
            None: do not.
        common: see `Strategy`.

    Example:
        >>> strategy = AGM(network, alpha=1.5, masked="shared", multi_loss=True)  # doctest: +SKIP
    """

    dense = True
    distributed = True
    lacking = "told"
    tasks = frozenset({"classes", "labels", "numbers"})
    module: Engine

    def __init__(
        self,
        network: nn.Module,
        *,
        alpha: float = 1.0,
        max_gap: float | None = 10.0,
        floor: float = 1e-8,
        score: ScoreName = "cross_entropy",
        masked: Literal["exact", "shared"] = "exact",
        smoothing: float = 0.0,
        bound: float | None = None,
        outside: Outside = "joint",
        absent_gradient: bool = True,
        absent_refresh: int = 1,
        multi_loss: bool = False,
        mlb_alpha: float | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.multi_loss = check_flag("multi_loss", multi_loss)
        if self.heads and not self.multi_loss:
            raise ValueError(
                "Expected no argument `heads`, since AGM has no unimodal losses. Leave it out, or set multi_loss=True."
            )
        if self.multi_loss and bound is not None:
            raise ValueError("Expected no argument `multi_loss` with a bound. Leave either out.")
        self.mlb_alpha = None if mlb_alpha is None else check_number("mlb_alpha", mlb_alpha)
        if self.mlb_alpha is not None and not self.multi_loss:
            raise ValueError(
                "Expected no argument `mlb_alpha` without unimodal losses, from which its confidences are. Set "
                "multi_loss=True, or leave it out."
            )
        check_number("smoothing", smoothing, below=1.0)
        settings: dict[str, Any] = {
            "alpha": alpha,
            "max_gap": max_gap,
            "floor": floor,
            "score": score,
            "start": self.start,
            "stop": self.stop,
            "outside": outside,
        }
        named = {name: common.get(name) for name in ("encoders", "output", "inputs", "class_dim")}
        if self.parts.wrapper is not None and named["encoders"]:
            named["encoders"] = self.parts.paths(network)
        # A forward that has a `target` of its own is given that among the other arguments.
        self._target = "target" if "target" not in signature(self.network.forward).parameters else "target_of_agm"
        masking = {"masked": masked, "absent_gradient": absent_gradient, "absent_refresh": absent_refresh}
        options: dict[str, Any] = {**settings, **named, **masking, "target": self._target}
        self.module = Engine(network, self.parts.carriers, **options)
        if smoothing:
            modulator = SmoothedModulator(self.modalities, smoothing=smoothing, **settings)
            self.module.modulator = modulator.to(self.module.modulator.state.values.device)
        self._bounded: BoundedPasses | None = None
        if bound is not None:
            if self.parts.wrapper is not None:
                raise ValueError(
                    "Expected no argument `bound` with DistributedDataParallel, which does not average the two parts "
                    "of a gradient by themselves. Leave either out."
                )
            check_number("bound", bound)
            self._bounded = BoundedPasses(self.parts, bound, masked=masked)

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self.module.epoch = epoch

    def run(self, batch: Batch) -> tuple[dict[str, Any] | None, Tensor]:
        if self._bounded is not None and self.module.modulator.active:
            if batch.present is not None:
                raise ValueError("Expected no argument `present` with a bound. Leave either out.")
            return None, self._bounded.forward(self.module.modulator, batch)
        if self.multi_loss and batch.present is not None:
            raise ValueError(
                "Expected no argument `present` with `multi_loss`, whose losses are of samples that have the modality. "
                "Leave either out."
            )
        args, kwargs = self.parts.binding.as_given(batch.inputs.arguments)
        features: dict[str, Any] = {}
        with ExitStack() as stack:
            if self.multi_loss:
                # A hook that observes sees what the joint pass encodes, and nothing of the masked passes.
                for name, encoder in self.parts.encoders.items():
                    hook = encoder.register_forward_hook(partial(_keep, features, name))
                    stack.callback(hook.remove)
            found = self.module(*args, present=batch.present, **{self._target: batch.shaped_target}, **kwargs)
        return features if self.multi_loss else None, self.parts.outputs.logits(found)

    def loss(self, batch: Batch) -> Tensor:
        loss = batch.joint_loss
        if self.multi_loss and super().active:
            for unimodal in batch.unimodal_losses.values():
                loss = loss + unimodal
        return loss

    def backward(self, batch: Batch) -> None:
        loss = self.loss(batch)
        if self._bounded is not None and self.module.modulator.active:
            self._bounded.backward(loss)
        else:
            loss.backward()

    def modulate(self, batch: Batch) -> None:
        if self.mlb_alpha is not None and super().active:
            _, coefficients = balance_by_confidence(batch.confidences, self.mlb_alpha, _BETA_MAX)
            self.scale(coefficients, heads=True)

    @property
    def active(self) -> bool:
        return self.module.modulator.outside == "published" or super().active

    def statistics(self) -> dict[str, Tensor]:
        if not self.active:
            return {}
        modulator = self.module.modulator
        # One copy on the device: the next step writes over the state, and reading it now would synchronise.
        values = modulator.state.values.clone()
        shown = {kind: values[row] for kind, row in _SHOWN.items()}
        if isinstance(modulator, SmoothedModulator):
            shown["coefficient"] = modulator.smoothed.clone()
        return shown


def _keep(features: dict[str, Any], name: str, module: nn.Module, args: Any, output: Any) -> None:
    features[name] = output
