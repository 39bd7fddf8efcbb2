"""Examples a second of the data, so that nobody takes a loader for a kernel.

The bundled AV-Digits: reading the file (once a run); an epoch of batches in the order of the trainer, which indexes
what is in memory; and the same samples by torch's DataLoader, sample by sample.

Clips with sound and frames, as CREMA-D has them, decoded for training: by a dataset and a DataLoader as published code
writes them; by agm.data.layouts, plainly and by `feed`; the same clips in WebDataset's shards and in Hugging Face's
tables. All with as many workers: none where there are two cores.
"""

import importlib.util
import io
import tarfile
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from agm import data
from agm.training.samples import batches
from bench.cases import Built, Case, Options

BASELINE = "memory"
OWN = ("memory", "file")
BATCH = 64
CLIPS = 48  # an epoch takes some tenths of a second
CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
DECODERS = ("PIL", "soundfile", "soxr")


def cases(options: Options) -> Iterator[Case]:
    train = data.load("av-digits").train
    facts = {"op": "load", "shape": f"av-digits B={BATCH}", "dtype": "float32", "examples": len(train)}
    yield Case(facts, BASELINE, OWN, lambda: _built(options))
    if all(importlib.util.find_spec(package) for package in DECODERS):
        clips = CLIPS // 2 if options.quick else CLIPS
        shape = f"{clips} clips B=16 workers={_workers()}"
        facts = {"op": "decode", "shape": shape, "dtype": "float32", "examples": clips}
        yield Case(facts, "torch", ("layout", "feed", "shards", "tables"), lambda: _decoding(options, clips))


def _built(options: Options) -> Built:
    train = data.load("av-digits").train
    dataset = TensorDataset(*train.inputs.values(), train.target)

    def memory() -> None:
        for index in batches(len(train), BATCH, 0, 0):
            for values in (*train.inputs.values(), train.target):
                values[index]

    def loader() -> None:
        for _ in DataLoader(dataset, BATCH, shuffle=True):
            pass

    calls = {"memory": memory, "DataLoader": loader, "file": lambda: data.load("av-digits")}
    return Built({name: call for name, call in calls.items() if name == BASELINE or options.takes(name)})


class PublishedClips(Dataset[tuple[Tensor, Tensor, int]]):
    """CREMA-D as published loaders have it: libraries called one after the other, floats from each sample on."""

    def __init__(self, root: Path) -> None:
        rows = [line.split(",") for line in (root / "train.csv").read_text().split()]
        self.items = [(root / f"AudioWAV/{c}.wav", root / f"Image-01-FPS/{c}", CLASSES.index(e)) for c, e in rows]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        import soundfile
        import soxr
        from PIL import Image

        sound, frames, label = self.items[index]
        samples, rate = soundfile.read(sound, dtype="float32")
        samples = soxr.resample(samples, rate, 22050)
        samples = np.clip(np.tile(samples, 3)[: 22050 * 3], -1, 1)
        window = torch.hann_window(512)
        spectrum = torch.stft(
            torch.from_numpy(samples), 512, 353, window=window, pad_mode="constant", return_complex=True
        )
        images = sorted(frames.iterdir())
        np.random.seed(999)
        image = Image.open(images[int(np.random.choice(len(images), 1)[0])]).convert("RGB")
        top, left, height, width = _crop(image.height, image.width)
        image = image.crop((left, top, left + width, top + height)).resize((224, 224), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        pixels = pixels.flip(-1) if torch.rand(1) < 0.5 else pixels
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        pixels = (pixels - mean.reshape(3, 1, 1)) / deviation.reshape(3, 1, 1)
        return torch.log(spectrum.abs() + 1e-7), pixels[None], label


def _crop(height: int, width: int) -> tuple[int, int, int, int]:
    from agm.data.layouts.pictures import random_crop  # torchvision's, of which nobody wants two versions here

    return random_crop(height, width)


def _decoding(options: Options, clips: int) -> Built:
    from agm.data.layouts import LayoutDataset, collate, feed, open_layout

    folder = tempfile.TemporaryDirectory(prefix="agm-bench-")
    root = Path(folder.name)
    _write_clips(root / "clips", clips)
    workers, calls = _workers(), dict[str, Callable[[], object]]()
    published = PublishedClips(root / "clips")

    def epoch(loader: Any) -> Callable[[], object]:
        def call() -> object:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)  # as in the workers of a loader
            try:
                return folder, sum(len(batch[1]) for batch in loader)  # the folder goes with the last of these calls
            finally:
                torch.set_num_threads(threads)

        return call

    calls["torch"] = epoch(DataLoader(published, 16, shuffle=True, num_workers=workers))
    layout = open_layout(root / "clips", "crema-d")
    samples = layout.listed()["train"]
    plain = LayoutDataset(layout, samples, training=True)
    calls["layout"] = epoch(DataLoader(plain, 16, shuffle=True, num_workers=workers, collate_fn=collate))
    raw = LayoutDataset(layout, samples, training=True, raw=True)
    calls["feed"] = epoch(feed(raw, 16, shuffle=True, workers=workers, device=options.device))
    writers: dict[str, Callable[[Path, Path], None]] = {"shards": _write_shards}
    if importlib.util.find_spec("datasets"):
        writers["tables"] = _write_tables
    for name, write in writers.items():
        if options.takes(name):
            write(root / "clips", root / name)
            other = open_layout(root / name)
            raw = LayoutDataset(other, other.listed()["train"], training=True, raw=True)
            calls[name] = epoch(feed(raw, 16, shuffle=True, workers=workers, device=options.device))
    return Built({name: call for name, call in calls.items() if name == "torch" or options.takes(name)})


