"""An LSTM encoder of sequences, right for padded ones and free of host synchronisation."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from agm.models._checks import check_count, check_fraction
from agm.models.padding import read_padded

__all__ = ["LSTMEncoder"]


class LSTMEncoder(nn.Module):
    """LSTM whose feature is the state after the last valid step (Hochreiter & Schmidhuber, 1997).

    With lengths, every row is what it would be alone and unpadded: the forward direction is read at the last
    valid step, and the backward direction of each layer runs over the row reversed within its own length.
    Nothing is packed, so lengths on a GPU never travel to the host. A row of length 0 gives zeros.

    It differentiates in eval mode also where cuDNN's own LSTM refuses to.

    Args:
        in_features: D.
        hidden: width of each direction.
        num_layers: number of layers.
        bidirectional: also run backwards.
        dropout: probability on the output of each layer but the last, as in `nn.LSTM`.

    Shape: (B, T, in_features), or {"x": (B, T, in_features), "lengths": (B,) int64 with 0 <= length <= T}
    -> (B, num_features).

    Attributes:
        num_features: `hidden`, twice that when bidirectional.

    Raises:
        ValueError: an argument out of range; on forward an input of another shape, T = 0, or lengths of
            another shape, dtype or (checked on the CPU alone; clamped elsewhere) range.
    """

    def __init__(
        self,
        in_features: int,
        *,
        hidden: int = 64,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_count("in_features", in_features)
        check_count("hidden", hidden)
        check_count("num_layers", num_layers)
        check_fraction("dropout", dropout)
        self.in_features = in_features
        self.num_features = hidden * (2 if bidirectional else 1)
        widths = [in_features] + [self.num_features] * (num_layers - 1)
        # One nn.LSTM a layer and direction: inside a deeper one, the backward direction would read padding.
        self.forwards = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths)
        self.backwards = nn.ModuleList(nn.LSTM(width, hidden, batch_first=True) for width in widths * bidirectional)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        x, lengths = read_padded(inputs, "x", "lengths")
        self._check(x, lengths)
        length = x.shape[1]
        if lengths is None:
            reversal = valid = None
        else:
            step = torch.arange(length, device=x.device)
            lengths = lengths.to(x.device).clamp(0, length).unsqueeze(1)  # (B, 1)
            valid = step < lengths  # (B, T)
            reversal = torch.where(valid, lengths - 1 - step, step).unsqueeze(-1)  # (B, T, 1)
            x = x.masked_fill(~valid.unsqueeze(-1), 0)

        for index, lstm in enumerate(self.forwards):
            if index:
                x = self.dropout(x)
            ahead = _run(lstm, x)
            last = [ahead]
            if len(self.backwards):
                # In reversed order its last valid step is the row's first, so both directions end alike.
                last.append(_run(self.backwards[index], _reverse(x, reversal)))
                x = torch.cat([ahead, _reverse(last[1], reversal)], dim=-1)
            else:
                x = ahead

        states = torch.cat(last, dim=-1) if len(last) > 1 else last[0]  # (B, T, num_features)
        if lengths is None:
            return states[:, -1]
        end = (lengths - 1).clamp(min=0).unsqueeze(-1).expand(-1, 1, states.shape[2])
        return states.gather(1, end).squeeze(1).masked_fill(lengths == 0, 0)

    def _check(self, x: Tensor, lengths: Tensor | None) -> None:
        if x.ndim != 3 or x.shape[2] != self.in_features or x.shape[1] == 0:
            raise ValueError(
                f"Expected the input to be (B, T, {self.in_features}) with T >= 1, but got {tuple(x.shape)}."
            )
        if lengths is None:
            return
        if lengths.shape != x.shape[:1] or lengths.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"Expected `lengths` to be int64 ({x.shape[0]},), but got {lengths.dtype} {tuple(lengths.shape)}."
            )
        # Elsewhere reading them would make the host wait.
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            wrong = (lengths < 0) | (lengths > x.shape[1])
            if wrong.any():
                raise ValueError(f"Expected `lengths` from 0 to {x.shape[1]}, but got {int(lengths[wrong][0])}.")


def _run(lstm: nn.Module, x: Tensor) -> Tensor:
    """All outputs (B, T, H) of a one-layer LSTM from zero states.

    Not by calling `lstm`: cuDNN can only differentiate what ran in training mode, whereas masked passes
    differentiate in eval mode. The layer has no dropout, so the mode changes no number.
    """
    weights: list[Tensor] = [
        getattr(lstm, name) for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    ]
    zeros = x.new_zeros(1, x.shape[0], weights[1].shape[1])
    return torch.lstm(x, (zeros, zeros), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)[0]


def _reverse(x: Tensor, reversal: Tensor | None) -> Tensor:
    """x (B, T, D) with time reversed: within each row's length by the index (B, T, 1), or entirely."""
    return x.flip(1) if reversal is None else x.gather(1, reversal.expand_as(x))
