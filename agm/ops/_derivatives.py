"""Gradients of which there is no derivative: whoever asks for one gets an error, not a gradient without it."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["once_differentiable"]


class _Refusal(torch.autograd.Function):
    """Gradients forward; backward, an error."""

    @staticmethod
    def forward(ctx: Any, message: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(grad.detach() for grad in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        raise RuntimeError(ctx.message)


def once_differentiable(op: str, instead: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks the backward of an autograd function whose gradients cannot be differentiated again.

    torch's decorator of that name lets a derivative through as 0 where it would flow through what the forward saved,
    and where `torch.autograd.grad` is told the inputs. Here the error stands between the gradients and everything that
    they were made of, so whatever way a derivative takes, it meets it; and who only sets `create_graph=True` does not.

    Args:
        op: what the user called.
        instead: what to do.
    """
    message = f"Expected the gradient of `{op}` not to be differentiated again, but got a second derivative. {instead}"

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def once(ctx: Any, *grads: Tensor | None) -> Any:
            with torch.no_grad():
                found = backward(ctx, *grads)
            if torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return found
            sources = [one for one in (*grads, *ctx.saved_tensors) if one is not None and one.requires_grad]
            results = found if isinstance(found, tuple) else (found,)
            made = [one for one in results if one is not None]
            if not sources or not made:
                return found
            refusing = iter(_Refusal.apply(message, len(made), *made, *sources))
            return tuple(None if one is None else next(refusing) for one in results)

        return once

    return decorate