def _workers() -> int:
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores <= 2 else min(8, cores - 1)


def _write_clips(root: Path, clips: int) -> None:
    """Sounds of 2.5 s at 16 kHz, and three frames of 480 x 360 pixels each, as the real ones have."""
    from PIL import Image

    random = np.random.default_rng(0)
    (root / "AudioWAV").mkdir(parents=True)
    rows = []
    for number in range(clips):
        emotion = CLASSES[number % len(CLASSES)]
        clip = f"{1001 + number // len(CLASSES)}_DFA_{emotion}_XX"
        with wave.open(str(root / f"AudioWAV/{clip}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(random.integers(-9000, 9000, 40_000).astype("<i2").tobytes())
        (root / "Image-01-FPS" / clip).mkdir(parents=True)
        for frame in range(3):
            coarse = Image.fromarray(random.integers(0, 256, (36, 48, 3)).astype(np.uint8))
            image = coarse.resize((480, 360), Image.Resampling.BILINEAR)  # about as many bytes as a photograph
            image.save(root / f"Image-01-FPS/{clip}/{30 * frame:05d}.jpg", quality=90)
        rows.append(f"{clip},{emotion}")
    (root / "train.csv").write_text("\n".join(rows))
    (root / "test.csv").write_text(rows[0])


def _files(root: Path) -> Iterator[tuple[str, bytes, bytes, int]]:
    for line in (root / "train.csv").read_text().split():
        clip, emotion = line.split(",")
        frame = sorted((root / "Image-01-FPS" / clip).iterdir())[1]
        yield clip, (root / f"AudioWAV/{clip}.wav").read_bytes(), frame.read_bytes(), CLASSES.index(emotion)


def _write_shards(root: Path, folder: Path) -> None:
    folder.mkdir()
    with tarfile.open(folder / "train-000000.tar", "w") as archive:
        for clip, sound, image, label in _files(root):
            for ending, content in (("wav", sound), ("jpg", image), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{clip}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def _write_tables(root: Path, folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    _, sounds, images, labels = zip(*_files(root), strict=True)
    file = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": file, "image": file, "label": datasets.ClassLabel(names=list(CLASSES))})
    columns = {
        "audio": [{"bytes": content, "path": None} for content in sounds],
        "image": [{"bytes": content, "path": None} for content in images],
        "label": list(labels),
    }
    table = datasets.Dataset.from_dict(columns, features=features)
    table = table.cast_column("audio", datasets.Audio()).cast_column("image", datasets.Image())
    datasets.DatasetDict({"train": table}).save_to_disk(folder)


def extras(row: Mapping[str, Any]) -> str:
    return f"{row['examples'] / row['seconds']:10,.0f} examples/s"
