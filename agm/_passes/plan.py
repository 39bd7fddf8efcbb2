"""What a training step computes, in words and in numbers of rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from agm._lazy_rows.decision import Deferral, declares_sum
from agm._module_state.eval_mode import depends_on_mode
from agm._one_pass.choice import Choice

__all__ = ["ONE_ROW", "Line", "Plan", "apart_lines", "called_lines", "encoder_lines", "fusion_line", "fusion_lines"]


ONE_ROW = (0, 1)  # absent rows, in batches and beside them


@dataclass(frozen=True)
class Line:
    """One pass of the step through one part of the network: `batches` * B + `rows` rows.

    Attributes:
        part: "network", "encoder `audio`", "fusion" ...
        mode: "training" stands for the mode in which the network is, part by part.
        batches: rows that grow with the batch, in batches.
        rows: rows beside them.
        note: what they are, and why.
    """

    part: str
    mode: Literal["training", "eval"]
    batches: int
    rows: int
    note: str

    def count(self, batch: int) -> int:
        """Rows of this pass for a batch of `batch` samples."""
        return self.batches * batch + self.rows

    def __str__(self) -> str:
        return f"{_rows(self.batches, self.rows)} in {self.mode} mode: {self.note}"


@dataclass(frozen=True)
class Plan:
    """What a training step computes; `print` it.

    Attributes:
        modalities: their names, in bit order.
        masked: "exact" or "shared".
        lines: the passes, those of one part after another, in the order in which they run.
        notes: what is worth knowing about them.
    """

    modalities: tuple[str, ...]
    masked: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    def count(self, part: str, batch: int) -> int:
        """Rows that go through a part in one step, for a batch of `batch` samples; in joint training these are B.

        Raises:
            ValueError: no such part.
        """
        counts = [line.count(batch) for line in self.lines if line.part == part]
        if not counts:
            raise ValueError(f"Expected argument `part` to be one of {self._parts()}, but got {part!r}.")
        return sum(counts)

    def _parts(self) -> list[str]:
        return list(dict.fromkeys(line.part for line in self.lines))

    def __str__(self) -> str:
        text = [f"A training step with {', '.join(self.modalities)}, on B samples, masked={self.masked!r}:"]
        width = max(map(len, self._parts()))
        totals = []
        for part in self._parts():
            own = [line for line in self.lines if line.part == part]
            text += [f"  {part if i == 0 else '':{width}}  {line}" for i, line in enumerate(own)]
            totals.append(f"{part} {_rows(sum(line.batches for line in own), sum(line.rows for line in own))}")
        subsets = 2 ** len(self.modalities) - 1
        text.append(
            f"In all: {'; '.join(totals)}. Joint training: B rows. One pass a subset: {subsets} B rows of everything."
        )
        return "\n".join([*text, *self.notes])


def encoder_lines(
    network: nn.Module,
    name: str,
    encoder: nn.Module,
    choice: Choice,
    all_rows: int | None = None,
    absent: tuple[int, int] = ONE_ROW,
) -> list[Line]:
    """The passes of one encoder: the joint one and that of the masked inputs, or one for both.

    Args:
        network: for the names of layers.
        name: of the modality.
        encoder: its encoder.
        choice: how many passes it takes.
        all_rows: the number of masked subsets, if it is given rows that other modalities go into; None: it is not.
        absent: how many absent rows it is given, in batches and beside them.
    """
    part = f"encoder `{name}`"
    batches, rows = absent
    row = "an absent one" if not batches else "an absent one of each sample, as they differ"
    if all_rows is not None:
        note = "every masked row, since what forward gives it was computed from other modalities too"
        return [Line(part, "training", 1, 0, "the joint pass"), Line(part, "eval", all_rows, 0, note)]
    if choice.how == "split":
        note = (
            f"the joint pass, and in the same batch the present inputs and {row}, which norms and dropouts "
            f"treat as in eval mode: {choice.why}"
        )
        return [Line(part, "training", 2 + batches, rows, note)]
    if choice.how == "joined":
        note = f"the joint pass, whose features serve the present rows, and {row} in its batch: {choice.why}"
        if layers := _mode_dependent(network, encoder):
            note += f"; what depends on the mode treats that one as in eval mode ({layers})"
        return [Line(part, "training", 1 + batches, rows, note)]
    joint = Line(part, "training", 1, 0, "the joint pass")
    if choice.how == "shared":
        row = row if batches else "the absent input"
        note = f"{row}, by itself: {choice.why}; the features of the present ones are those of the joint pass"
        return [joint, Line(part, "eval", batches, rows, note)]
    note = f"the present inputs and {row}"
    if layers := _mode_dependent(network, encoder):
        note += f", because it depends on the mode ({layers})"
    return [joint, Line(part, "eval", 1 + batches, rows, f"{note}; a pass of their own: {choice.why}")]


def called_lines(name: str, calls: int, joint: tuple[int, int], masked: tuple[int, int]) -> list[Line]:
    """The passes of one encoder that is called several times in each pass of the network.

    Args:
        name: of the modality.
        calls: how often each pass calls it.
        joint: how many rows it takes in the joint pass, in batches and beside them.
        masked: in the masked passes.
    """
    part, times = f"encoder `{name}`", f"which calls it {calls} times"
    lines = [Line(part, "training", *joint, f"the joint pass, {times}")]
    note = f"what the joint pass has not made of the masked rows, {times} too"
    return [*lines, Line(part, "eval", *masked, note)] if any(masked) else lines


def apart_lines(name: str, subsets: int, shared: bool, calls: int, shown: tuple[int, int] | None = None) -> list[Line]:
    """The passes of one encoder where each subset has passes of its own.

    Args:
        name: of the modality.
        subsets: the number of masked subsets; every modality is absent in half of them.
        shared: whether present modalities have the features of the joint pass.
        calls: how often each pass calls it.
        shown: rows of a pass that shows in which order it encodes its modalities, in batches and beside them; None:
            there is none.
    """
    part, batches = f"encoder `{name}`", subsets // 2 if shared else subsets
    note = "the absent input, in a pass for each subset without the modality; the features of the present ones are "
    note = f"{note}those of the joint pass" if shared else "every masked row, in a pass for each subset"
    lines = [Line(part, "training", calls, 0, "the joint pass")]
    if shown is not None:
        lines.append(Line(part, "eval", *shown, "a pass that shows in which order it encodes its modalities"))
    return [*lines, Line(part, "eval", calls * batches, 0, note)]


def fusion_lines(part: str, modalities: Sequence[str], note: str, subsets: int) -> list[Line]:
    """The passes of what runs on every subset: the joint one, and the other `subsets` as one batch."""
    every = subsets == 2 ** len(modalities) - 2
    which = "all proper subsets of the modalities" if every else f"{subsets} drawn subsets of the modalities"
    return [Line(part, "training", 1, 0, "the joint pass"), Line(part, "eval", subsets, 0, f"{which}{note}")]


def _mode_dependent(network: nn.Module, part: nn.Module) -> str:
    """Layers of a part that depend on the mode, by their names in the network; those that are frozen do not."""
    names = {module: name for name, module in network.named_modules()}
    found = [
        f"`{names.get(module, name)}` {type(module).__name__}"
        for name, module in part.named_modules()
        if depends_on_mode(module) and module.training
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def _rows(batches: int, rows: int) -> str:
    terms = [f"{batches} B" if batches > 1 else "B"] if batches else []
    terms += [str(rows)] if rows else []
    return f"{' + '.join(terms)} row{'' if (batches, rows) == (0, 1) else 's'}"


def fusion_line(
    part: str,
    modalities: Sequence[str],
    network: nn.Module,
    note: str,
    subsets: int,
    found: Deferral | None,
    head: str | None = None,
) -> list[Line]:
    """What is known of the passes of the part that runs on every subset.

    Args:
        part, modalities, note, subsets: as in `fusion_lines`.
        network: which may declare a sum.
        found: what a batch has shown; None: there was none.
        head: the path of the linear head that the user declares.
    """
    summed = head is not None or declares_sum(network) if found is None else found.how == "sum"
    if summed:
        terms = "what each modality adds to the logits, from its present rows and an absent one; they sum up"
        if head is not None:
            terms += f" in the declared head `{head}`{_UNSEEN if found is None else ''}"
        return [
            Line(part, "training", 1, 0, "the joint pass"),
            Line(part, "eval", 1, 1, f"{terms}, so that no subset is computed"),
        ]
    if found is not None and found.how == "rows" and found.why:
        note = f"{note}, written out at once: {found.why}"
    return fusion_lines(part, modalities, note, subsets)


_UNSEEN = " (the first batch verifies that)"
