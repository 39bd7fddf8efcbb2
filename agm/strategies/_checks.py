"""Checks of the settings of strategies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = [
    "check_choice",
    "check_count",
    "check_flag",
    "check_fraction",
    "check_number",
    "check_per_modality",
    "check_positive",
    "check_window",
]


def check_number(name: str, value: Any, *, least: float = 0.0, below: float = math.inf) -> float:
    """`value` as a float in [least, below).

    Raises:
        ValueError: it is none.
    """
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not usable or not least <= value < below:
        end = "finite" if below == math.inf else f"below {below:g}"
        raise ValueError(f"Expected argument `{name}` to be a number >= {least:g} and {end}, but got {value!r}.")
    return float(value)


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """`value` if it is an integer >= least.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"Expected argument `{name}` to be an integer >= {least}, but got {value!r}.")
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value` if it is one of the choices.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"Expected argument `{name}` to be one of {listed}, but got {value!r}.")
    return str(value)


def check_flag(name: str, value: Any) -> bool:
    """`value` if it is True or False.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"Expected argument `{name}` to be True or False, but got {value!r}.")
    return value


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float above 0, and at most 1.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError(f"Expected argument `{name}` to be a number above 0 and at most 1, but got {value!r}.")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """`value` as a finite float above 0.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"Expected argument `{name}` to be a finite number above 0, but got {value!r}.")
    return float(value)


def check_per_modality(name: str, values: Any, modalities: tuple[str, ...]) -> tuple[float, ...]:
    """One number >= 0 a modality, in their order; 1 for all where `values` is None.

    Raises:
        ValueError: not a mapping with exactly the modalities, or a number that cannot be.
    """
    if values is None:
        return (1.0,) * len(modalities)
    if not isinstance(values, Mapping) or set(values) != set(modalities):
        raise ValueError(
            f"Expected argument `{name}` to map each of {', '.join(modalities)} to a number, but got {values!r}."
        )
    return tuple(check_number(f"{name}[{modality!r}]", values[modality]) for modality in modalities)


def check_window(start: Any, stop: Any) -> None:
    """Epochs 0 <= start <= stop, or stop None.

    Raises:
        ValueError: they are not.
    """
    check_count("start", start, least=0)
    if stop is not None and check_count("stop", stop, least=0) < start:
        raise ValueError(f"Expected argument `stop` to be None or >= `start` ({start}), but got {stop!r}.")
