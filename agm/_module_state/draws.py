"""Random numbers that a pass draws, put back so that the next ones are those that would have come without it."""

import random
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agm._module_state.capture import is_capturing
from agm._module_state.generators import comparable, numpy_state

if TYPE_CHECKING:
    from agm._module_state.structure import Structure

__all__ = ["DRAWING", "Draws", "may_draw", "settle"]

_NAMES = (
    "rand randn randint randperm bernoulli normal multinomial poisson rand_like randn_like randint_like binomial "
    "uniform exponential random geometric log_normal cauchy dropout alpha_dropout feature_dropout native_dropout "
    "feature_alpha_dropout gumbel_softmax rrelu"
)
DRAWING = frozenset(_NAMES.split())
_INSIDE = ("_standard_gamma", "_sample_dirichlet", "dropout1d", "dropout2d", "dropout3d")
# Draw nothing unless they are told that they train, or with what probability.
_TOLD = {"dropout": 2, "alpha_dropout": 2, "feature_dropout": 2, "feature_alpha_dropout": 2, "native_dropout": 2}
_TOLD |= {"dropout1d": 2, "dropout2d": 2, "dropout3d": 2, "rrelu": 3}


class Draws:
    """The generators of torch, Python and NumPy, of which a pass in eval mode rarely draws.

    Those of torch are noted when the first number is about to be drawn. Those of Python and NumPy cannot be seen to be
    drawn from: they are noted before the pass. What another thread draws meanwhile looks the same, and is not to be
    drawn again: where there are threads they are left alone once a step has shown that another one draws (`settle`).

    Args:
        structure: of the network, which keeps that; None: they are put back every time.
    """

    def __init__(self, structure: "Structure | None") -> None:
        self._structure = structure
        self._host: tuple[Any, Any] | None = None
        self._of_torch: list[Callable[[], object]] | None = None

    def begin(self) -> None:
        """Notes those of Python and NumPy."""
        if self._structure is None or not self._structure.others_draw:
            self._host = random.getstate(), numpy_state()

    def before(self, name: str, args: Any, kwargs: Any) -> None:
        """A function of torch is about to run that may draw."""
        if self._of_torch is not None or _is_told_not_to(name.rstrip("_"), args, kwargs):
            return
        self._of_torch = [partial(torch.set_rng_state, torch.get_rng_state())]
        if torch.cuda.is_initialized() and not is_capturing():
            for device in _devices(args, kwargs):
                self._of_torch.append(partial(torch.cuda.set_rng_state, torch.cuda.get_rng_state(device), device))

    def put_back(self) -> None:
        """Leaves them as they were noted."""
        for put_back in self._of_torch or ():
            put_back()
        if self._host is None:
            return
        python, numpy = self._host
        drawn = random.getstate() != python
        if drawn:
            random.setstate(python)
        now = numpy_state()
        if now is not numpy and comparable(now) != comparable(numpy):
            drawn = True
            np.random.set_state(numpy)
        if drawn and self._structure is not None and threading.active_count() > 1:
            self._structure.left = random.getstate(), numpy_state()


def settle(structure: "Structure") -> None:
    """Behind a step: who has drawn since its last masked pass is another thread."""
    left, structure.left = structure.left, None
    if left is not None and (random.getstate() != left[0] or comparable(numpy_state()) != comparable(left[1])):
        structure.others_draw = True


def may_draw(name: str) -> bool:
    """Whether a function of torch of this name draws random numbers."""
    return name.rstrip("_") in DRAWING or name in _INSIDE or name == "scaled_dot_product_attention"


def _is_told_not_to(name: str, args: Any, kwargs: Any) -> bool:
    if name == "scaled_dot_product_attention":
        return not (kwargs["dropout_p"] if "dropout_p" in kwargs else args[4] if len(args) > 4 else 0.0)
    place = _TOLD.get(name)
    if place is None:
        return False
    training = kwargs.get("training", kwargs.get("train", args[place] if len(args) > place else None))
    return training is False


def _devices(args: Any, kwargs: Any) -> Iterable[torch.device]:
    """The GPUs of which a function may draw."""
    found = {torch.device("cuda", torch.cuda.current_device())}
    found |= {x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.is_cuda}
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cuda" and torch.device(device).index is not None:
        found.add(torch.device(device))
    return found
