"""Plain joint training, under the interface of the others."""

from agm.strategies.strategy import Strategy

__all__ = ["Joint"]


class Joint(Strategy):
    """Joint training: the gradient of the joint loss as it is, `L = CE(f(x), y)`. The baseline of all others."""

    dense = True
    distributed = True
    lacking = "zeros"
    tasks = frozenset({"classes", "labels", "numbers"})
