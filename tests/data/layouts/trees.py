"""Writes tiny, faithful copies of the field's datasets as they lie on people's disks, with their oddities."""

import json
import pickle
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

EMOTIONS = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
ACTORS = ("1001", "1002", "1003")


def noise(samples: int = 8000) -> np.ndarray:
    """A rising tone in noise, 16-bit, by whole numbers alone so that it is the same everywhere."""
    state, values = 12345, []
    for _ in range(samples):
        state = (1103515245 * state + 12345) % 2**31
        values.append(state / 2**30 - 1)
    time = np.arange(samples) / 16000
    return np.round(9000 * np.sin(2 * np.pi * (200 + 2000 * time) * time) + 9000 * np.array(values)).astype("<i2")


def write_sound(path: Path, values: np.ndarray | None = None, rate: int = 16000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((noise() if values is None else values).tobytes())
    return path


def pixels(height: int = 48, width: int = 64, colour: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(x * 4 + colour) % 256, (y * 5 + x) % 256, (x * y) % 256], -1).astype(np.uint8)


def write_image(path: Path, colour: int = 0, grey: bool = False, side: int = 64, lossless: bool = False) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    values = pixels(side, side, colour)
    image = Image.fromarray(values[..., 0] if grey else values)
    image.save(path, "PNG" if lossless else "JPEG", quality=90)  # under whatever name
    return path


def write_frames(folder: Path, names: Sequence[str], grey: bool = False, lossless: bool = False) -> Path:
    for number, name in enumerate(names):
        write_image(folder / name, colour=10 * number, grey=grey, lossless=lossless)
    return folder


