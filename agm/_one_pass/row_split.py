"""Train rows and eval rows through a module as one batch: only the layers that depend on the mode tell them apart."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agm._module_state.eval_mode import evaluation
from agm._module_state.modules import path_of, submodules
from agm._module_state.replace_forward import answering
from agm._one_pass.split_attention import split_attention

__all__ = ["DROPOUTS", "NORMS", "row_split", "splits_norms"]

# Exact types: a subclass may do something else.
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_OF_SAMPLES = NORMS[4:]  # without running statistics they treat rows alike
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_WRITING = DROPOUTS[:4]  # those that heed `inplace`


@contextmanager
def row_split(module: nn.Module, train_rows: int, rows: int) -> Iterator[None]:
    """Inside, `module` in training mode takes `rows` rows, of which all but the first `train_rows` are in eval mode.

    Norms normalise the train rows first, with their own statistics, and update the running ones; the other rows are
    then normalised as in eval mode, with what has just been updated (so a norm may be called once only). Dropouts, also
    those inside attention, act on the train rows alone, and draw what they would for these by themselves. Layers in
    eval mode (frozen ones) and all others treat rows alike. A layer may see several rows a sample (frames), those of
    one sample together.

    It is the forward of the layers' instances that is replaced, so hooks, parameters and the state dict stay as they
    are. Whether that is right for a module is `why_not_row_split`'s to say.

    Args:
        module: the encoder.
        train_rows: rows of the joint pass, which come first.
        rows: all of them.
    """
    answers: dict[nn.Module, Callable[..., Any]] = {}
    attention: Callable[..., Any] | None = None
    for layer in submodules(module):
        split = _split_of(layer)
        if split is not None:
            answers[layer] = partial(split, layer, layer.forward, _Cut(module, layer, train_rows, rows))
        elif layer.training and type(layer) is nn.MultiheadAttention and layer.dropout:
            attention = attention or split_attention(_Cut(module, None, train_rows, rows).sizes)
            answers[layer] = partial(attention, layer)
    with answering(answers):
        yield


def splits_norms(module: nn.Module) -> bool:
    """Whether norms would take the batch apart: each then copies all that goes through it."""
    return any(_split_of(layer) is _norm for layer in submodules(module))


class _Cut:
    """Where the train rows end, for any number of rows a sample."""

    def __init__(self, module: nn.Module, layer: nn.Module | None, train_rows: int, rows: int) -> None:
        self.module = module
        self.layer = layer
        self.train_rows = train_rows
        self.rows = rows
        self.is_used = False

    @property
    def name(self) -> str:
        return f"`{path_of(self.layer, self.module)}` ({type(self.layer).__name__})" if self.layer else "attention"

    def sizes(self, x: Tensor) -> list[int]:
        a_sample, rest = divmod(x.shape[0] if x.dim() else 0, self.rows)
        if rest or not a_sample:
            raise ValueError(
                f"Expected {self.name} to be given a multiple of {self.rows} rows, one or several a sample, but got "
                f"{tuple(x.shape)}. Use passes='two'."
            )
        return [self.train_rows * a_sample, (self.rows - self.train_rows) * a_sample]


_Split = Callable[[nn.Module, Callable[[Tensor], Tensor], _Cut, Tensor], Tensor]


def _split_of(layer: nn.Module) -> _Split | None:
    if not layer.training or (type(layer) in _OF_SAMPLES and not layer.track_running_stats):
        return None
    if type(layer) in NORMS:
        return _norm
    if type(layer) in DROPOUTS:
        return _dropout_in_place if type(layer) in _WRITING and layer.inplace else _dropout
    return None


def _norm(layer: nn.Module, forward: Callable[[Tensor], Tensor], cut: _Cut, x: Tensor) -> Tensor:
    if cut.is_used and layer.running_mean is not None:
        raise ValueError(
            f"Expected {cut.name} to be called once in a pass, but it is called again: in eval mode all calls have "
            "the statistics of the last. Use passes='two'."
        )
    cut.is_used = True
    train, rest = x.split(cut.sizes(x))
    normalised = forward(train)
    with evaluation(layer):
        return torch.cat([normalised, forward(rest)])


def _dropout(layer: nn.Module, forward: Callable[[Tensor], Tensor], cut: _Cut, x: Tensor) -> Tensor:
    train, rest = x.split(cut.sizes(x))
    return torch.cat([forward(train), rest])


def _dropout_in_place(layer: nn.Module, forward: Callable[[Tensor], Tensor], cut: _Cut, x: Tensor) -> Tensor:
    forward(x.narrow(0, 0, cut.sizes(x)[0]))  # a single view, since autograd lets nobody write to one of several
    return x
