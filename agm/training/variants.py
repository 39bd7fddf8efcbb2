"""Methods with settings of their own, as one word: agm(alpha=0.5,masked=shared)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from agm.training.config import OPTIONS, Config, kind_of
from agm.training.errors import UserError
from agm.training.methods import check_method, own_options

__all__ = ["Variant", "parse_value", "parse_variant", "split_variants", "variant_of"]

# What all runs of a comparison have in common, or what their folders are named by.
_COMMON = (
    "dataset",
    "modalities",
    "scale",
    "validation",
    "fusion",
    "method",
    "error",
    "choose",
    "seed",
    "device",
    "threads",
    OPTIONS,
)
_AGM_ONLY = ("alpha", "max_gap", "masked")


@dataclass(frozen=True)
class Variant:
    """A method and what is set for it alone.

    Args:
        label: as it was written, without spaces; it names tables and folders.
        method: a name that setting `method` takes.
        settings: settings of `Config` that it replaces.
        options: options of the method.
    """

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: Config) -> Config:
        """The settings of its runs.

        Raises:
            UserError: a value that a setting does not take.
        """
        return replace(base, method=self.method, **self.settings, options={**base.options, **self.options})


def parse_variant(text: str) -> Variant:
    """A variant from NAME or NAME(KEY=VALUE,...), the values as in TOML, or as bare words.

    KEY is an option of the method, or a setting (lr, clip_norm, start ...). `alpha`, `max_gap` and `masked` are
    settings for agm; the alpha of another method is its option.

    Raises:
        UserError: not of this form, an unknown method, or a key that it does not have.
    """
    match = re.fullmatch(r"\s*([^()\s]+)\s*(?:\((.*)\))?\s*", text, flags=re.DOTALL)
    if match is None:
        raise _malformed(text)
    method, inside = match.groups()
    values = {}
    for part in split_variants(inside or ""):
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or not value.strip() or key.strip() in values:
            raise _malformed(text)
        values[key.strip()] = parse_value(value.strip())
    return variant_of(method, values, label=re.sub(r"\s+", "", text))


def variant_of(method: str, values: Mapping[str, Any], label: str = "") -> Variant:
    """A variant from a method and its values.

    Args:
        method: its name.
        values: settings and options together, by name.
        label: of the variant; made from the others by default.

    Raises:
        UserError: an unknown method, or a name that is neither.
    """
    kind, _ = check_method(method)
    options, known = own_options(kind), [spec.name for spec in fields(Config)]
    settings, own = {}, {}
    for name, value in values.items():
        if name in options:
            own[name] = value
        elif name in known and name not in _COMMON and (kind == "agm" or name not in _AGM_ONLY):
            optional = kind_of(name)[1]
            settings[name] = None if optional and value == "none" else value
        else:
            usable = [*options, *(n for n in known if n not in _COMMON and (kind == "agm" or n not in _AGM_ONLY))]
            raise UserError(
                f"Expected the settings of method {method!r} to be among {', '.join(usable)}, but got {name!r}. "
                "What all methods share is set once, outside the parentheses."
            )
    inside = ",".join(f"{name}={value}" for name, value in values.items())
    return Variant(label or (f"{method}({inside})" if inside else method), method, settings, own)


def split_variants(text: str) -> list[str]:
    """The parts between commas that stand in no parentheses, brackets or braces.

    Raises:
        UserError: a bracket without its other half.
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0:
            break
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth != 0:
        raise _malformed(text)
    return [part.strip() for part in parts if part.strip()]


def parse_value(text: str) -> Any:
    """A TOML value (0.5, true, "text", {audio = 1.3}), or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _malformed(text: str) -> UserError:
    return UserError(
        f"Expected a method with settings to be written NAME(KEY=VALUE,...), but got {text.strip()!r}. "
        'Quote the whole list in a shell: --methods "joint,agm(alpha=0.5,masked=shared)".'
    )
