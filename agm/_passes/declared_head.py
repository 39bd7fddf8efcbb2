"""The head that a user declares: the module whose output is the network's logits."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from agm._inputs.trees import leaves_of
from agm._lazy_rows.decision import Deferral
from agm._lazy_rows.tensor import METADATA, Deferred
from agm._module_state.compiled import is_compiled
from agm._module_state.hooks import ALL_KINDS
from agm._module_state.replace_forward import answering
from agm._module_state.undo import Contexts, putting_back
from agm.distributed import is_sharded

__all__ = ["DeclaredHead"]


class DeclaredHead:
    """The module at a path, found anew in every step, since the network may put another in its place.

    Args:
        network: whose head it is.
        path: of the module in the network.

    Raises:
        TypeError: `path` is not a string.
        ValueError: it leads nowhere, or to the network itself.
    """

    def __init__(self, network: nn.Module, path: str) -> None:
        if not isinstance(path, str):
            raise TypeError(
                "Expected argument `head` to be the path of a module in the network, such as 'lm_head', but got a "
                f"{type(path).__name__}."
            )
        self.network = network
        self.path = path
        self._pass: _Pass | None = None  # of the network that ends before its head
        self._watched: _Watched | None = None
        self._find()

    def _find(self) -> nn.Module:
        try:
            found = self.network.get_submodule(self.path)
        except AttributeError:
            children = ", ".join(name for name, _ in self.network.named_children())
            raise ValueError(
                f"Expected argument `head` to be the path of a submodule, but the network has no {self.path!r}. Its "
                f"children are: {children}."
            ) from None
        if found is self.network:
            raise ValueError("Expected argument `head` to be a part of the network, but got all of it.")
        return found

    def _around(self) -> list[nn.Module]:
        """The network, the modules on the way to the head, and the head."""
        steps = self.path.split(".")
        return [self.network.get_submodule(".".join(steps[:length])) for length in range(len(steps) + 1)]

    def linear(self) -> nn.Linear:
        """The head as a linear layer, of which nothing but weight and bias is needed to compute what it returns.

        Raises:
            ValueError: it is another module, or more than its weight and bias make what it returns.
        """
        found = self._find()
        why = None
        if not isinstance(found, nn.Linear):
            why = f"is a {type(found).__name__}"
        elif type(found).forward is not nn.Linear.forward or "forward" in vars(found):
            why = f"is a {type(found).__name__} with a forward of its own"
        elif getattr(found, "parametrizations", None):
            why = "computes its weight anew in each call (a parametrization)"
        elif any(is_sharded(part) for part in self._around()):
            why = "is in a part that is sharded by itself, and not with the model: fully_shard(agm.AGM(...))"
        elif any(getattr(found, hooks) for hooks in ALL_KINDS):
            why = "has hooks, which would be called with logits that are not made"
        elif any(getattr(part, hooks) for part in self._around() for hooks in _HOOKS_ON_OUTPUTS):
            why = "is in a module with hooks on its output, which would hold logits that are not made"
        elif any(is_compiled(part) for part in self._around()):
            why = "is in a part that is compiled by itself, and not with the model: torch.compile(agm.AGM(...))"
        if why is not None:
            raise ValueError(
                "Expected argument `head` to be the path of a plain nn.Linear with `loss`, which is computed from its "
                f"weight and bias, but {self.path!r} {why}. Leave `loss` out: the call then returns the logits."
            )
        assert isinstance(found, nn.Linear)
        return found

    @property
    def is_withheld(self) -> bool:
        """Whether the network ends before its head now."""
        return self._pass is not None

    @property
    def left_out(self) -> nn.Linear | None:
        """The head, where the network ends before it now; None where it does not."""
        found = self._find() if self.is_withheld else None
        return found if isinstance(found, nn.Linear) else None

    def withheld(self) -> AbstractContextManager[None]:
        """Inside, the head returns what it is given: the network's logits are then the hidden features (B, ..., D)."""
        before, own = self._pass, _Pass()

        def begin() -> None:
            self._pass = own

        def put_back() -> None:
            self._pass = before

        answers: dict[nn.Module, Callable[..., Any]] = {self._find(): own.answer}
        contexts: list[Callable[[], AbstractContextManager[object]]] = [
            partial(putting_back, put_back, begin),
            partial(answering, answers),
        ]
        if not torch.compiler.is_compiling():
            contexts.append(partial(_Onlooker, own))
        return Contexts(*contexts)

    def check(self, logits: Tensor) -> None:
        """Where the network ends before its head: that it returned what the head was given, and nothing made of it.

        Raises:
            ValueError: it did not.
        """
        if self._pass is not None and (why := self._pass.fault(logits)) is not None:
            raise ValueError(
                f"Expected argument `head` to be the path of the last module before the logits with `loss`, but {why}. "
                "Name the one that returns them, or leave `loss` out: the call then returns the logits."
            )

    def watched(self, run: Callable[[], Any]) -> Any:
        """What one pass through the network returns, of which `refusal` then says what the head was in it."""
        module = self._find()
        self._watched = watched = _Watched(module.forward)
        with answering({module: watched}):
            watched.logits = run()
        return watched.logits

    def refusal(self, found: Deferral) -> ValueError | None:
        """What is raised where the network, in the pass that was `watched`, did not add up its modalities in the head.

        Args:
            found: what that pass showed of its rows.
        """
        watched = self._watched
        self._watched = None
        why = None if watched is None else watched.fault(found)
        if why is None:
            return None
        return ValueError(
            "Expected argument `head` to be the path of the linear head in which the modalities add up to the logits, "
            f"but {self.path!r} is not: {why}. Leave it out: a sum over the modalities is recognised by itself."
        )


