"""Whether a step is being recorded in a CUDA graph."""

import torch

__all__ = ["check_captured", "is_capturing", "is_recorded"]


def is_capturing() -> bool:
    """Whether the current stream is capturing: then nothing runs, and nothing may be read or waited for."""
    # Where no GPU has been used the question itself would claim one.
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_recorded() -> bool:
    """Whether what runs is to be replayed, compiled or captured: what it keeps outside would be that of one step."""
    return torch.compiler.is_compiling() or is_capturing()


def check_captured(subsets: int | None, has_stepped: bool) -> None:
    """That a training step which is captured, if this one is, is not the first, and the same whenever it is replayed.

    Args:
        subsets: how many are drawn in a step; None: all are evaluated.
        has_stepped: whether there was a step before.

    Raises:
        RuntimeError: it is not.
    """
    if not is_capturing():
        return
    if subsets is not None:
        raise RuntimeError(
            "Expected a step that is captured in a CUDA graph to have no `subsets`, since every replay would evaluate "
            f"those of one draw, but got subsets={subsets}. Leave them out."
        )
    if not has_stepped:
        raise RuntimeError(
            "Expected a training step before one that is captured in a CUDA graph, since the first one looks at "
            "numbers, but got none. Take a few on a stream of their own, as torch.cuda.graph asks for anyway."
        )
