"""UCF-101: human actions in frames and in optical flow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, flag, number
from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.lists import read_rows, safe_name
from agm.data.layouts.pictures import IMAGENET, UNIT, Scale, choose_frames, list_frames, read_image

__all__ = ["Ucf101"]


class Ucf101(Layout):
    """classInd.txt, trainlist01.txt, testlist01.txt; rgb/VIDEO/frame_00001.jpg, u/VIDEO/ and v/VIDEO/ in grey.

    `read` gives "rgb" (3, 3, 224, 224) float32 with ImageNet's mean, and "flow" (3, 2, 224, 224) float32, 0 to 1 with
    0.5 for no motion. In training frames and flow are mirrored together, and u is negated with it; `together=false`
    mirrors each image by itself, as BalanceBenchmark's loader does, which takes six frames of a clip for all of them.
    """

    name = "ucf101"
    title = "UCF-101"
    source = "crcv.ucf.edu/data/UCF101.php; flow: github.com/feichtenhofer/twostreamfusion"
    modalities = ("rgb", "flow")
    pictures: ClassVar[Mapping[str, Scale]] = {"rgb": IMAGENET, "flow": UNIT}
    schemes: ClassVar[Mapping[str, str]] = {
        "clean": "lists 01, a tenth of the groups of train held out for validation",
        "authors": "lists 01, chosen on test as published",
    }
    options: ClassVar[Mapping[str, Choice]] = {
        "frames": number(3, 1, 64, "frames of a clip"),
        "size": number(224, 8, 1024, "sides of an image in pixels"),
        "together": flag(True, "mirror frames and flow together, and negate u with it"),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        "classes": Part("the list of classes", ("classInd.txt", "*/classInd.txt")),
        "train": Part("the list of training clips", ("trainlist01.txt", "*/trainlist01.txt")),
        "test": Part("the list of test clips", ("testlist01.txt", "*/testlist01.txt")),
        "rgb": Part("frames", ("rgb", "jpegs_256", "visual"), sign=False),
        "u": Part("flow along x", ("u", "flow/u", "tvl1_flow/u"), sign=False),
        "v": Part("flow along y", ("v", "flow/v", "tvl1_flow/v"), sign=False),
    }

    def _scan(self) -> None:
        path = self.place("classes")
        names = sorted(cells[1] for _, cells in read_rows(path, " ", columns=2))
        self.class_names = tuple(names)
        for split in ("train", "test"):
            path = self.place(split)
            for _, cells in read_rows(path, " "):
                label, _, file = cells[0].partition("/")
                video = file.rpartition(".")[0] or file
                index = self.label_of(label, names, video, path)
                if index is None:
                    continue
                if not safe_name(video):
                    self.skip(video, "a name that leads out of the folder", path, bad="Do not use this list.")
                    continue
                files = {kind: self.place(kind) / video for kind in ("rgb", "u", "v")}
                empty = [kind for kind, folder in files.items() if not list_frames(folder)]
                if empty:
                    self.skip(video, f"no frames in {' and '.join(empty)}", files[empty[0]])
                    continue
                group = video.rpartition("_c")[0]  # clips of one group are cut from one video
                self.samples.append(Sample(video, split, index, files, group))

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        wanted, size = self.chosen["frames"], self.chosen["size"]
        frames = {kind: list_frames(sample.files[kind]) for kind in ("rgb", "u", "v")}
        rgb = self._stack(frames["rgb"], wanted, size, "RGB", training, generator)
        number_of_flows = min(len(frames["u"]), len(frames["v"]))
        places = choose_frames(number_of_flows, wanted, "lower-middle", training=training, generator=generator)
        flow = torch.cat(
            [torch.stack([read_image(frames[kind][place], size, mode="L") for place in places]) for kind in ("u", "v")],
            dim=1,
        )
        if training:
            rgb, flow = self._mirror(rgb, flow, generator)
        return {"rgb": rgb, "flow": flow}

    @staticmethod
    def _stack(
        files: list[Path], wanted: int, size: int, mode: str, training: bool, generator: torch.Generator | None
    ) -> Tensor:
        places = choose_frames(min(len(files), 6), wanted, "lower-middle", training=training, generator=generator)
        return torch.stack([read_image(files[place], size, mode=mode) for place in places])

    def _mirror(self, rgb: Tensor, flow: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        if self.chosen["together"]:
            if float(torch.rand(1, generator=generator)) < 0.5:
                rgb, flow = rgb.flip(-1), flow.flip(-1)
                flow = torch.cat([255 - flow[:, :1], flow[:, 1:]], dim=1)
            return rgb, flow
        draws = torch.rand(len(rgb), 3, generator=generator) < 0.5  # each image by itself
        rgb = torch.where(draws[:, 0].reshape(-1, 1, 1, 1), rgb.flip(-1), rgb)
        return rgb, torch.where(draws[:, 1:].reshape(-1, 2, 1, 1), flow.flip(-1), flow)