def write_pickle(path: Path, content: object, protocol: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_h5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def crema_d(root: Path, samples: int = 8000, lossless: bool = False) -> Path:
    """24 clips of 3 actors; the sound of one and the frames of another are missing; lists with BOM and CRLF."""
    sound = noise(samples)
    clips = [
        (f"{ACTORS[number % 3]}_{sentence}_{emotion}_XX", emotion)
        for number, (emotion, sentence) in enumerate(
            (emotion, sentence) for emotion in EMOTIONS for sentence in ("DFA", "IEO", "IOM", "ITH")
        )
    ]
    for number, (clip, _) in enumerate(clips):
        if number != 5:
            write_sound(root / "AudioWAV" / f"{clip}.wav", np.roll(sound, 97 * number))
        if number != 9:
            write_frames(
                root / "Image-01-FPS" / clip,
                ["00000.jpg", "00029.jpg", "00059.jpg"][: 2 + number % 2],
                lossless=lossless,
            )
    rows = [f"{clip},{emotion}" for clip, emotion in clips]
    lists = root / "CREMAD"
    lists.mkdir()
    (lists / "train.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows[:10], *rows[12:20]]).encode() + b"\r\n")
    (lists / "test.csv").write_text("\n".join([*rows[10:12], *rows[20:]]) + "\n")
    (lists / "stat.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(EMOTIONS).encode() + b"\r\n")
    return root


def av_mnist(root: Path, dtype: str = "uint8") -> Path:
    random = np.random.default_rng(0)
    for split, rows in (("train", 48), ("test", 20)):
        for kind, shape in (("image", (rows, 784)), ("audio", (rows, 112, 112))):
            (root / kind).mkdir(parents=True, exist_ok=True)
            np.save(root / kind / f"{split}_data.npy", random.integers(0, 256, shape).astype(dtype))
        np.save(root / f"{split}_labels.npy", (np.arange(rows) * 3 % 10).astype("int64"))
    return root


def _sequences(rows: int, sizes: dict[str, tuple[int, int]], random: np.random.Generator) -> dict[str, np.ndarray]:
    """Zeros in front: row r begins at step r % 4, and its words two steps later."""
    made = {}
    for name, (steps, features) in sizes.items():
        values = random.normal(size=(rows, steps, features))
        for row in range(rows):
            values[row, : row % 4 + (2 if name == "text" else 0)] = 0
        made[name] = values.astype(np.float32)
    return made


def ur_funny(root: Path) -> Path:
    """12, 6 and 6 samples: row 3 of train has no words, row 4 a -inf in its sound."""
    random = np.random.default_rng(1)
    content = {}
    for split, rows in (("train", 12), ("valid", 6), ("test", 6)):
        part = _sequences(rows, {"vision": (50, 371), "audio": (50, 81), "text": (50, 300)}, random)
        if split == "train":
            part["text"][3] = 0
            part["audio"][4, 20, 5] = -np.inf
        labels = np.array([[-1 if row % 3 else 1] for row in range(rows)], dtype=np.int64)
        content[split] = {**part, "labels": labels, "id": np.array([f"talk{row // 2}" for row in range(rows)])}
    write_pickle(root / "humor.pkl", content)
    return root


def mult(root: Path, name: str = "mosei_senti_data.pkl", steps: tuple[int, int, int] = (50, 50, 50)) -> Path:
    """8, 4 and 4 samples with sentiments from -3 to 3, one of them exactly 0."""
    random = np.random.default_rng(2)
    content = {}
    sizes = dict(zip(("vision", "audio", "text"), zip(steps, (35, 74, 300), strict=True), strict=True))
    for split, rows in (("train", 8), ("valid", 4), ("test", 4)):
        part = _sequences(rows, sizes, random)
        if split == "test":
            part["audio"][1, 30, 7] = -np.inf
        sentiments = np.linspace(-3, 3, 7)[np.arange(rows) % 7] + np.where(np.arange(rows) % 7 == 3, 0, 0.2)
        ids = np.array([[f"video{row // 2}".encode(), b"0.0", b"1.5"] for row in range(rows)])
        content[split] = {**part, "labels": sentiments.reshape(rows, 1, 1).astype(np.float32), "id": ids}
    write_pickle(root / name, content, protocol=2)
    return root


def mosei_words(root: Path) -> Path:
    """6, 3 and 3 utterances; one has no spectrogram."""
    random = np.random.default_rng(3)
    texts = (["Well-known", "things", "(really)!"], ["It", "is", "good/bad", ",", "really"])
    for split, rows in (("train", 6), ("valid", 3), ("test", 3)):
        keys = [f"{split}vid{row // 2}[{row}]" for row in range(rows)]
        mels = {key: random.normal(size=(40 + 15 * row, 80)).astype(np.float32) for row, key in enumerate(keys)}
        if split == "train":
            del mels[keys[2]]
        write_pickle(root / f"{split}_sentences.p", {key: texts[row % 2] for row, key in enumerate(keys)})
        write_pickle(root / f"{split}_mels.p", mels)
        values = (-2.5, -2.0, 0.0, 1.0, 1.5, 2.5)
        write_pickle(root / f"{split}_sentiment.p", {key: np.float64(values[row]) for row, key in enumerate(keys)})
        write_pickle(root / f"{split}_emotion.p", {key: np.zeros(6) for key in keys})
    return root


def ave(root: Path) -> Path:
    """12 clips with features (7, 7, 8); the last is background throughout; the orders are not sorted."""
    random = np.random.default_rng(4)
    labels = np.zeros((12, 10, 29), dtype=np.int64)
    for clip in range(12):
        for second in range(10):
            happens = clip < 11 and 2 <= second < 5 + clip % 3
            labels[clip, second, clip % 5 if happens else 28] = 1
    write_h5(root / "visual_feature.h5", {"avadataset": random.normal(size=(12, 10, 7, 7, 8)).astype(np.float32)})
    write_h5(root / "audio_feature.h5", {"avadataset": random.normal(size=(12, 10, 128)).astype(np.float32)})
    write_h5(root / "right_labels.h5", {"avadataset": labels})
    for split, order in (("train", [7, 0, 3, 11, 5, 2]), ("val", [1, 9, 4]), ("test", [10, 6, 8])):
        write_h5(root / f"{split}_order.h5", {"order": np.array(order)})
    return root


def ave_clips(root: Path) -> Path:
    """Lists by ampersands, one video twice; spectrograms in pickles; testSet.txt gives the order of the classes."""
    videos = [f"vid{number:02d}_-x" for number in range(12)]
    labels = ["Truck", "Church bell", "Male speech, man speaking"]
    random = np.random.default_rng(5)
    lines = [f"{labels[number % 3]}&{video}&good&0&{4 + number % 6}" for number, video in enumerate(videos)]
    (root / "AVE").mkdir(parents=True)
    (root / "trainSet.txt").write_text("\n".join([*lines[:6], lines[2]]) + "\n")
    (root / "valSet.txt").write_text("\n".join(lines[6:8]) + "\n")
    (root / "testSet.txt").write_text("\n".join(lines[8:]) + "\n")
    (root / "Annotations.txt").write_text("Category&VideoID&Quality&StartTime&EndTime\n" + "\n".join(lines) + "\n")
    for number, video in enumerate(videos):
        if number != 4:
            write_pickle(root / "Audio-1004-SE" / f"{video}.pkl", random.normal(size=(257, 1004)).astype(np.float32), 5)
        write_frames(root / "Image-01-FPS-SE" / video, ["00000.jpg", "00029.jpg"])
    return root


def kinetics_sounds(root: Path, overlap: bool = False, lossless: bool = False) -> Path:
    """Ten frames a clip, but six in one and three in another, which is left out; filter banks in .npy.

    With `overlap` in folders by split and lists with spaces, as MMPareto has them.
    """
    random = np.random.default_rng(6)
    clips = [f"--{number}-0ihtnBU_000058_000068" for number in range(10)]
    for number, clip in enumerate(clips):
        frames = {3: 6, 4: 3}.get(number, 10)
        visual, audio = (
            ("train-frames-1fps/train", "train_spec") if number < 6 else ("val-frames-1fps/test", "test_spec")
        )
        if not overlap:
            visual, audio = "visual", "audio"
        write_frames(
            root / visual / clip, [f"frame_{frame:05d}.jpg" for frame in range(1, frames + 1)], lossless=lossless
        )
        (root / audio).mkdir(exist_ok=True)
        np.save(root / audio / f"{clip}.npy", random.normal(size=(1024, 128)).astype(np.float32))
    separator = " " if overlap else ","
    rows = [separator.join((clip, "10", str(number * 3))) for number, clip in enumerate(clips)]
    names = ("ks_train_overlap.txt", "ks_test_overlap.txt") if overlap else ("my_train.txt", "my_test.txt")
    (root / names[0]).write_text("\n".join(rows[:6]))
    (root / names[1]).write_text("\n".join(rows[6:]) + "\n")
    return root


def kinetics_sounds_34(root: Path) -> Path:
    random = np.random.default_rng(7)
    labels = ["playing violin", "blowing nose", "laughing"]
    root.mkdir(exist_ok=True)
    (root / "class.txt").write_text(",".join(labels))
    for split, folder in (("train", "train_img"), ("test", "val_img")):
        for label in labels:
            for number in range(2):
                video = f"{split}vid{labels.index(label)}{number}"
                write_frames(root / "visual" / folder / "Image-01-FPS" / label / video, ["00000.jpg", "00029.jpg"])
                if (split, label, number) != ("train", "laughing", 1):
                    spectrogram = random.normal(size=(257, 1004)).astype(np.float32)
                    write_pickle(root / "audio" / split / label / f"{video}.pkl", spectrogram)
    return root


def vggsound(root: Path) -> Path:
    """The first class of the list has no files here: numbers must not hang on that. A label with a comma in quotes."""
    rows = [("a-b_c", 0, "zebra braying", "train")]
    labels = ("playing harp", '"people burping, loudly"')
    rows += [
        (f"vid{number}", 30 * number, labels[number % 2], "train" if number < 5 else "test") for number in range(8)
    ]
    root.mkdir(exist_ok=True)
    (root / "vggsound.csv").write_text(
        "\n".join(f"{video},{start},{label},{split}" for video, start, label, split in rows)
    )
    for video, start, _, split in rows[1:]:
        clip = f"{video}_{start:06d}"
        write_sound(root / "audio" / split / f"{clip}.wav")
        folder = root / "frames" / split / "Image-01-FPS" / f"{clip}.mp4"
        write_frames(folder, [f"{frame:05d}.jpg" for frame in range(3 if video == "vid2" else 5)])
    return root


def ucf101(root: Path) -> Path:
    labels = ["ApplyEyeMakeup", "Archery", "YoYo"]
    (root / "ucfTrainTestlist").mkdir(parents=True)
    (root / "ucfTrainTestlist/classInd.txt").write_bytes(
        b"".join(f"{number} {label}\r\n".encode() for number, label in enumerate(labels, 1))
    )
    train, test = [], []
    for number, label in enumerate(labels):
        for group in ("g08", "g09", "g10"):
            video = f"v_{label}_{group}_c01"
            if group == "g08":
                test.append(f"{label}/{video}.avi")
            else:
                train.append(f"{label}/{video}.avi {number + 1}")
            write_frames(root / "rgb" / video, [f"frame_{frame:05d}.jpg" for frame in range(1, 7)])
            for kind in ("u", "v"):
                if (video, kind) != ("v_YoYo_g09_c01", "v"):
                    frames = [f"frame{frame:06d}.jpg" for frame in range(1, 10)]
                    write_frames(root / kind / video, frames, grey=True)
    (root / "ucfTrainTestlist/trainlist01.txt").write_text("\n".join(train) + "\n")
    (root / "ucfTrainTestlist/testlist01.txt").write_text("\n".join(test) + "\n")
    return root


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path