class _Pass:
    """What a head that is withheld was given in the passes of one step."""

    def __init__(self) -> None:
        self.answers: list[Tensor] = []  # in the pass that runs now
        self.used_by = ""  # what else was called with one of them
        self._checked: list[Tensor] = []

    def answer(self, input: Tensor) -> Tensor:
        # A tensor of its own: forward may go on with what it has given the head.
        self.answers.append(input if isinstance(input, Deferred) else input.view_as(input))
        return self.answers[-1]

    def fault(self, logits: Tensor) -> str | None:
        if any(one is logits for one in self._checked):
            return None
        answers, used_by = self.answers, self.used_by
        self.answers, self.used_by = [], ""
        if not answers:
            return "forward does not call it on the way to them"
        if len(answers) > 1:
            return f"forward calls it {len(answers)} times"
        if used_by or answers[0] is not logits:
            return f"forward does more with what it returns, by `{used_by}`" if used_by else _ELSE
        self._checked.append(logits)
        return None


class _Onlooker(TorchFunctionMode):
    """Sees whether a function is called with what the head has returned; looking at its shape is none."""

    def __init__(self, own: _Pass) -> None:
        super().__init__()
        self._own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._own.answers and func not in METADATA:
            used = [leaf for leaf in leaves_of((args, kwargs)) if any(leaf is one for one in self._own.answers)]
            if used and result is not used[0]:  # `float` of what is
                self._own.used_by = getattr(func, "__name__", str(func))
        return result


class _Watched:
    """The forward of a head, and what came of it in one pass."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        self.logits: Any = None
        self._returned: list[Any] = []
        self._given_few = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in leaves_of((args, kwargs)) if isinstance(leaf, Tensor)]
        self._given_few = any(isinstance(leaf, Deferred) and leaf.content is not None for leaf in given)
        self._returned.append(self.forward(*args, **kwargs))
        return self._returned[-1]

    def fault(self, found: Deferral) -> str | None:
        calls = len(self._returned)
        if found.why:
            return f"{found.why}"
        if not calls:
            return "forward does not call it in a masked pass"
        if calls > 1:
            return f"forward calls it {calls} times"
        if found.how == "sum":
            return None if self._returned[0] is self.logits else _ELSE
        if not self._given_few:
            return "the modalities meet before it"
        return "what it returns is not linear in what each modality gives it, or forward does more with it"


_ELSE = "the logits are not what it returns, but come from it or from something else"
_HOOKS_ON_OUTPUTS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
