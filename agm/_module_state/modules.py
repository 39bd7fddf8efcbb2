"""The modules of a network, found fast: a training step asks several times."""

import torch
from torch import nn

__all__ = ["path_of", "submodules"]


def submodules(root: nn.Module) -> list[nn.Module]:
    """`root` and all modules in it, each once: those of `root.modules()`, level by level.

    But for those without a mode, which `torch.jit.freeze` leaves: they hold no parameters either.
    """
    if torch.compiler.is_compiling():  # which knows that
        return list(root.modules())
    found, seen = [root], {root}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen and hasattr(child, "training"):
                seen.add(child)
                found.append(child)
    return found if hasattr(root, "training") else found[1:]


def path_of(module: nn.Module, root: nn.Module) -> str:
    """Where a module is in `root`: "" for itself."""
    paths: dict[nn.Module, str] = {other: path for path, other in root.named_modules()}
    return paths[module]
