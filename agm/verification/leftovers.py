"""What a forward pass has left in a network: attributes, what they contain, and parameters that it wrote to."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from agm._module_state.containers import OF_MODULES, is_iterator, parts
from agm._module_state.iterators import state_of
from agm.verification.distances import difference, largest_of
from agm.verification.snapshot import Counted

__all__ = ["counted", "differences", "left_behind", "tensors_in_attributes"]

_DEPTH = 3


def left_behind(network: nn.Module) -> dict[str, Any]:
    """By name the tensors, numbers and iterators in attributes, lengths of containers, what tells parameters apart."""
    found: dict[str, Any] = {}
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in vars(module).items():
            if name not in OF_MODULES:
                found.update(_flattened(f"{prefix}{name}", value, _DEPTH))
    for name, parameter in network.named_parameters():
        found[name] = _fingerprint(parameter)
    return found


def counted(network: nn.Module) -> list[str]:
    """Attributes that hold iterators which cannot be copied."""
    return [
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Counted)
    ]


def _flattened(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter):
            yield name, f"a {type(value).__name__}"
        else:
            yield name, value.detach().clone()
    elif isinstance(value, (bool, int, float, complex, str)):
        yield name, value
    elif isinstance(value, Counted):
        yield name, value.draws
    elif is_iterator(type(value)):
        yield name, state_of(value)
    elif isinstance(value, (list, tuple, set)) and depth:
        yield f"len({name})", len(value)
        for index, inner in enumerate(value if not isinstance(value, set) else ()):
            yield from _flattened(f"{name}[{index}]", inner, depth - 1)
    elif isinstance(value, Mapping) and depth:
        yield f"len({name})", len(value)
        for key, inner in value.items():
            yield from _flattened(f"{name}[{key!r}]", inner, depth - 1)
    elif depth:
        for part, inner in parts(value):
            if not isinstance(inner, float):  # as a time is, of which no two steps have the same
                yield from _flattened(f"{name}.{part}", inner, depth - 1)


def _fingerprint(parameter: Tensor) -> Tensor:
    """Two numbers that change with the values, so that no copy of a large network is kept."""
    if parameter.is_meta or not parameter.numel():
        return torch.zeros(2)
    values = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32)).flatten()
    places = torch.arange(len(values), device=values.device).to(values).cos()
    return torch.stack([values.sum(), (values * places).sum()]).cpu().double()


def differences(own: Mapping[str, Any], expected: Mapping[str, Any]) -> dict[str, float]:
    """Name -> how far what was left is from what should be, over its largest element; infinite for another kind."""
    return {name: _difference(own.get(name), expected.get(name)) for name in {**own, **expected}}


def _difference(own: Any, expected: Any) -> float:
    if isinstance(own, Tensor) and isinstance(expected, Tensor):
        return difference(own, expected, max(largest_of(expected), 1e-30))
    plain = not isinstance(own, Tensor) and not isinstance(expected, Tensor)
    return 0.0 if plain and own == expected else float("inf")


def tensors_in_attributes(network: nn.Module) -> Iterator[Tensor]:
    """Those that hang in a graph, which cannot be copied as they are."""
    pending = [value for module in network.modules() for name, value in vars(module).items() if name not in OF_MODULES]
    for _ in range(100_000):
        if not pending:
            return
        value = pending.pop()
        if isinstance(value, Tensor):
            if value.grad_fn is not None:
                yield value
        elif isinstance(value, (list, tuple, set)):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())
