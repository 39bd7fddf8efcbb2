"""A checkpoint: one file that is either whole or not there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from agm.data._files import replacing
from agm.data._reading import load_tensors
from agm.training.errors import UserError

__all__ = ["fitting", "load_checkpoint", "random_state", "restore_random_state", "save_checkpoint"]

FORMAT = 3


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write tensors and plain values; a crash at any moment leaves the old file or the new one."""
    content = io.BytesIO()  # torch turns a full disk into an error of its own
    torch.save({"format": FORMAT, **contents}, content)
    with replacing(path) as file:
        file.write(content.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, onto the CPU; runs no code from the file, whoever wrote it.

    Raises:
        UserError: no such file, or not a checkpoint of this version of the format.
    """
    try:
        contents = load_tensors(path)
    except FileNotFoundError as error:
        raise UserError(
            f"Expected {str(path)!r} to be a checkpoint, but got no such file. "
            "Give the folder of a run that finished an epoch."
        ) from error
    except OSError as error:
        raise UserError(f"Expected {str(path)!r} to be a checkpoint, but got: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(
            f"Expected {str(path)!r} to be a checkpoint, but it does not load: {error}. "
            "Train again into another folder with --out."
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise UserError(
            f"Expected {str(path)!r} to be a checkpoint of format {FORMAT}, but got {found!r}. "
            "Use the version of agm that wrote it, or train again into another folder with --out."
        )
    return contents


def random_state() -> dict[str, Any]:
    """State of every generator that training draws from: torch's, on the CPU and on each GPU."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": devices}


def restore_random_state(state: dict[str, Any]) -> None:
    """Undo all draws since `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """What is read inside comes from the checkpoint at `path`, which may be another network's, or made by hand.

    Raises:
        UserError: something in it is missing, or is not what it should be.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"Expected {str(path)!r} to be a checkpoint of this run, but what is in it does not fit: "
            f"{type(error).__name__}: {reason} Train again into another folder with --out."
        ) from error
