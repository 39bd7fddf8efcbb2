"""More of the field's datasets, tiny: images with texts, stored features, and recordings by sensors."""

import io
from pathlib import Path

import numpy as np

from .trees import pixels, write_h5, write_image, write_json, write_pickle


def food_101(root: Path, header: bool = True) -> Path:
    """Titles with commas in quotes; one image is missing."""
    rows = {"train": [], "test": []}
    for split, number in (("train", 4), ("test", 2)):
        for label in ("waffles", "apple_pie"):
            for which in range(number):
                image = f"{label}_{which}.jpg"
                rows[split].append(f'{image},"RT Best #{label}, ever http://x.org/{which}",{label}')
                if (split, label, which) != ("train", "waffles", 2):
                    write_image(root / "images" / split / label / image, colour=which)
    (root / "texts").mkdir(parents=True)
    for split, lines in rows.items():
        first = ["Image_path,text,label"] if header else []
        (root / f"texts/{split}_titles.csv").write_bytes("\r\n".join([*first, *lines]).encode())
    return root


def food_101_json(root: Path) -> Path:
    for split, number in (("train", 4), ("dev", 2), ("test", 2)):
        entries = []
        for which in range(number):
            place = f"images/{split}_{which}.jpg"
            label = ("waffles", "apple_pie")[which % 2]
            tokens = ["best", "waf", "##fle"]
            entries.append({"id": f"{split}_{which}", "img_path": place, "text_tokens": tokens, "label": label})
            write_image(root / place)
        write_json(root / f"{split}.json", entries)
    return root


def twitter_15(root: Path) -> Path:
    """A quote that is never closed, one picture in two rows, one missing."""
    (root / "absa_data/twitter2015").mkdir(parents=True)
    rows = [("0", "11.jpg", '$T$ is "out', "Ann"), ("2", "12.jpg", "I like $T$", "Bob"), ("1", "12.jpg", "$T$ ?", "I")]
    for split, more in (("train", [("1", "missing.jpg", "$T$", "C")]), ("dev", []), ("test", [])):
        lines = ["index\t#1 Label\t#2 ImageID\t#3 String\t#3 String"]
        lines += [f"{number}\t" + "\t".join(row) for number, row in enumerate(rows + more)]
        (root / f"absa_data/twitter2015/{split}.tsv").write_text("\n".join(lines) + "\n")
    for image in ("11.jpg", "12.jpg"):
        write_image(root / "twitter2015_images" / image)
    return root


def sarcasm(root: Path) -> Path:
    """Lists of Python; validation and test have two labels, of which the last counts."""
    root.mkdir(exist_ok=True)
    (root / "train.txt").write_text("".join(f"['{100 + n}', 'text \\'{n}\\' <user>', {n % 2}]\n" for n in range(4)))
    for name in ("valid2", "test2"):
        (root / f"{name}.txt").write_text("".join(f"['{100 + n}', 'text {n}', 1, {n % 2}]\n" for n in range(3)))
    for number in range(3):
        write_image(root / f"dataset_image/{100 + number}.jpg")
    return root


def iemocap(root: Path) -> Path:
    """Lengths differ; one utterance of test has no face."""
    random = np.random.default_rng(8)
    names = {
        split: [f"Ses{number % 5 + 1:02d}F_{split}{number}" for number in range(count)]
        for split, count in (("trn", 6), ("val", 3), ("tst", 3))
    }
    every = [name for listed in names.values() for name in listed]
    sizes = {"A/comparE": (400, 130), "V/denseface": (30, 342), "L/bert_large": (22, 1024)}
    for place, (steps, features) in sizes.items():
        table = {
            name: random.normal(3, 2, (steps - number, features)).astype(np.float32)
            for number, name in enumerate(every)
            if (place, name) != ("V/denseface", names["tst"][1])
        }
        write_h5(root / f"{place}.h5", table)
    deviation = np.full(130, 2.0)
    deviation[5] = 0
    write_h5(root / "A/comparE_mean_std.h5", {"1/mean": np.full(130, 3.0), "1/std": deviation})
    for split, listed in names.items():
        (root / "target/1").mkdir(parents=True, exist_ok=True)
        np.save(root / f"target/1/{split}_label.npy", np.eye(4)[np.arange(len(listed)) % 4])
        np.save(root / f"target/1/{split}_int2name.npy", np.array([[name.encode()] for name in listed]))
    return root


