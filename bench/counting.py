"""Counts that do not wobble: rows through each encoder, operations dispatched, bytes they touch, synchronisations."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)
_FUNCTIONS = {torch.conv1d: 1, torch.conv2d: 1, torch.conv3d: 1, F.linear: 1, F.embedding: 1}


class EncoderPasses(TorchFunctionMode):
    """Counts the calls of each encoder, and the rows in them, by the layer that reads its input.

    Nothing is put on the network, neither hooks nor another forward: AGM looks for those, and takes more passes where
    it finds them.

    Args:
        encoders: modality -> encoder, whose first layer with a weight is its first to be called.

    Attributes:
        rows: modality -> rows of each call, those of frames counted one by one.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.rows: dict[str, list[int]] = {name: [] for name in encoders}
        self._names = {id(_first(encoder).weight): name for name, encoder in encoders.items()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FUNCTIONS:
            given = [*args, *(kwargs or {}).values()]
            weights = [self._names[id(value)] for value in given if id(value) in self._names]
            inputs = next(value for value in given if isinstance(value, Tensor) and id(value) not in self._names)
            if weights:
                self.rows[weights[0]].append(len(inputs))
        return func(*args, **(kwargs or {}))


def _first(encoder: nn.Module) -> Any:
    return next(module for module in encoder.modules() if isinstance(module, _LAYERS))


@dataclass
class Dispatched(TorchDispatchMode):
    """Counts the operations that reach the dispatcher below autograd, and the bytes of what they read and write.

    Views move nothing and are left out. An operation counts with all of its arguments and results once; what it reads
    twice inside does not show.
    """

    names: list[str] = field(default_factory=list)
    bytes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.namespace != "prim":
            self.names.append(str(func))
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum({id(tensor): tensor.nbytes for tensor in tensors}.values())
        return result


def synchronisations(call: Callable[[], object]) -> int:
    """How often a call makes the host wait for the GPU."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
    finally:
        torch.set_warn_always(always)
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing" in str(warning.message) for warning in caught)
