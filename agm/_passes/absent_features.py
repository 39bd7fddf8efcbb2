"""Features of absent rows: their gradient, and how long they are kept."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.absent import is_rows
from agm._inputs.trees import leaves_of, mapped
from agm._module_state.capture import is_recorded

__all__ = ["AbsentFeatures", "AbsentFeaturesState", "constant", "detached"]


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

    def drop(self) -> None:
        """Keeps nothing any more of earlier steps."""
        self._kept.clear()

    @property
    def are_kept(self) -> bool:
        """Whether there are any from an earlier step."""
        return self._refresh > 1 and len(self._kept) > 0 and not is_recorded()

    def note(self, names: Iterable[str]) -> tuple[str, ...]:
        """In words for a plan which modalities' features no step has kept, if they should be."""
        left = [f"`{name}`" for name in names if name not in self._kept]
        if self._refresh == 1 or not self._steps or not left:
            return ()
        return (
            f"Features of an absent {', '.join(left)} are computed in every step, whatever absent_refresh: what the "
            "encoder is given is not the modality's absent input as it is, or not one row for all samples, or each "
            "subset has a pass of its own.",
        )

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


def constant(tree: Any) -> Any:
    """A pytree whose tensors have no graph, and yet a gradient for whoever asks (a hook of forward's on them)."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if not leaf.is_floating_point() or torch.compiler.is_compiling():
            return leaf.detach()
        return leaf.detach().requires_grad_().clone()

    return mapped(one, tree)


def detached(tree: Any) -> Any:
    """A pytree whose tensors have no graph."""
    return mapped(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)