def balanced_av(root: Path) -> Path:
    import h5py
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels()).save(content, "JPEG")
    image = np.frombuffer(content.getvalue(), np.uint8)
    clips = {
        f"clip{n}_-": {"subset": ("training", "testing")[n % 2], "label": ("dog", "cat")[n % 3 % 2]} for n in range(8)
    }
    write_json(root / "MM-Debiased.json", {"database": clips, "labels": ["dog", "cat"]})
    for number, clip in enumerate(clips):
        (root / "visual").mkdir(exist_ok=True)
        with h5py.File(root / f"visual/{clip}.hdf5", "w") as file:
            frames = file.create_dataset("video", (10,), dtype=h5py.vlen_dtype(np.uint8))
            for place in range(10):
                frames[place] = image
        if number != 3:
            write_pickle(root / f"audio/{clip}.pkl", np.ones((257, 299), np.float32) * number)
    return root


def uci_har(root: Path) -> Path:
    random = np.random.default_rng(9)
    folder = root / "UCI HAR Dataset"
    for split, rows in (("train", 12), ("test", 6)):
        signals = folder / split / "Inertial Signals"
        signals.mkdir(parents=True)
        for file in ("total_acc", "body_acc", "body_gyro"):
            for axis in "xyz":
                np.savetxt(signals / f"{file}_{axis}_{split}.txt", random.normal(size=(rows, 128)), fmt="%16.7e")
        np.savetxt(folder / split / f"y_{split}.txt", np.arange(rows) % 6 + 1, fmt="%d")
        np.savetxt(folder / split / f"subject_{split}.txt", np.arange(rows) // 4 + 1, fmt="%d")
    names = ("WALKING", "WALKING_UPSTAIRS", "WALKING_DOWNSTAIRS", "SITTING", "STANDING", "LAYING")
    (folder / "activity_labels.txt").write_text("".join(f"{n} {name}\n" for n, name in enumerate(names, 1)))
    return root


def pamap2(root: Path) -> Path:
    """Four persons, each 540 steps of one activity, 300 of none, 540 of another; lost packets are NaN."""
    random = np.random.default_rng(10)
    (root / "PAMAP2_Dataset/Protocol").mkdir(parents=True)
    for person in range(4):
        values = random.normal(size=(1380, 54))
        values[:, 1] = np.repeat([1, 0, 24], [540, 300, 540])
        values[100:103, 4:7] = np.nan
        values[:, 2] = np.nan
        np.savetxt(root / f"PAMAP2_Dataset/Protocol/subject10{person + 1}.dat", values, fmt="%.5g")
    return root


def wisdm(root: Path) -> Path:
    """Lines without an end, twice on a line, or broken, as in the original."""
    lines = []
    for person in (33, 7, 12):
        for step in range(200):
            activity = "Jogging" if step < 110 else "Walking"
            lines.append(f"{person},{activity},{step}000,{step / 10},{-step},0.{person};")
    lines[5] = lines[5] + lines[6]
    del lines[6]
    lines[50] = "33,Jogging,1,2,;"
    lines[300] = "11,Dancing,1,2,3,4;"
    root.mkdir(exist_ok=True)
    (root / "WISDM_ar_v1.1_raw.txt").write_text("\n".join(lines) + "\n\n")
    return root


def opportunity(root: Path) -> Path:
    random = np.random.default_rng(11)
    (root / "dataset").mkdir(parents=True)
    for person in range(1, 4):
        for run in ("ADL1", "Drill"):
            values = random.integers(-999, 999, (100, 250)).astype(float)
            values[:, 249] = np.repeat([0, 406516, 405506], [30, 40, 30])
            values[:, 37:40] = np.nan
            np.savetxt(root / f"dataset/S{person}-{run}.dat", values, fmt="%g")
    return root


def unimib(root: Path) -> Path:
    from scipy.io import savemat

    (root / "data").mkdir(parents=True)
    savemat(root / "data/acc_data.mat", {"acc_data": np.arange(10 * 453.0).reshape(10, 453)})
    labels = np.stack([np.arange(10) % 17 + 1, np.arange(10) // 2 + 1, np.ones(10)], axis=1)
    savemat(root / "data/acc_labels.mat", {"acc_labels": labels})
    return root


def usc_had(root: Path) -> Path:
    from scipy.io import savemat

    random = np.random.default_rng(12)
    for person in range(1, 5):
        folder = root / f"Subject{person}"
        folder.mkdir(parents=True)
        for activity in (1, 12):
            savemat(folder / f"a{activity}t1.mat", {"sensor_readings": random.normal(size=(300, 6)), "age": 30})
    return root
