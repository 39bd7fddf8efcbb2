"""Adaptive unimodal regulation of the information that encoders acquire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from agm.strategies._checks import check_choice, check_flag, check_number, check_per_modality
from agm.strategies.batch import Batch
from agm.strategies.measuring import Batches
from agm.strategies.strategy import Common, Strategy

__all__ = ["InfoReg"]


class InfoReg(Strategy):
    """InfoReg (Huang et al., "Adaptive Unimodal Regulation for Balanced Multimodal Information Acquisition", CVPR
    2025): in the window in which an encoder acquires information fast, that of a modality that is ahead is held back.

        T_m     = mean over the batches of an epoch of |g_m|^2, the trace of the Fisher information of encoder m
        window_m: (T_m(t-1) - T_m(t-2)) / T_m(t-1) > threshold       from epoch t = 2 on; epochs 0 and 1 only measure
        s_m     = mean over the batch of softmax(u_m)_y
        D_m     = mean of s_m - s_j over those j with s_j < s_m;  0 where there are none
        g_m    <- g_m + a_m * (theta_m - theta_m(t-1)),   a_m = exp(beta * tanh(D_m))    if window_m and D_m > 0

    theta_m(t-1) being the encoder's weights at the end of the epoch before. The paper's trace is over samples; that
    of the batches' gradients is what its released code accumulates. Its equation 8 prints the cross-entropy as the
    score where text and code have "higher is better"; the probability is used.

    Departures of the released code: the scores are summed over the batch, which saturates tanh (`summed_scores`); a_m
    has a factor for each modality, 0.95 for audio and 0.1 for visual, with beta = 1 (`factors`); and the unimodal
    losses are on, which the paper reports as InfoReg* (`multi_loss`). Its window (`window_of`) goes by one modality's
    trace for all: the squared gradients of the weights of linear and convolution layers after the pull, summed over the
    batches, averaged over each weight, summed over the layers; with A and B the sums of the last 10 of these and of the
    10 up to the last but one, `(A - B) / A > threshold`, and open in the first epoch. There, moreover, a visual encoder
    is never pulled: the condition of its branch repeats the first one's.

    Args:
        network: see `Strategy`.
        beta: >= 0; tuned by the authors, 0.9 in a re-implementation.
        threshold: of the window, K in the paper; tuned by the authors, 0.04 in a re-implementation.
        multi_loss: add the unimodal losses, with weight 1.
        summed_scores: sums over the batch in the place of means.
        factors: modality -> factor of a_m; 1 by default.
        window_of: the modality whose released trace opens the window for all; "audio" in the released code.
        common: see `Strategy`.
    """

    dense = True
    distributed = True
    running_trace: Tensor  # (M,) float64, summed over the batches of this epoch
    batches: Tensor  # () int64, their number
    traces: Tensor  # (2, M) float64, of the last two epochs, the last row newest
    epochs: Tensor  # () int64, epochs measured
    factors: Tensor  # (M,) float64
    released_traces: Tensor  # (11,) float64, the released traces of the last epochs, the last entry newest

    def __init__(
        self,
        network: nn.Module,
        *,
        beta: float = 0.9,
        threshold: float = 0.04,
        multi_loss: bool = False,
        summed_scores: bool = False,
        factors: Mapping[str, float] | None = None,
        window_of: str | None = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(network, **common)
        self.beta = check_number("beta", beta)
        self.threshold = check_number("threshold", threshold)
        self.multi_loss = check_flag("multi_loss", multi_loss)
        self.summed_scores = check_flag("summed_scores", summed_scores)
        if self.multi_loss:
            self._require_heads()
        if window_of is not None:
            check_choice("window_of", window_of, self.modalities)
        self.window_of = window_of
        self.register_buffer("released_traces", torch.zeros(11, dtype=torch.float64))
        self._squares: list[Tensor] = []  # of the weights' gradients in this epoch
        factor = check_per_modality("factors", factors, self.modalities)
        self.register_buffer("factors", torch.tensor(factor, dtype=torch.float64), persistent=False)
        self.register_buffer("running_trace", torch.zeros(len(factor), dtype=torch.float64))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.register_buffer("traces", torch.zeros(2, len(factor), dtype=torch.float64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self._before: list[list[Tensor]] = []  # the encoders' weights at the end of the epoch before
        self._window: Tensor | None = None  # (M,) bool

    @torch.no_grad()
    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        super().begin_epoch(epoch)
        self.running_trace.zero_()
        self.batches.zero_()
        before, last = self.traces
        self._window = (self.epochs >= 2) & ((last - before) / last > self.threshold)
        if self.window_of is not None:
            rise = (self.released_traces[1:].sum() - self.released_traces[:-1].sum()) / self.released_traces[1:].sum()
            self._window = ((self.epochs == 0) | (rise > self.threshold)).expand(len(last))
        self._squares = []
        self._before = [[p.detach().clone() for p in parameters] for parameters in self.parts.parameters()]

    def loss(self, batch: Batch) -> Tensor:
        if not self.multi_loss:
            return batch.joint_loss
        return batch.joint_loss + torch.stack(list(batch.unimodal_losses.values())).sum()

    def backward(self, batch: Batch) -> None:
        super().backward(batch)
        # Also outside the window of epochs, so that it begins with what went before.
        self.running_trace += batch.gradient_traces
        self.batches += 1
        if not self.active:
            self._gather()

    def modulate(self, batch: Batch) -> None:
        scores = batch.confidences.double()
        if self.summed_scores:
            scores = scores * batch.count
        ahead = scores.unsqueeze(1) - scores.unsqueeze(0)
        behind = ahead > 0
        gap = torch.where(behind, ahead, 0.0).sum(1) / behind.sum(1).clamp_min(1)
        strength = self.factors * torch.exp(self.beta * torch.tanh(gap))
        strength = torch.where((gap > 0) & self._in_window(), strength, 0.0)
        for parameters, before, own in zip(self.parts.parameters(), self._before, strength, strict=True):
            rows = [(p, old, p.grad) for p, old in zip(parameters, before, strict=True) if p.grad is not None]
            if rows:
                now, old, gradients = (list(column) for column in zip(*rows, strict=True))
                pull = torch._foreach_sub(now, old)
                torch._foreach_mul_(pull, own.to(pull[0].dtype))
                torch._foreach_add_(gradients, pull)
        self.latest = {"coefficient": strength}
        self._gather()

    @torch.no_grad()
    def _gather(self) -> None:
        """The squared gradients of the weights that the released trace is made of."""
        if self.window_of is None:
            return
        layers = self.parts.encoders[self.window_of].modules()
        weights = [m.weight for m in layers if isinstance(m, (nn.Linear, nn.Conv2d)) and m.weight.requires_grad]
        squares = [torch.zeros_like(w) if w.grad is None else w.grad.square() for w in weights]
        if self._squares:
            torch._foreach_add_(self._squares, squares)
        else:
            self._squares = squares

    def _in_window(self) -> Tensor:
        if self._window is None:
            raise RuntimeError("Expected `begin_epoch` to be called before the first step, but it was not.")
        return self._window

    @torch.no_grad()
    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        self.traces.copy_(torch.stack([self.traces[1], self.running_trace / self.batches.clamp_min(1)]))
        self.epochs.add_(1)
        if self._squares:
            newest = torch.stack([square.double().mean() for square in self._squares]).sum()
            self.released_traces.copy_(torch.cat([self.released_traces[1:], newest.unsqueeze(0)]))

    def get_extra_state(self) -> dict[str, Any]:
        return {"squares": list(self._squares)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._squares = list(state["squares"])
