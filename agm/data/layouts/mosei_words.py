"""CMU-MOSEI in AGM's form: words and mel spectrograms, no video."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, one_of
from agm.data.layouts.layout import Layout, Part, Sample
from agm.data.layouts.mosei import SCORE
from agm.data.layouts.pickles import load_pickle
from agm.data.layouts.stored import map_array

__all__ = ["MoseiWords", "clean_word"]

LENGTH = 60  # words, and steps of the spectrogram
_SPLITS = {"train": "train", "validation": "valid", "test": "test"}
_DROPPED = re.compile(r"[.,'!?\"()*#:;]")


def clean_word(word: str) -> str:
    """In lower case, without punctuation; hyphens and slashes become spaces."""
    return _DROPPED.sub("", word.lower()).replace("-", " ").replace("/", " ")


def sentiment_of(value: float, rule: str) -> int:
    """Class by AGM's rules: below 0 or not; or one of seven, between whole numbers, with 0 by itself."""
    if rule == "binary":
        return int(value >= 0)
    return (
        3
        if value == 0
        else int(np.searchsorted((-2.0, -1.0, 0.0), value, side="right"))
        if value < 0
        else (4 + int(np.searchsorted((1.0, 2.0), value, side="left")))
    )


class MoseiWords(Layout):
    """{train,valid,test}_{sentences,mels,sentiment}.p: dicts by "video[i]".

    `read` gives "text", (60,) int64 token ids (0 is no word, 1 an unknown one) or with `text=glove` (60, 300) float32
    vectors of train_glove.npy; and "audio" (60, 80) float32. Both are cut, or filled with zeros at the end.
    """

    name = "mosei-words"
    title = "CMU-MOSEI in AGM's form"
    source = "github.com/jbdel/MOSEI_UMONS; research only (YouTube)"
    modalities = ("text", "audio")
    schemes: ClassVar[Mapping[str, str]] = {"clean": "the set's own train, validation and test", "authors": "the same"}
    options: ClassVar[Mapping[str, Choice]] = {
        "labels": one_of(
            "binary",
            "seven",
            SCORE,
            help="below 0 or not; between whole numbers, with 0 by itself; the number itself",
        ),
        "text": one_of("tokens", "glove", help="token ids, or their vectors of train_glove.npy"),
    }
    parts: ClassVar[Mapping[str, Part]] = {
        **{
            f"{split}_{kind}": Part(f"{kind} of {split}", (f"{split}_{kind}.p",))
            for split in _SPLITS.values()
            for kind in ("sentences", "mels", "sentiment")
        },
        "tokens": Part("token ids", ("token_to_ix.pkl",), needed=False, sign=False),
        "glove": Part("vectors of the tokens", ("train_glove.npy",), needed=False, sign=False),
    }

    def _scan(self) -> None:
        rule = self.chosen["labels"]
        seven = ("below -2", "-2 to -1", "-1 to 0", "0", "0 to 1", "1 to 2", "above 2")
        self.class_names = {"binary": ("negative", "not negative"), "seven": seven, SCORE: ("sentiment",)}[rule]
        self._words: dict[str, dict[str, list[str]]] = {}
        self._mels: dict[str, dict[str, np.ndarray]] = {}
        for split, short in _SPLITS.items():
            tables = {kind: self._table(short, kind) for kind in ("sentences", "mels", "sentiment")}
            self._words[split], self._mels[split] = {}, {}
            path = self.place(f"{short}_sentences")
            for row, key in enumerate(tables["sentences"]):
                missing = [kind for kind in ("mels", "sentiment") if key not in tables[kind]]
                if missing:
                    self.skip(str(key), f"no {' and no '.join(missing)}", path)
                    continue
                self._add(str(key), split, row, tables["sentences"][key], tables["mels"][key], tables["sentiment"][key])
        self._index = self._token_ids()
        if self.chosen["text"] == "glove":
            if self.found["glove"] is None:
                raise ValueError(f"Expected {self.root} to hold train_glove.npy for text=glove, but got nothing there.")
            self._vectors = np.asarray(map_array(self.found["glove"]), dtype=np.float32)

    def _add(self, key: str, split: str, row: int, sentence: Any, mel: Any, sentiment: Any) -> None:
        short = _SPLITS[split]
        try:
            words = [clean_word(str(word)) for word in sentence]
            value = float(np.asarray(sentiment).reshape(-1)[0])
            sound = np.asarray(mel, dtype=np.float32)
            problem = "" if sound.ndim == 2 and np.isfinite(value) else "no spectrogram (T, 80) or no sentiment"
            problem = problem or ("" if np.isfinite(sound).all() else "NaN or infinity in its spectrogram")
        except (IndexError, TypeError, ValueError):
            problem = "no words, spectrogram or sentiment of the expected kind"
        if problem:
            self.skip(key, problem, self.place(f"{short}_mels"), bad="Repair it, or use agm data convert --skip-bad.")
            return
        self._words[split][key] = [word for word in words if word]
        self._mels[split][key] = sound
        rule, group = self.chosen["labels"], key.split("[")[0]
        if rule == SCORE:
            self.samples.append(Sample(key, split, 0, group=group, row=row, number=value))
        else:
            self.samples.append(Sample(key, split, sentiment_of(value, rule), group=group, row=row))

    def _table(self, short: str, kind: str) -> dict[Any, Any]:
        path = self.place(f"{short}_{kind}")
        table = load_pickle(path)
        if not isinstance(table, dict):
            raise ValueError(f"Expected {path} to hold a dict by video[i], but got {type(table).__name__}.")
        return table

    def _token_ids(self) -> dict[str, int]:
        """As stored beside; else by first appearance in train, as AGM numbers: the first word shares 1 with UNK."""
        path: Path | None = self.found["tokens"]
        if path is not None:
            stored = load_pickle(path)
            if isinstance(stored, dict) and all(type(n) is int and n >= 0 for n in stored.values()):
                return {str(word): number for word, number in stored.items()}
            raise ValueError(f"Expected {path} to hold a dict of token ids by word, but got something else.")
        index = {"UNK": 1}
        for words in self._words["train"].values():
            for word in words:
                if word not in index:
                    index[word] = len(index)
        return index

    def _read(self, sample: Sample, training: bool, generator: torch.Generator | None) -> dict[str, Tensor]:
        ids = torch.zeros(LENGTH, dtype=torch.int64)
        for place, word in enumerate(self._words[sample.split][sample.name][:LENGTH]):
            ids[place] = self._index.get(word, self._index.get("UNK", 1))
        sound = self._mels[sample.split][sample.name][:LENGTH]
        filled = np.zeros((LENGTH, sound.shape[1]), dtype=np.float32)
        filled[: len(sound)] = sound
        text = ids
        if self.chosen["text"] == "glove":
            if int(ids.max()) >= len(self._vectors):
                raise ValueError(f"Expected {self.found['glove']} to have a row for token {int(ids.max())}.")
            text = torch.from_numpy(self._vectors[ids.numpy()])
            text[ids == 0] = 0
        return {"text": text, "audio": torch.from_numpy(filled)}
