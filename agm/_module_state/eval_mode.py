"""The evaluation mode of the masked passes, which leaves no trace on the network."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from agm._module_state.draws import Draws
from agm._module_state.hooks import ForwardHooks
from agm._module_state.modules import submodules
from agm._module_state.traces import Traces
from agm._module_state.undo import Contexts, putting_back
from agm._module_state.written import Place, StandIn, merged, stand_ins

if TYPE_CHECKING:
    from agm._module_state.structure import Structure

__all__ = [
    "Evaluation",
    "counts",
    "counts_samples",
    "depends_on_mode",
    "evaluation",
    "may_depend_on_mode",
    "mixes_samples",
    "mode_dependent_layers",
    "unfrozen",
    "why_mixes",
    "written_buffers",
]

_RECURRENT = (nn.RNN, nn.LSTM, nn.GRU)
_ALIKE = frozenset((nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.GELU, nn.LayerNorm, nn.Linear, nn.ReLU, nn.Sequential))
_STATISTICS = ("running_mean", "running_var")  # torch's batch norm writes to them without counting it as a version


def evaluation(
    network: nn.Module, hooks: ForwardHooks | None = None, structure: "Structure | None" = None
) -> AbstractContextManager[object]:
    """Eval mode for a forward pass with gradients that leaves no trace, also on errors.

    Every submodule's mode is as before afterwards, and so is all that forward stores or writes to (`Traces`).

    The flags are set directly: a network that overrides `train()` (to keep a frozen part in eval, to merge
    adapters) is left alone. Copies stand in for buffers that training passes write to, since the backward of this pass
    reads them: otherwise two forwards could not come before one backward; and for whatever else the joint pass has
    written to, since this pass will, too. Recurrent layers stay in training mode without
    dropout, which is the same: cuDNN refuses a backward through them in eval mode. Checkpoints of the network's own
    recompute nothing in another mode (`CheckpointedRegions`).

    Args:
        network: the module.
        hooks: those of its modules, of which observers are left out inside.
        structure: that of the network as it is now, if it is known.
    """
    return Evaluation(network, hooks, structure).entered()


class Evaluation:
    """`evaluation` that can be entered again, as what is recomputed in the backward must be.

    Each time the modes and the running statistics are those of the moment when it was made, whatever training passes,
    `eval()` or `train()` did to the network since; afterwards they are again what they were before. So are the
    generators of random numbers where it is told so, or the structure is known, as in the passes of a training step.

    Args:
        network, hooks, structure: as there.
        draws: whether generators are put back though the structure is not known.
        written: where tensors are that several passes write to, each to its own; None: one pass, the structure tells.
    """

    def __init__(
        self,
        network: nn.Module,
        hooks: ForwardHooks | None = None,
        structure: "Structure | None" = None,
        draws: bool = False,
        written: Sequence[Place] | None = None,
    ) -> None:
        modules = submodules(network) if structure is None else structure.modules
        # Not subclasses, which may read their mode for more than dropout.
        self._modes = [(m, m.training and type(m) in _RECURRENT) for m in modules]
        self._recurrent: list[Any] = [m for m, stays in self._modes if stays]
        self._modules = modules
        self._structure = structure
        self._draws = draws or structure is not None
        self._hooks = hooks
        self._stand_ins: list[StandIn] = []
        self._are_many = written is not None
        if torch.is_grad_enabled():
            buffered = modules if structure is None else structure.buffered
            buffered = [m for m in buffered if m.training and type(m) not in _RECURRENT]
            places = [(m._buffers, name) for m, name, _ in written_buffers(buffered)] if buffered else []
            if written is None and structure is not None:
                written = structure.tensors.written()
            if written:
                places = merged(places, written)
            if torch.compiler.is_compiling():  # nobody watches who writes to the others (`Traces`)
                whole = [(m._buffers, name, x) for m in buffered for name, x in m._buffers.items() if x is not None]
                places += [(held, name) for held, name, x in whole if not x.is_floating_point()]
            if places:
                self._stand_ins = stand_ins(places)

    def entered(self) -> AbstractContextManager[object]:
        """In the modes and with the running statistics of the masked passes."""
        modes = [(module, mode) for module, mode in self._modes if module.training != mode]
        dropouts = [(rnn, rnn.dropout) for rnn in self._recurrent]
        copies = [one.another(self._are_many) for one in self._stand_ins]
        traces = None
        if self._structure is not None or not torch.compiler.is_compiling():  # what a graph changes is part of it
            draws = Draws(self._structure) if self._draws else None
            traces = Traces(self._modules, self.entered, self._structure, draws, copies)

        def put_back() -> None:
            if traces is not None:
                traces.put_back()
            for one in reversed(copies):
                one.put_back()
            if not self._are_many:
                self._stand_ins = copies
            _set_modes([(module, not mode) for module, mode in modes], traces is None)
            for rnn, dropout in dropouts:
                rnn.dropout = dropout

        def begin() -> None:
            _set_modes(modes, traces is None)
            for rnn, _ in dropouts:
                rnn.dropout = 0.0
            for one in copies:
                one.begin()
            if traces is not None:
                traces.begin()

        if traces is None:
            return putting_back(put_back, begin)
        hooks = [self._hooks.acting_alone] if self._hooks is not None and self._hooks.are_there else []
        return Contexts(partial(putting_back, put_back, begin, True), lambda: traces, *hooks)


def _set_modes(modes: list[tuple[nn.Module, bool]], compiling: bool) -> None:
    """The flags alone. As plain attributes they are set past `nn.Module`, which takes longer than all the rest here."""
    plain: dict[type, bool] = {}
    for module, training in modes:
        kind = type(module)
        if kind not in plain:  # nobody listens
            plain[kind] = kind.__setattr__ is nn.Module.__setattr__ and not hasattr(kind, "training")
        if plain[kind] and not compiling:
            module.__dict__["training"] = training
        else:
            module.training = training


@contextmanager
def unfrozen(network: nn.Module) -> Iterator[None]:
    """A network in eval mode has all its modules in training mode inside: which of them are frozen nobody knows."""
    frozen = [] if network.training else [module for module in submodules(network) if not module.training]
    try:
        for module in frozen:
            module.training = True
        yield
    finally:
        for module in frozen:
            module.training = False


def written_buffers(modules: list[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """Floating buffers that training passes write to, as to running statistics."""
    return [
        (module, name, buffer)
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.is_floating_point() and (name in _STATISTICS or _is_written(buffer))
    ]


def _is_written(buffer: Tensor) -> bool:
    # A graph does not know it; there copies cost little.
    return torch.compiler.is_compiling() or (not buffer.is_inference() and buffer._version > 0)


def mixes_samples(network: nn.Module) -> list[str]:
    """Names of layers in which a row counts for others in eval mode too: see `why_mixes`."""
    return _names(network, lambda module: _mixes(module) or counts(module))


def counts_samples(network: nn.Module) -> list[str]:
    """Names of layers whose gradient of a row goes by how many rows there are, be they those of a pass or fewer."""
    return _names(network, counts)


def _mixes(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None


def counts(module: nn.Module) -> bool:
    """Whether its gradient of a row goes by how many rows there are."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and bool(module.scale_grad_by_freq)


