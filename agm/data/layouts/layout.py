"""What a layout is: parts of a dataset on disk, samples in splits, labels in an order, and what is left out and why."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from agm.data.layouts.choices import Choice
from agm.data.layouts.downloads import hint
from agm.data.layouts.pictures import Scale, normalised
from agm.data.layouts.splits import hold_out
from agm.data.multimodal import Task

__all__ = ["Layout", "Part", "Sample", "Skipped"]


@dataclass(frozen=True)
class Part:
    """A file or folder of a layout.

    Args:
        what: what it is, in words.
        paths: where it may lie, relative to the root; the first that exists is taken. `*` stands for any name.
        needed: whether nothing can be read without it.
        sign: whether its presence tells this layout from others.
        advice: where it comes from.
    """

    what: str
    paths: tuple[str, ...]
    needed: bool = True
    sign: bool = True
    advice: str = ""

    def find(self, root: Path, file: Path | None = None) -> Path | None:
        """Where it lies, or None; `file`, if it may be this part, wins over others."""
        if file is not None and any(file.relative_to(root).match(pattern) for pattern in self.paths):
            return file
        for pattern in self.paths:
            if "*" in pattern:
                matches = sorted(root.glob(pattern))
                if matches:
                    return matches[0]
            elif (root / pattern).exists():
                return root / pattern
        return None


@dataclass(frozen=True)
class Sample:
    """One sample as its lists name it.

    Args:
        name: of the clip or the row, one of its kind within the split.
        split: "train", "validation" or "test", by the set's own lists.
        label: class index; 0 where a number is to be predicted.
        files: modality -> its file or folder; empty where the modality is a row of an array.
        group: the actor, speaker, video or person; samples of one group are alike. "" for none.
        row: number within the arrays of its split.
        extra: what else the reader needs, such as a text or a start in seconds.
        number: what is to be predicted where that is a number.
    """

    name: str
    split: str
    label: int
    files: Mapping[str, Path] = field(default_factory=dict)
    group: str = ""
    row: int = 0
    extra: Any = None
    number: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A sample that is left out: its name, why, and the file that is to blame."""

    name: str
    reason: str
    file: Path


