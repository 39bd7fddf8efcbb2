"""The name under which a model takes the targets of a batch."""

import inspect

from torch import nn

__all__ = ["check_target_name"]


def check_target_name(network: nn.Module, target: str, takes: bool = False) -> str:
    """The name under which a call takes the targets.

    Args:
        network: whose forward is called.
        target: the name.
        takes: whether AGM may take what forward has a parameter for, since it computes the loss in its place.

    Raises:
        ValueError: forward has a parameter of that name, or of `present`.
        TypeError: it is no name.
    """
    if not isinstance(target, str) or not target.isidentifier():
        raise TypeError(f"Expected argument `target` to be a name such as 'labels', but got {target!r}.")
    own = inspect.signature(network.forward).parameters
    if target in own and not (takes and own[target].default is not inspect.Parameter.empty):
        raise ValueError(
            f"Expected the network's forward to have no parameter `{target}`, since AGM takes the targets under that "
            "name and does not pass them on. Let AGM take them under another: agm.AGM(..., target='labels')."
        )
    if "present" in own:
        raise ValueError(
            "Expected the network's forward to have no parameter `present`, since AGM takes which samples have which "
            "modalities under that name and does not pass them on. Rename the network's."
        )
    return target
