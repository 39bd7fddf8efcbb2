"""Sets of human activities: UCI-HAR, PAMAP2, WISDM, OPPORTUNITY, UniMiB SHAR and USC-HAD, as they are downloaded."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data._files import memory, open_ordinary, read_text
from agm.data.layouts.choices import Choice
from agm.data.layouts.extras import needed
from agm.data.layouts.layout import Layout, Part, Sample, whole
from agm.data.layouts.lists import read_rows
from agm.data.layouts.splits import by_group
from agm.data.layouts.windows import (
    Recording,
    SensorWindows,
    by_person,
    order_option,
    ordered,
    read_numbers,
    window_options,
)

__all__ = ["Opportunity", "Pamap2", "UciHar", "UniMib", "UscHad", "Wisdm"]

_MAT = 2**31  # bytes


class UciHar(Layout):
    """UCI HAR Dataset: windows of 128 steps (50 Hz) of a phone at the waist, 30 persons, 6 activities.

    `read` gives "acceleration", "body" (without gravity) and "gyroscope", (3, 128) float32 each.
    """

    name = "uci-har"
    title = "UCI-HAR"
    source = "archive.ics.uci.edu, Human Activity Recognition Using Smartphones; CC BY 4.0"
    modalities = ("acceleration", "body", "gyroscope")
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "the set's test persons; whole persons of train for validation",
        "authors": "the set's own train and test",
    }
    options: ClassVar[Mapping[str, Choice]] = order_option()
    _FILES: ClassVar[Mapping[str, str]] = {"acceleration": "total_acc", "body": "body_acc", "gyroscope": "body_gyro"}
    parts: ClassVar[Mapping[str, Part]] = {
        "names": Part("names of the activities", ("activity_labels.txt", "UCI HAR Dataset/activity_labels.txt")),
        "train": Part("recordings of train", ("train", "UCI HAR Dataset/train"), sign=False),
        "test": Part("recordings of test", ("test", "UCI HAR Dataset/test"), sign=False),
    }

    def _scan(self) -> None:
        path = self.place("names")
        cells = [cells for _, cells in read_rows(path, " ", columns=2)]
        if not all(number.isdecimal() for number, *_ in cells):
            raise ValueError(
                f"Expected lines of {path} to be a number and a name, but got {cells[0]}. Download it again."
            )
        rows = sorted((int(number), name) for number, name, *_ in cells)
        self.class_names = tuple(name for _, name in rows)
        self._values: dict[str, dict[str, np.ndarray]] = {}
        for split in ("train", "test"):
            folder = self.place(split)
            labels = read_numbers(folder / f"y_{split}.txt", 1)[:, 0]
            persons = read_numbers(folder / f"subject_{split}.txt", 1)[:, 0]
            signals = folder / "Inertial Signals"
            self._values[split] = {}
            for name, file in self._FILES.items():
                axes = [read_numbers(signals / f"{file}_{axis}_{split}.txt", 128) for axis in "xyz"]
                if {len(axis) for axis in axes} != {len(labels)} or len(persons) != len(labels):
                    raise ValueError(
                        f"Expected the files {file} in {signals} to have {len(labels)} lines, one a label, "
                        f"but got {[len(axis) for axis in axes]}. Download them again."
                    )
                self._values[split][name] = np.stack(axes, axis=1)  # (N, 3, 128)
            for row, label in enumerate(labels.tolist()):
                index = self.number_of(
                    label, [str(number) for number, _ in rows], f"{split} {row}", folder / f"y_{split}.txt"
                )
                if index is not None:
                    self.samples.append(Sample(f"{split} {row}", split, index, group=whole(persons[row]), row=row))

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        listed = self.listed()
        if scheme == "authors" or len({sample.group for sample in listed["train"]}) < 2:
            return listed
        made = by_group(listed["train"], 0.1, 0.1)
        return {"train": made["train"] + made["test"], "validation": made["validation"], "test": listed["test"]}

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        values = self._values[sample.split]
        return {name: ordered(values[name][sample.row], self.chosen["first"]) for name in self.modalities}


class Pamap2(SensorWindows):
    """Protocol/subject101.dat ...: hand, chest and ankle, 100 Hz, of which every third step is kept; 12 activities."""

    name = "pamap2"
    title = "PAMAP2"
    source = "archive.ics.uci.edu, PAMAP2 Physical Activity Monitoring; CC BY 4.0"
    options: ClassVar[Mapping[str, Choice]] = window_options(171, 85)
    parts: ClassVar[Mapping[str, Part]] = {
        "recordings": Part("recordings", ("Protocol", "PAMAP2_Dataset/Protocol"), advice="One file a person.")
    }
    # Of 54 columns: time, activity, heart rate; of each sensor temperature, 16 g, 6 g, gyroscope, compass.
    channels: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "acceleration": tuple(start + axis for start in (4, 21, 38) for axis in range(3)),
        "gyroscope": tuple(start + axis for start in (10, 27, 44) for axis in range(3)),
        "magnetometer": tuple(start + axis for start in (13, 30, 47) for axis in range(3)),
    }
    _ACTIVITIES: ClassVar[Mapping[int, str]] = {
        1: "lying",
        2: "sitting",
        3: "standing",
        4: "walking",
        5: "running",
        6: "cycling",
        7: "Nordic walking",
        12: "ascending stairs",
        13: "descending stairs",
        16: "vacuum cleaning",
        17: "ironing",
        24: "rope jumping",
    }

    def _recordings(self) -> Iterator[Recording]:
        self.class_names = tuple(self._ACTIVITIES.values())
        places = {number: index for index, number in enumerate(self._ACTIVITIES)}
        for file in sorted(self.place("recordings").glob("subject*.dat")):
            values = read_numbers(file, 54)[::3]
            labels = np.array([places.get(int(number), -1) for number in values[:, 1]])
            yield Recording(file.stem, values, labels, file)


class Wisdm(SensorWindows):
    """WISDM_ar_v1.1_raw.txt: a phone in the pocket, 20 Hz; person,activity,time,x,y,z; and some broken lines."""

    name = "wisdm"
    title = "WISDM"
    source = "cis.fordham.edu/wisdm/dataset.php, Activity Prediction"
    options: ClassVar[Mapping[str, Choice]] = window_options(90, 45)
    parts: ClassVar[Mapping[str, Part]] = {
        "recordings": Part("recordings", ("WISDM_ar_v1.1_raw.txt", "WISDM_ar_v1.1/WISDM_ar_v1.1_raw.txt"))
    }
    channels: ClassVar[Mapping[str, tuple[int, ...]]] = {"x": (0,), "y": (1,), "z": (2,)}
    _ACTIVITIES = ("Downstairs", "Jogging", "Sitting", "Standing", "Upstairs", "Walking")

    def _recordings(self) -> Iterator[Recording]:
        self.class_names = self._ACTIVITIES
        path = self.place("recordings")
        persons: dict[str, tuple[list[list[float]], list[int]]] = {}
        broken = 0
        for entry in re.split(r"[;\n]", read_text(path, 2**30)):
            cells = [cell.strip() for cell in entry.split(",")]
            if not any(cells):
                continue
            try:
                person, activity, _, *axes = cells[:6]
                row, label = [float(axis) for axis in axes], self._ACTIVITIES.index(activity)
            except ValueError:
                broken += 1
                continue
            if len(row) != 3:
                broken += 1
                continue
            values, labels = persons.setdefault(person, ([], []))
            values.append(row)
            labels.append(label)
        if broken:
            self.notes.append(f"{broken} broken lines are left out")
        for person, (values, labels) in persons.items():
            yield Recording(person, np.array(values, dtype=np.float32), np.array(labels), path)


class Opportunity(SensorWindows):
    """dataset/S1-ADL1.dat ...: 250 columns, 30 Hz; classes are the gestures of the last column (18 with none)."""

    name = "opportunity"
    title = "OPPORTUNITY"
    source = "archive.ics.uci.edu, OPPORTUNITY Activity Recognition; CC BY 4.0"
    options: ClassVar[Mapping[str, Choice]] = window_options(36, 18)
    parts: ClassVar[Mapping[str, Part]] = {
        "recordings": Part(
            "recordings", ("dataset/S1-ADL1.dat", "S1-ADL1.dat", "OpportunityUCIDataset/dataset/S1-ADL1.dat")
        )
    }
    # Five inertial units at back and arms, columns 38 to 102, 13 each: acceleration, gyroscope, compass, quaternion.
    channels: ClassVar[Mapping[str, tuple[int, ...]]] = {
        "acceleration": tuple(start + axis for start in range(37, 102, 13) for axis in range(3)),
        "gyroscope": tuple(start + axis for start in range(40, 102, 13) for axis in range(3)),
        "magnetometer": tuple(start + axis for start in range(43, 102, 13) for axis in range(3)),
    }
    _GESTURES: ClassVar[Mapping[int, str]] = {
        0: "none",
        406516: "open door 1",
        406517: "open door 2",
        404516: "close door 1",
        404517: "close door 2",
        406520: "open fridge",
        404520: "close fridge",
        406505: "open dishwasher",
        404505: "close dishwasher",
        406519: "open drawer 1",
        404519: "close drawer 1",
        406511: "open drawer 2",
        404511: "close drawer 2",
        406508: "open drawer 3",
        404508: "close drawer 3",
        408512: "clean table",
        407521: "drink from cup",
        405506: "toggle switch",
    }

    def _recordings(self) -> Iterator[Recording]:
        self.class_names = tuple(self._GESTURES.values())
        places = {number: index for index, number in enumerate(self._GESTURES)}
        for file in sorted(self.place("recordings").parent.glob("S*-*.dat")):
            values = read_numbers(file, 250)
            labels = np.array([places.get(int(number), -1) for number in np.nan_to_num(values[:, 249])])
            yield Recording(file.name.partition("-")[0], values, labels, file)


def _matlab(path: Path, key: str) -> np.ndarray:
    """A numeric array of a MATLAB file (version 5 to 7)."""
    with open_ordinary(path, _MAT) as file:
        content = file.read()
    reader = needed("scipy.io")
    try:
        declared = {name: shape for name, shape, _ in reader.whosmat(io.BytesIO(content))}
        if math.prod(declared[key]) * 8 > memory():
            raise ValueError("an array larger than this machine's memory")
        made: Any = reader.loadmat(io.BytesIO(content), variable_names=[key])[key]
    except ModuleNotFoundError:
        raise
    except Exception:  # a reader of damaged files fails in many ways
        raise ValueError(
            f"Expected {path} to be a MATLAB file with {key!r}, but got another. Download it again."
        ) from None
    if not isinstance(made, np.ndarray) or made.dtype.kind not in "fiu":
        raise ValueError(f"Expected {key!r} in {path} to hold numbers, but got other things. Is it the right file?")
    return made


class UniMib(Layout):
    """acc_data.mat (N, 453) and acc_labels.mat (N, 3): windows of 151 steps of a phone, 17 activities and falls."""

    name = "unimib-shar"
    title = "UniMiB SHAR"
    source = "www.sal.disco.unimib.it/technologies/unimib-shar"
    modalities = ("x", "y", "z")
    schemes: ClassVar[Mapping[str, str]] = SensorWindows.schemes
    options: ClassVar[Mapping[str, Choice]] = order_option()
    parts: ClassVar[Mapping[str, Part]] = {
        "values": Part("windows", ("acc_data.mat", "data/acc_data.mat", "UniMiB-SHAR/data/acc_data.mat")),
        "labels": Part("labels", ("acc_labels.mat", "data/acc_labels.mat", "UniMiB-SHAR/data/acc_labels.mat")),
    }

    def _scan(self) -> None:
        values, labels = (
            _matlab(self.place(key), name) for key, name in (("values", "acc_data"), ("labels", "acc_labels"))
        )
        if values.ndim != 2 or values.shape[1] != 453 or labels.shape != (len(values), 3):
            raise ValueError(
                f"Expected {self.place('values')} to be of shape (N, 453) and its labels (N, 3), "
                f"but got {values.shape} and {labels.shape}. Are they of one set?"
            )
        self._values = values.reshape(-1, 3, 151).astype(np.float32)
        self.class_names = tuple(f"activity {number}" for number in range(1, 18))
        self.notes.append("the files number the activities 1 to 17 and do not name them")
        numbers = [str(number) for number in range(1, 18)]
        for row, (label, person, _) in enumerate(labels.tolist()):
            index = self.number_of(label, numbers, f"window {row}", self.place("labels"))
            if index is not None:
                self.samples.append(Sample(f"window {row}", "train", index, group=f"person {whole(person)}", row=row))

    def _arrange(self, scheme: str) -> dict[str, list[Sample]]:
        return by_person(self.samples, scheme)

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        row = self._values[sample.row]
        first = self.chosen["first"]
        return {name: ordered(row[axis : axis + 1], first) for axis, name in enumerate(self.modalities)}


class UscHad(SensorWindows):
    """Subject1/a1t1.mat ...: a sensor at the hip, 100 Hz, acceleration and gyroscope, 14 persons, 12 activities."""

    name = "usc-had"
    title = "USC-HAD"
    source = "sipi.usc.edu/had; research only"
    options: ClassVar[Mapping[str, Choice]] = window_options(128, 64)
    parts: ClassVar[Mapping[str, Part]] = {
        "recordings": Part("recordings", ("Subject1/a1t1.mat", "USC-HAD/Subject1/a1t1.mat"))
    }
    channels: ClassVar[Mapping[str, tuple[int, ...]]] = {"acceleration": (0, 1, 2), "gyroscope": (3, 4, 5)}

    def _recordings(self) -> Iterator[Recording]:
        self.class_names = (
            *("walking forward", "walking left", "walking right", "walking upstairs", "walking downstairs"),
            *("running forward", "jumping", "sitting", "standing", "sleeping", "elevator up", "elevator down"),
        )
        root = self.place("recordings").parents[1]
        for file in sorted(root.glob("Subject*/a*t*.mat")):
            match = re.fullmatch(r"a([0-9]{1,2})t[0-9]+", file.stem)
            if match is None or not 1 <= int(match[1]) <= 12:
                self.skip(file.stem, "a name that is not aACTIVITYtTRIAL", file)
                continue
            values = _matlab(file, "sensor_readings").astype(np.float32)
            if values.ndim != 2 or values.shape[1] != 6:
                raise ValueError(f"Expected `sensor_readings` in {file} to be (T, 6), but got {values.shape}.")
            yield Recording(file.parent.name, values, np.full(len(values), int(match[1]) - 1), file)
