"""Mixed precision: gradients that overflow take the running scores back."""

from typing import Any

import torch
from torch import Tensor, nn

from agm.integrations.logs import modulators
from agm.modulation.state import ModulationState

__all__ = ["GradScaler"]


class GradScaler(torch.amp.GradScaler):
    """torch's own, which also takes the modulation back where it skips the optimizer's step.

    Scores are computed in the forward, and a step whose scores are not finite leaves the running scores alone by
    itself. Whether the scaled gradients overflow is known only after the backward, when the running scores have moved.
    With this scaler `update()` puts `running_scores` and `step` back to what they were after the update before, and
    counts the forwards in between (several under gradient accumulation) in `state.skipped`. So a batch that did not
    train the network leaves no trace in the scores either. The decision is taken on the device, where the scaler's
    own `found_inf` is: it costs no synchronisation.

    Use it as torch's, once an iteration: `scale(loss).backward()`, `step(optimizer)`, `update()`. Where a framework
    keeps the scaler, hand it over there: `MixedPrecision("16-mixed", "cuda", scaler=GradScaler(model))` for Lightning,
    `accelerator.scaler = GradScaler(model)` before `prepare` for Accelerate.

    Args:
        model: holds one `agm.AGM` or `agm.Modulator`, or more, also inside wrappers.
        device: "cuda", "cpu" ...; by default that of the state.
        settings: as of `torch.amp.GradScaler`.

    Raises:
        ValueError: there is no modulator in `model`.
    """

    def __init__(self, model: nn.Module, device: str | None = None, **settings: Any) -> None:
        states = [modulator.state for modulator in modulators(model)]
        super().__init__(device or states[0].values.device.type, **settings)
        self._settled = [_Settled(state) for state in states]

    def update(self, new_scale: float | Tensor | None = None) -> None:
        if self.is_enabled():
            steps = self._per_optimizer_states.values()
            found = [inf for step in steps for inf in step["found_inf_per_device"].values()]
            for settled in self._settled:
                settled.settle(found)
        super().update(new_scale)


class _Settled:
    """What a state was after the last update of the scaler; loading a state settles it too."""

    def __init__(self, state: ModulationState) -> None:
        self._state = state
        self._keep()
        state.register_load_state_dict_post_hook(lambda *_: self._keep())

    def _keep(self) -> None:
        with torch.no_grad():
            self._running_scores, self._step = self._state.running_scores.clone(), self._state.step.clone()

    @torch.no_grad()
    def settle(self, found_inf: list[Tensor]) -> None:
        state, device = self._state, self._state.values.device
        if found_inf:
            # Each is 0 or 1, of shape (1,), on a device of the gradients.
            overflow = torch.stack([found.to(device, non_blocking=True).view(()) for found in found_inf]).sum() > 0
            scores, step = self._running_scores.to(device), self._step.to(device)
            state.skipped.add_(torch.where(overflow, state.step - step, 0))
            state.running_scores.copy_(torch.where(overflow, scores, state.running_scores))
            state.step.copy_(torch.where(overflow, step, state.step))
        self._keep()