class Layout(ABC):
    """A dataset in the form in which its users have it on disk.

    Args:
        root: its folder, or one file of it.
        skip_bad: leave out what cannot be used (a label that is not in the table, a name that leads out of the folder)
            and list it in `skipped`; else it is an error. Samples without files are left out either way, as all
            published loaders do.
        **options: `options` of the class, by name.

    Attributes:
        samples: all that can be read, in the order of the lists.
        skipped: the others.
        notes: facts that a user of this set should know.
        class_names: class index i is `class_names[i]`; or what the number is called that is to be predicted.

    Raises:
        FileNotFoundError: there is nothing at `root`.
        ValueError: a needed part is missing, an option is unknown, or a list cannot be read.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]  # where people get it, and under which licence
    parts: ClassVar[Mapping[str, Part]]
    modalities: tuple[str, ...]
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the set's own lists; without a validation list, a tenth of train is held out",
        "authors": "the set's own lists as the authors use them",
    }
    options: ClassVar[Mapping[str, Choice]] = {}
    pictures: ClassVar[Mapping[str, Scale]] = {}  # modalities that are bytes, and what makes floats of them

    def __init__(self, root: Path | str, *, skip_bad: bool = False, **options: Any) -> None:
        self.root = Path(root)
        if not self.root.exists():
            raise FileNotFoundError(f"Expected {self.root} to be a folder, but got nothing there. Check the path.")
        file = None
        if self.root.is_file():
            file, self.root = self.root, self.root.parent
        self.skip_bad = skip_bad
        self.chosen = self._checked(options)
        self.found = {key: part.find(self.root, file) for key, part in self.parts.items()}
        self._require_parts()
        self.samples: list[Sample] = []
        self.skipped: list[Skipped] = []
        self.notes: list[str] = []
        self.class_names: tuple[str, ...] = ()
        self._scan()
        if not self.samples:
            reasons = Counter(skipped.reason for skipped in self.skipped).most_common(2)
            told = "; ".join(f"{count} {reason}" for reason, count in reasons) or "empty lists"
            raise ValueError(
                f"Expected {self.root} to hold samples of {self.title}, but got none: {told}. "
                f"Compare the folders with the layout: agm data inspect {self.root}"
            )

    @classmethod
    def fits(cls, found: Mapping[str, Path]) -> bool:
        """Whether parts with these places may be of this set: where folders have the names of many."""
        return True

    @abstractmethod
    def _scan(self) -> None:
        """Fill `samples`, `skipped`, `notes` and `class_names`."""

    @abstractmethod
    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Modality -> values: float32, int64 for token ids, uint8 for those of `pictures`."""

    def read(
        self, sample: Sample, *, training: bool = False, generator: torch.Generator | None = None, raw: bool = False
    ) -> dict[str, Tensor]:
        """Decode one sample.

        Args:
            sample: one of `samples`.
            training: with random crops, mirrors and frames where the published loaders have them.
            generator: of what is random; torch's own by default.
            raw: leave images as bytes.

        Returns:
            Modality -> float32, int64 for token ids; with `raw` uint8 for images.

        Raises:
            ModuleNotFoundError: a package that decodes is not installed.
            OSError, ValueError: a file does not decode, or holds NaN; the message names it.
        """
        values = self._read(sample, training, generator)
        for name, value in values.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                place = sample.files.get(name, self.root)
                raise ValueError(
                    f"Expected `{name}` of {sample.name!r} in {place} to be finite, but got NaN or infinity. "
                    "Repair it, or leave such samples out with agm data convert --skip-bad."
                )
        return values if raw else {name: self.finished(name, value) for name, value in values.items()}

    @property
    def task(self) -> Task:
        """ "numbers" where that is what samples have, else "classes"."""
        return "numbers" if any(sample.number is not None for sample in self.samples[:1]) else "classes"

    def targets(self, samples: Iterable[Sample]) -> Tensor:
        """(N,) int64 class indices, or (N, 1) float32 numbers, without decoding anything."""
        if self.task == "numbers":
            return torch.tensor([[sample.number] for sample in samples], dtype=torch.float32)
        return torch.tensor([sample.label for sample in samples], dtype=torch.int64)

    def finished(self, modality: str, values: Tensor) -> Tensor:
        """Values of `read(raw=True)`, alone or in batches, as floats."""
        scale = self.pictures.get(modality)
        return values if scale is None else normalised(values, scale)

    def arrange(self, scheme: str = "clean") -> dict[str, list[Sample]]:
        """The samples by split: train, validation (where there is one) and test; "dep" where authors hold some out.

        Args:
            scheme: one of `schemes`.

        Raises:
            ValueError: another scheme.
        """
        if scheme not in self.schemes:
            raise ValueError(
                f"Expected `split` of {self.name} to be one of {', '.join(self.schemes)}, but got {scheme!r}."
            )
        made = self._arrange(scheme)
        return {split: made[split] for split in ("train", "validation", "test", "dep") if made.get(split)}

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        made = self.listed()
        return hold_out(made, 0.1) if scheme == "clean" else made

    def listed(self) -> dict[str, list[Sample]]:
        """The samples by the set's own lists; of train and test also where they have none."""
        made: dict[str, list[Sample]] = {"train": [], "test": []}
        for sample in self.samples:
            made.setdefault(sample.split, []).append(sample)
        return made

    def skip(self, name: str, reason: str, file: Path, *, bad: str = "") -> None:
        """Leave a sample out. `bad` says what to do about it where that is an error without `skip_bad`."""
        if bad and not self.skip_bad:
            raise ValueError(f"Expected every sample of {file} to be readable, but got {name!r}: {reason}. {bad}")
        self.skipped.append(Skipped(name, reason, file))

    def number_of(self, label: float, names: Sequence[str], name: str, file: Path) -> int | None:
        """As `label_of`, of a label that is a number: NaN, infinity and fractions are none of the table."""
        return self.label_of(whole(label), names, name, file)

    def label_of(self, label: str, names: Sequence[str], name: str, file: Path) -> int | None:
        """The index of a label, or None (and the sample is left out) where it is not in the table."""
        if label in names:
            return names.index(label)
        self.skip(
            name,
            f"label {label!r}, which is none of {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
            file,
            bad="Correct the list, or leave such samples out with agm data convert --skip-bad.",
        )
        return None

    def place(self, key: str) -> Path:
        """Where a part lies that is there."""
        path = self.found[key]
        if path is None:
            raise KeyError(key)
        return path

    def _require_parts(self) -> None:
        for key, part in self.parts.items():
            if part.needed and self.found[key] is None:
                places = " or ".join(part.paths)
                raise ValueError(
                    f"Expected {self.root} to hold {part.what} of {self.title} ({places}), but got nothing there. "
                    f"{hint(self.root, self.name) or part.advice or 'Is the download complete?'}"
                )

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in given:
            if name not in self.options:
                offered = ", ".join(self.options) or "none"
                raise ValueError(f"Expected options of {self.name} ({offered}), but got {name!r}. Leave it out.")
        return {name: choice.checked(name, given.get(name)) for name, choice in self.options.items()}


def whole(value: float) -> str:
    """A whole number without a point; another one as Python writes it."""
    return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)


def groups_shared(splits: Mapping[str, Iterable[Sample]]) -> int:
    """How many groups have samples both in train and in test."""
    train, test = ({sample.group for sample in splits.get(name, ())} - {""} for name in ("train", "test"))
    return len(train & test)
