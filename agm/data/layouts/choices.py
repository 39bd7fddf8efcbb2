"""Options of readers: what they may be, and what they are without being chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agm.data.layouts.front_ends import FRONT_ENDS
from agm.data.layouts.sound import RESAMPLERS

__all__ = ["Choice", "flag", "number", "one_of", "sound_options", "visual_options"]


@dataclass(frozen=True)
class Choice:
    """An option of a reader.

    Args:
        default: its value where none is given.
        help: what it does.
        expected: its values, in words.
        parse: a text or value to the value; raises ValueError or TypeError for others.
    """

    default: Any
    help: str
    expected: str
    parse: Callable[[Any], Any]

    def checked(self, name: str, value: Any) -> Any:
        """The value, or the default for None.

        Raises:
            ValueError: it is none of those.
        """
        if value is None:
            return self.default
        try:
            return self.parse(value)
        except (TypeError, ValueError):
            raise ValueError(f"Expected option `{name}` to be {self.expected}, but got {value!r}.") from None


def one_of(default: str, *others: str, help: str) -> Choice:
    names = (default, *others)

    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    return Choice(default, help, "one of " + ", ".join(names), parse)


def number(default: int | None, low: int, high: int, help: str) -> Choice:
    def parse(value: Any) -> int:
        made = int(value)
        if isinstance(value, (bool, float)) or not low <= made <= high:
            raise ValueError
        return made

    return Choice(default, help, f"an integer from {low} to {high}", parse)


def flag(default: bool, help: str) -> Choice:
    def parse(value: Any) -> bool:
        return {"true": True, "false": False, True: True, False: False}[value]

    def checked(value: Any) -> bool:
        try:
            return parse(value)
        except KeyError:
            raise ValueError from None

    return Choice(default, help, "true or false", checked)


def sound_options(default: str) -> dict[str, Choice]:
    others = [name for name in FRONT_ENDS if name != default]
    return {
        "audio": one_of(default, *others, help="front end of the sound (agm.data.layouts.front_ends)"),
        "padding": one_of(
            "constant", "reflect", help="ends of the STFT: zeros (librosa 0.9 and newer) or mirrored (older)"
        ),
        "resampler": one_of(*RESAMPLERS, help="librosa's default since 0.10, or before"),
    }


def visual_options(frames: int, pick: str) -> dict[str, Choice]:
    others = [name for name in ("seeded", "middle", "lower-middle", "first") if name != pick]
    return {
        "frames": number(frames, 1, 64, "frames of a clip"),
        "pick": one_of(pick, *others, help="which frames: AGM's frozen draw, the middle of each part, the first"),
        "size": number(224, 8, 1024, "sides of an image in pixels"),
    }
