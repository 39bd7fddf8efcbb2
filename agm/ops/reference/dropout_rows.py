"""Dropout of the first rows of a batch."""

import torch
from torch import Tensor

__all__ = ["dropout_rows", "dropout_rows_backward"]


def dropout_rows(input: Tensor, p: float, train_rows: int) -> tuple[Tensor, Tensor]:
    """Rows [:train_rows] dropped out with probability `p`, in (0, 1], and scaled by 1 / (1 - p), the others untouched.

    The mask is drawn as `torch.nn.functional.dropout` draws it for these rows alone: the same bits, and the generator
    is left in the same state (Srivastava et al., "Dropout", 2014).

    Returns:
        the output, and what the backward needs of the mask, of the shape of the train rows: on CUDA which elements
        stay, elsewhere what each is multiplied by.
    """
    train, rest = input[:train_rows], input[train_rows:]
    if input.is_cuda and 0 < p < 1 and train.numel() > 0:
        # Two launches, torch's and a copy, and no kernel of our own: torch's mask depends on the grid that it chooses
        # for the GPU, and while a CUDA graph captures its seed and offset are on the device, where only its own
        # kernels read them. One of ours would take a launch to draw a seed, two in all as well, and drop others.
        dropped, kept = torch.native_dropout(train, p, True)
        return torch.cat([dropped, rest]), kept
    factor = torch.zeros_like(train) if p == 1 else torch.empty_like(train).bernoulli_(1 - p).div_(1 - p)
    output = _rows(train, factor, rest, torch.empty_like(input))
    return output, factor.bool() if input.is_cuda else factor


def dropout_rows_backward(grad: Tensor, mask: Tensor, p: float) -> Tensor:
    """The gradient of the input, from the gradient of the output and the mask of the train rows."""
    train, rest = grad[: len(mask)], grad[len(mask) :]
    if grad.is_cuda:
        return torch.cat([torch.ops.aten.native_dropout_backward(train, mask, 0.0 if p == 1 else 1 / (1 - p)), rest])
    return _rows(train, mask, rest, torch.empty_like(grad))


def _rows(train: Tensor, factor: Tensor, rest: Tensor, output: Tensor) -> Tensor:
    """Writes `train * factor` and `rest` into the output: what `torch.cat` would copy once more."""
    torch.mul(train, factor, out=output[: len(train)])
    output[len(train) :].copy_(rest)
    return output