def why_mixes(network: nn.Module, name: str) -> tuple[str, str]:
    """What a layer that `mixes_samples` names does, and what to do about it."""
    module = dict(network.named_modules()).get(name, network)
    if counts(module):
        return "divides its gradient by counts over the batch (scale_grad_by_freq)", "Set scale_grad_by_freq=False"
    return "normalises with the statistics of the batch there too", "Give it running statistics"


def mode_dependent_layers(network: nn.Module) -> list[str]:
    """Names of torch's own layers in training mode that compute something else in eval mode.

    A layer that cannot be known (a user's own that reads `self.training`) is not among them.
    """
    return _names(network, lambda module: depends_on_mode(module) and module.training)


def _names(network: nn.Module, which: Callable[[nn.Module], bool]) -> list[str]:
    if not any(map(which, submodules(network))):
        return []
    return [name or type(module).__name__ for name, module in network.named_modules() if which(module)]


_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_MODED = (_NormBase, nn.RNNBase, nn.MultiheadAttention, *_RANDOM)


def _scripted(module: nn.Module) -> type[nn.Module] | None:
    """The kind of such a layer that TorchScript has compiled, or traced."""
    if not isinstance(module, torch.jit.ScriptModule):
        return None
    kind = getattr(nn, getattr(module, "original_name", ""), None)
    return kind if isinstance(kind, type) and issubclass(kind, _MODED) else None


def may_depend_on_mode(module: nn.Module) -> bool:
    """Whether it is one of torch's own layers that depend on the mode, with some of their settings."""
    return isinstance(module, _MODED) or _scripted(module) is not None


def depends_on_mode(module: nn.Module) -> bool:
    """Whether one of torch's own layers computes something else in eval mode than in training mode."""
    if type(module) in _ALIKE:  # most of a network
        return False
    if (kind := _scripted(module)) is not None:
        return not issubclass(kind, nn.modules.dropout._DropoutNd) or bool(getattr(module, "p", 1) > 0)
    if isinstance(module, _NormBase):
        return bool(module.track_running_stats)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return bool(module.p > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout) and module.num_layers > 1
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    return isinstance(module, (nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d))
