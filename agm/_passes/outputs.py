"""Where a network's output holds the logits, and the output with others in their place."""

from collections.abc import Callable, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn

from agm._inputs.structures import entries, parse_path, places, read, replaced, replaced_everywhere
from agm._lazy_rows.tensor import Deferred
from agm._passes.declared_head import DeclaredHead
from agm._passes.own_losses import own_losses
from agm._passes.warned import warn

__all__ = ["Output", "Outputs"]

Output = str | int | tuple[Any, ...] | Callable[[Any], Tensor]
"""Which part of a network's output holds the logits: a key, an index, a path of these, or a function."""


class Outputs:
    """Finds the logits in what a network returns.

    Args:
        output: where they are. None: the output itself if it is a tensor, else its `logits`.
        class_dim: the dimension of the classes, in logits of more than two; None: the last.
        head: the module that returns the logits, if it is declared.

    Raises:
        TypeError: `output` is no key, index, path or function, or `class_dim` no integer.
    """

    def __init__(
        self, output: Output | None = None, class_dim: int | None = None, head: DeclaredHead | None = None
    ) -> None:
        if output is not None and not (isinstance(output, (str, int, tuple)) or callable(output)):
            raise TypeError(
                "Expected argument `output` to be a key, an index, a path such as 'heads.fused', or a function of the "
                f"output, but got {type(output).__name__}."
            )
        if class_dim is not None and (isinstance(class_dim, bool) or not isinstance(class_dim, int) or class_dim == 0):
            raise TypeError(
                "Expected argument `class_dim` to be the dimension of the classes, 1 for (B, C, H, W), and not 0, "
                f"which is that of the samples, but got {class_dim!r}."
            )
        self.output = output
        self.class_dim = class_dim
        self.head = head
        self._has_warned = False
        self._has_doubted: set[str] = set()

    @property
    def are_withheld(self) -> bool:
        """Whether there are none now, since the network ends before its head."""
        return self.head is not None and self.head.is_withheld

    def logits(self, output: Any) -> Tensor:
        """The logits, with the classes last: (B, ..., C), and (B, 1) where there is one number a sample.

        Where the network ends before its declared head they are what that was given, (B, ..., D).

        Raises:
            ValueError: they are not where they should be.
        """
        found = self._logits(output)
        if self.head is not None:
            self.head.check(found)
        return found

    def _logits(self, output: Any) -> Tensor:
        if type(output) is Tensor and self.output is None and self.class_dim is None and output.dim() > 1:
            return output  # at once: most networks return them alone
        if isinstance(output, Deferred) and self.output is None and self.class_dim is None and output.dims > 1:
            return output
        found = self.leaf(output)
        if self.class_dim is not None:
            if not -found.dim() <= self.class_dim < found.dim():
                raise ValueError(
                    f"Expected argument `class_dim` to be a dimension of the logits, but got {self.class_dim} for "
                    f"{tuple(found.shape)}."
                )
            return found.movedim(self.class_dim, -1)
        return found.unsqueeze(1) if found.dim() == 1 else found

    def warn_of_classes(self, logits: Tensor, target: Any) -> None:
        """Once, of logits (B, ..., C) that fit the target with the classes in dimension 1 as well."""
        if torch.compiler.is_compiling() or self.class_dim is not None or self._has_warned:
            return
        alike = len(set(logits.shape[1:])) == 1
        if alike and isinstance(target, Tensor) and target.shape == logits.shape[:-1]:
            self._has_warned = True
            warn(
                f"Logits {tuple(logits.shape)} fit the target {tuple(target.shape)} whether their classes are in "
                "dimension 1 or in the last: the last is taken. Say which, with class_dim=1 or class_dim=-1.",
            )

    def put(self, output: Any, logits: Tensor) -> Any:
        """The output in its own structure, with these logits (B, ..., C) in their place.

        Raises:
            ValueError: it holds a loss that was computed from the logits.
        """
        leaf = self.leaf(output)
        if leaf is not output:
            self.check_losses(output)
        if self.class_dim is not None:
            logits = logits.movedim(-1, self.class_dim)
        logits = logits.view_as(leaf) if leaf.dim() == 1 else logits
        if leaf is output:
            return logits
        made = replaced_everywhere(output, leaf, logits)
        if made is None:
            raise ValueError(
                "Expected argument `output` to be a function that picks a tensor out of the network's output, but what "
                "it returned is not in there. Compute nothing from it, or give a key or an index."
            )
        return made

    def check_losses(self, output: Any, head: nn.Linear | None = None) -> None:
        """That the output of a network that trains holds no loss that it has computed from its logits.

        Args:
            output: of the network.
            head: what makes logits of what is in their place, as in `own_losses`.

        Raises:
            ValueError: it does, or a `loss` of whatever.
        """
        loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if isinstance(loss, Tensor) and loss.requires_grad and torch.is_grad_enabled():
            raise ValueError(_OWN_LOSS.format("a `loss`"))
        logits = self.leaf(output)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or logits.grad_fn is None:
            return
        for place, verdict in own_losses(output, logits, head).items():
            if verdict == "loss":
                raise ValueError(_OWN_LOSS.format(f"one at {place}, computed from the logits"))
            if verdict not in self._has_doubted:
                self._has_doubted.add(verdict)
                warn(_DOUBTS[verdict].format(place))

    def with_loss(self, output: Any, loss: Tensor, *, keeps_logits: bool) -> Any:
        """The output in its own structure with a loss in it, and None in the place of the logits if they are not kept.

        Of a network that returns the logits alone: these if they are kept, else the loss.

        Raises:
            ValueError: it has no room for a loss.
        """
        leaf = self.leaf(output)
        if leaf is output:
            return leaf if keeps_logits else loss
        path = next(places(output, leaf), None)
        if path is None or not (isinstance(output, Mapping) or hasattr(output, "loss")) or isinstance(output, tuple):
            raise ValueError(
                "Expected the network to return its logits alone, or a ModelOutput, a mapping or an object with a "
                f"`loss` beside them, for `loss` of agm.AGM, but got {_kind(output)}. Return a dict of them, or "
                "leave `loss` out: the call then returns the logits."
            )
        if isinstance(output, Mapping):
            made: Any = copy(output)
            made["loss"] = loss
        else:
            made = replaced(output, ("loss",), loss)
        return made if keeps_logits else replaced_everywhere(made, leaf, None)

    def leaf(self, output: Any) -> Tensor:
        """The tensor in the output that holds the logits, as it is there."""
        if isinstance(output, Tensor) and not callable(self.output):  # some return more in training than in eval mode
            found = output
        elif self.output is None:
            found = _named_logits(output)
        elif callable(self.output):
            found = self.output(output)
        else:
            try:
                found = read(output, parse_path(self.output))
            except LookupError:
                found = None
        if not isinstance(found, Tensor) or found.dim() == 0:
            raise ValueError(_refusal(output, self.output))
        return found


