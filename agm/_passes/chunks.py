"""The masked rows in chunks, so that what a masked pass holds in memory can be bounded."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from agm._module_state.eval_mode import Evaluation, mixes_samples, why_mixes
from agm._module_state.hooks import ForwardHooks
from agm._module_state.structure import Structure
from agm._passes.declared_head import DeclaredHead

__all__ = ["Chunks", "note_rows"]


class Chunks:
    """How many masked rows go through the network at a time, and whether the backward recomputes them.

    Args:
        max_rows: at most so many rows at a time; None: all at once.
        checkpoint: whether each chunk's activations are dropped after its forward and recomputed in the backward.
        head: the network's head, if it is declared.

    Raises:
        ValueError: `max_rows` is not a positive integer.
        TypeError: `checkpoint` is not a bool.
    """

    def __init__(self, max_rows: int | None = None, checkpoint: bool = False, head: DeclaredHead | None = None) -> None:
        if max_rows is not None and (isinstance(max_rows, bool) or not isinstance(max_rows, int) or max_rows < 1):
            raise ValueError(
                f"Expected argument `max_rows` to be a positive integer, or None for all rows at once, but got "
                f"{max_rows!r}."
            )
        if not isinstance(checkpoint, bool):
            raise TypeError(f"Expected argument `checkpoint` to be a bool, but got {checkpoint!r}.")
        self.max_rows = max_rows
        self.checkpoint = checkpoint
        self.head = head

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        return self.max_rows is not None or self.checkpoint

    def have_room(self, batch: int) -> bool:
        """Whether all rows of a subset may go through at a time."""
        return self.max_rows is None or self.max_rows >= batch

    def describe(self, network: nn.Module, meet: str = "") -> str:
        """In words for a plan, to be appended to what goes through in chunks; `meet` as in `parts`."""
        if why := meet or _layers(network)[0]:
            rows = f", one subset at a time, because {why}"
        else:
            rows = f", at most {self.max_rows} rows at a time" if self.max_rows is not None else ""
        return rows + (", recomputed in the backward" if self.checkpoint else "")

    def parts(self, network: nn.Module, batch: int, subsets: int, meet: str = "") -> list[range] | list[None]:
        """The rows of each chunk, among `subsets` blocks of `batch` rows; None: all of them.

        Args:
            network: that they go through.
            batch, subsets: see above.
            meet: how rows have been seen to meet in it, in words; empty: they have not.

        Raises:
            ValueError: `max_rows` < B where all rows of a block are needed.
        """
        size = self.max_rows or max(batch * subsets, 1)
        why, instead = (meet, "") if meet else _layers(network)
        if why and size < batch:
            raise ValueError(
                f"Expected argument `max_rows` to be at least the {batch} samples of a batch, since {why}, but got "
                f"{size}. {f'{instead}, or raise' if instead else 'Raise'} `max_rows`."
            )
        if why:
            size = batch
        elif size >= batch > 0:
            size -= size % batch  # whole subsets, of which a look can tell whether they meet
        rows = range(batch * subsets)
        return [rows[start : start + size] for start in rows[::size]] if batch and size < len(rows) else [None]

    def run(
        self,
        network: nn.Module,
        call: Callable[[range | None], Any],
        parts: list[range] | list[None],
        hooks: ForwardHooks | None = None,
        structure: Structure | None = None,
    ) -> Any:
        """What `call(part)` returns for each part, put together, in eval mode.

        Args:
            network: whose modes and running statistics of now hold in every call, the recomputing ones too.
            call: builds the rows of its part and runs the network on them. The rows are built in there because a
                checkpoint keeps what it is given: so it keeps one batch of inputs, and not one for every subset.
            parts: see `parts`.
            hooks: of the network's modules, of which observers are left out.
            structure: of the network as it is now, if it is known.
        """
        written = [] if structure is None else structure.tensors.written()
        mode = Evaluation(network, hooks, structure, draws=True, written=written)
        withheld = nullcontext if self.head is None or not self.head.is_withheld else self.head.withheld

        def evaluated(part: range | None) -> Any:
            with mode.entered(), withheld():  # where it is recomputed, too
                return call(part)

        # A compiler decides by itself what it recomputes.
        recomputed = self.checkpoint and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        outputs = [
            checkpoint(evaluated, part, use_reentrant=False) if recomputed else evaluated(part) for part in parts
        ]
        # What is no tensor is for the caller to refuse, who can say what was expected.
        if len(outputs) == 1 or not all(isinstance(output, Tensor) for output in outputs):
            return outputs[0]
        if any([output.shape[1:] != outputs[0].shape[1:] for output in outputs]):
            shapes = " and ".join(sorted({str(tuple(output.shape)) for output in outputs}))
            raise ValueError(
                f"Expected the network to return as many logits for each of {self.max_rows} rows as for each of fewer, "
                f"but got {shapes}. If they are similarities of samples, set `max_rows` to the size of your batches: "
                "each subset then has a pass of its own."
            )
        return torch.cat(outputs)


def _layers(network: nn.Module) -> tuple[str, str]:
    """How a layer of a network puts rows together, and what to do about it; empty where none does."""
    mixing = mixes_samples(network)
    if not mixing:
        return "", ""
    why, instead = why_mixes(network, mixing[0])
    return f"`{mixing[0]}` {why}", instead


def note_rows(error: BaseException, network: nn.Module, rows: int, batch: int) -> None:
    """Notes at an error of a masked pass that an attribute has a tensor of as many rows as the joint pass, if so."""
    kept = [value for module in network.modules() for name, value in vars(module).items() if name[0] != "_"]
    if any(isinstance(leaf, Tensor) and batch in leaf.shape for leaf in pytree.tree_leaves(kept)):
        error.add_note(
            f"This was the masked pass, of {rows} rows at once, and the network keeps something of the size of the "
            f"batch from call to call (a hidden state). Set max_rows={batch}: each subset then has a pass of its own."
        )
