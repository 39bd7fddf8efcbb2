"""Features of absent rows: their gradient, how long they are kept, and a warning where that gradient explodes."""

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_rows
from agm._inputs.trees import leaves_of, mapped
from agm._module_state.capture import is_recorded
from agm._module_state.compiled import is_compiled
from agm._module_state.hooks import ForwardHooks
from agm._module_state.modules import submodules
from agm._module_state.traces import Attributes
from agm._module_state.undo import Contexts, putting_back
from agm._module_state.untouched import untouched
from agm._one_pass.synchronised import is_exchanging

__all__ = ["AbsentFeatures", "AbsentFeaturesState", "detached", "looking", "warn_if_amplified"]

_AMPLIFIED = 1e4  # times the gradient that a present row gives an encoder: a layer or two of LayerNorm on zeros


class AbsentFeatures:
    """Features of absent rows that are kept from step to step.

    Args:
        gradient: whether they have a gradient; if so nothing is kept.
        refresh: in every so many steps they are computed anew.

    Attributes:
        gradient: as given.
    """

    def __init__(self, gradient: bool = True, refresh: int = 1) -> None:
        self.gradient = gradient
        self._refresh = refresh
        self._steps = 0
        self._kept: dict[str, tuple[list[object], Any]] = {}

    def begin(self) -> None:
        """A step begins; one that is compiled or captured computes them whenever it runs."""
        if self._refresh == 1 or is_recorded():
            return
        if self._steps % self._refresh == 0:
            self._kept.clear()
        self._steps += 1

    @property
    def are_kept(self) -> bool:
        """Whether there are any from an earlier step."""
        return self._refresh > 1 and len(self._kept) > 0 and not is_recorded()

    def find(self, name: str, absent: Any) -> Any:
        """Features that were kept of a modality, of an absent input like this one; None if there are none."""
        if self._refresh == 1 or is_recorded():
            return None
        kept = self._kept.get(name)
        return kept[1] if kept is not None and kept[0] == _kind(absent) else None

    def keep(self, name: str, absent: Any, features: Any) -> None:
        """Keeps features for the next steps, if an absent input is one row that no sample changes."""
        if self._refresh == 1 or self.gradient or is_recorded():
            return
        rows = [leaf for leaf in leaves_of(absent) if is_rows(leaf)]
        if rows and all(leaf.shape[0] == 1 and not leaf.requires_grad for leaf in rows):
            self._kept[name] = (_kind(absent), detached(features))

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped."""
        return {"steps": self._steps, "kept": dict(self._kept)}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave."""
        self._steps, self._kept = int(state["steps"]), dict(state["kept"])


class AbsentFeaturesState(nn.Module):
    """Features of absent rows that are kept, as part of a model's state dict.

    Args:
        features: those of the model.
    """

    def __init__(self, features: AbsentFeatures) -> None:
        super().__init__()
        self.features = features

    def get_extra_state(self) -> dict[str, Any]:
        return self.features.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.features.load(state)


def _kind(absent: Any) -> list[object]:
    return [(tuple(leaf.shape), leaf.dtype, leaf.device) for leaf in leaves_of(absent) if isinstance(leaf, Tensor)]


def detached(tree: Any) -> Any:
    """A pytree whose tensors have no graph."""
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


def looking(network: nn.Module, hooks: ForwardHooks | None) -> AbstractContextManager[None]:
    """Gradients that are looked at inside leave no trace: checkpoints run parts of forward again for them.

    Args:
        network: whose features have these gradients.
        hooks: of its modules; observers are not called.
    """
    return Contexts(
        lambda: untouched(network, list(network.parameters())),
        lambda: putting_back(Attributes(submodules(network)).put_back),
        *([] if hooks is None else [hooks.acting_alone]),
    )


def warn_if_amplified(name: str, encoder: nn.Module, present: Iterable[Any], absent: Iterable[Any]) -> None:
    """Warns where an absent row gives an encoder's parameters a far larger gradient than a present one.

    Zeros that meet biases of zero are normalised by their own variance, which is zero: each LayerNorm multiplies the
    gradient by eps**-0.5.

    Args:
        name: of the modality.
        encoder: its encoder.
        present, absent: features of rows, one tensor or more each.
    """
    modules = submodules(encoder)
    # The backward of one may run once alone, and that of the other waits for other processes.
    if any(map(is_compiled, modules)) or any(map(is_exchanging, modules)):
        return
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    norms = [_gradient(rows, parameters) for rows in (present, absent)]
    if None in norms:
        return
    of_present, of_absent = norms
    assert of_present is not None
    assert of_absent is not None
    if not of_absent <= _AMPLIFIED * of_present and of_present > 0:
        warnings.warn(
            f"An absent `{name}` gives its encoder a gradient {of_absent / of_present:.0e} times that of a present "
            "one, as zeros do where biases are zero and LayerNorm divides by their standard deviation. Training may "
            "overflow. Set absent_gradient=False, or say what an absent input is: absent={"
            f"{name!r}: ...}}, such as the mean of the data.",
            stacklevel=2,
        )


def _gradient(features: Iterable[Any], parameters: list[nn.Parameter]) -> float | None:
    """Norm of the gradient of the sum of one row's features, None where there is none."""
    leaves = [leaf[:1] for leaf in features if is_rows(leaf) and leaf.requires_grad and len(leaf)]
    if not leaves or not parameters:
        return None
    # Not all the same weight: what is normalised sums to nothing.
    total = sum((leaf * torch.linspace(0.5, 1.5, leaf.numel()).to(leaf).view_as(leaf)).sum() for leaf in leaves)
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    gradients = [gradient for gradient in found if gradient is not None and not gradient.is_sparse]
    return float(nn.utils.get_total_norm(gradients)) if gradients else None