def _named_logits(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits")
    return getattr(output, "logits", None)


_OWN_LOSS = (
    "Expected the network's forward to return no loss of its own while it trains, since its gradient would pass by the "
    "modulation, but its output holds {}. Leave the labels out of the call, give them as `target`, and compute the "
    "loss from the logits: F.cross_entropy(output.logits, target). What is only looked at may come without its graph "
    "(detach)."
)


_DOUBTS = {
    "unknown": (
        "The network's output holds a scalar with a gradient at {}, which a compiled or a custom function returns "
        "together with the logits: whether it is computed from them cannot be seen. If it is, its gradient passes by "
        "the modulation: leave the labels out of the call, and compute the loss from the logits."
    ),
    "numbers": (
        "The network's output holds numbers at {}, which it has computed from its logits. The gradient "
        "of a loss that is made of them passes by the modulation: compute it from the logits that the model returns. "
        "What is only looked at may come without its graph (detach)."
    ),
}


def _refusal(output: Any, given: Output | None) -> str:
    found = entries(output)
    if given is not None:
        wanted = f"argument `output` to lead to the logits, but there are none at {given!r}"
    else:
        wanted = f"the network to return logits, alone or as `logits`, but got {_kind(output)}"
    if found is None:
        return f"Expected {wanted}."
    choices = ", ".join(f"{key!r}: {_kind(value)}" for key, value in found)
    return f"Expected {wanted}. Say where they are, with `output=`, one of {{{choices}}}."


def _kind(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
