"""A warning where a modality that is absent gives the network a far larger gradient than one that is present."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from agm._inputs.arguments import Arguments, Binding
from agm._inputs.rows import masked_arguments
from agm._module_state.compiled import is_compiled
from agm._module_state.hooks import BACKWARD_KINDS, hooked, replaced
from agm._module_state.modules import submodules
from agm._module_state.traces import Attributes
from agm._module_state.undo import Contexts, putting_back
from agm._module_state.untouched import untouched
from agm._one_pass.choice import GLOBAL_HOOKS
from agm._one_pass.synchronised import is_exchanging
from agm._passes.outputs import Outputs
from agm._passes.warned import warn
from agm.distributed import is_sharded

__all__ = ["Look", "can_look"]

_AMPLIFIED = 1e4  # times the gradient that a present row gives an encoder: a layer or two of LayerNorm on zeros
_SAMPLES = 2  # one alone is more than some networks take


def can_look(network: nn.Module) -> bool:
    """Whether a network can run once more, by itself, with other tensors in the place of its parameters."""
    modules = submodules(network)
    if any(GLOBAL_HOOKS) or any(map(is_compiled, modules)) or any(map(is_sharded, modules)):
        return False
    if any(parameter.is_meta for parameter in network.parameters()):  # who fetches it would put it elsewhere
        return False
    wrappers = (torch.jit.ScriptModule, DataParallel, DistributedDataParallel)
    return not any(isinstance(module, wrappers) or is_exchanging(module) for module in modules)


class Look:
    """Compares the gradients that a network's parameters get where a modality is present and where it is absent.

    Zeros that meet biases of zero are normalised by their own variance, which is zero: each LayerNorm multiplies the
    gradient by eps**-0.5.

    The network runs on the first samples of a batch, on a graph of its own: its parameters are other leaves there, and
    no hook of the user's is called. What cannot be looked at is let pass: a step must not fail because of it.

    Args:
        network: see `can_look`.
        binding: how modalities enter it.
        outputs: where its output holds the logits.
        encoders: modality -> its encoder, of those whose encoder is known.
        arguments: of forward, as they are before the joint pass, which may write to them.
        absent: modality -> its absent input.
        batch: how many samples there are.

    Attributes:
        hooks: whether forward has given tensors hooks.
    """

    def __init__(
        self,
        network: nn.Module,
        binding: Binding,
        outputs: Outputs,
        encoders: Mapping[str, nn.Module],
        arguments: Arguments,
        absent: Mapping[str, Any],
        batch: int,
    ) -> None:
        self._network = network
        self._binding = binding
        self._outputs = outputs
        self._encoders = encoders
        self.hooks = False
        every, part = 2 ** len(binding.modalities) - 1, range(min(batch, _SAMPLES))
        subsets = [every, *(every ^ 1 << bit for bit in range(len(binding.modalities)))]
        try:
            self._calls = [masked_arguments(arguments, absent, [subset], part) for subset in subsets]
        except Exception:
            self._calls = []

    def __call__(self, within: Callable[[], AbstractContextManager[Any]]) -> bool:
        """Warns, `within` the modes of the masked passes; False where a parameter's gradient is zero, to look again.

        A head whose weights begin as zeros lets none through to the encoders in the first step.
        """
        try:
            with _without_trace(self._network), within():
                found = [self._gradients(arguments) for arguments in self._calls]
        except Exception:
            return True
        seen = not found or all(bool(gradient.any()) for gradient in found[0].values())
        for name, absent in zip(self._binding.modalities, found[1:], strict=False):
            encoder = self._encoders.get(name)
            own = None if encoder is None else set(map(id, encoder.parameters()))
            of_present, of_absent = (_norm(gradients, own) for gradients in (found[0], absent))
            if of_present > 0 and not of_absent <= _AMPLIFIED * of_present:
                _warn(name, encoder is not None, of_absent / of_present)
        return seen

    def _gradients(self, arguments: Arguments) -> dict[int, Tensor]:
        """Id of a parameter -> its gradient of the sum of the logits."""
        whole = _Around(self._network)
        named = {name: parameter for name, parameter in whole.named_parameters() if parameter.requires_grad}
        leaves = {name: parameter.detach().requires_grad_() for name, parameter in named.items()}

        def run() -> list[Tensor | None]:
            logits = self._outputs.logits(self._binding.call(arguments))
            logits = torch.view_as_real(logits) if logits.is_complex() else logits
            # Not all the same weight: what is normalised sums to nothing.
            weights = torch.linspace(0.5, 1.5, logits.numel()).to(logits).view_as(logits)
            return list(torch.autograd.grad((logits * weights).sum(), list(leaves.values()), allow_unused=True))

        with torch.enable_grad(), _NoHooks() as hooks:  # what is recomputed in the backward needs the same parameters
            found: list[Tensor | None] = torch.func.functional_call(whole, leaves, (run,))
        self.hooks |= hooks.given
        ids = map(id, named.values())
        return {key: x for key, x in zip(ids, found, strict=True) if x is not None and x.layout == torch.strided}


class _Around(nn.Module):
    """A function that runs while a network's parameters are replaced, whichever of its methods that calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


class _NoHooks(TorchFunctionMode):
    """Tensors get no hooks inside: these are the user's, who waits for the gradients of a loss.

    Attributes:
        given: whether one would have got some.
    """

    given = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook):
            self.given = True
            return RemovableHandle(OrderedDict())
        return func(*args, **(kwargs or {}))


def _without_trace(network: nn.Module) -> Contexts:
    """Inside, the backward hooks of modules are not called; afterwards everything is as before."""
    modules = submodules(network)
    return Contexts(
        lambda: untouched(network, list(network.parameters())),
        lambda: putting_back(Attributes(modules, modules).put_back),
        lambda: replaced(hooked(modules, BACKWARD_KINDS), lambda module, kind: OrderedDict()),
    )


def _norm(gradients: Mapping[int, Tensor], own: set[int] | None) -> float:
    of_encoder = [gradient for key, gradient in gradients.items() if own is None or key in own]
    return float(nn.utils.get_total_norm(of_encoder)) if of_encoder else 0.0


def _warn(name: str, is_known: bool, times: float) -> None:
    whose = "its encoder" if is_known else "the network"
    constant = "Set absent_gradient=False" if is_known else "Name the encoders and set absent_gradient=False"
    gradient = f"{times:.0e} times that of a present one" if isfinite(times) else "that is not finite"
    warn(
        f"An absent `{name}` gives {whose} a gradient {gradient}, as zeros do where biases are zero and LayerNorm "
        f"divides by their standard deviation. Training may overflow. {constant}, or say what an absent input is: "
        f"absent={{{name!r}: ...}}, such as the mean of the data.",
    )
