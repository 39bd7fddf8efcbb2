"""Text to token ids: bytes, or a tokenizer of transformers that lies on the disk."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from agm.data.layouts.choices import Choice, number
from agm.data.layouts.extras import needed

__all__ = ["clean_title", "encode_text", "text_options"]

_RETWEET, _LINK = re.compile(r"^RT\s+"), re.compile(r"https?://.*[\r\n]*")
_LONGEST = 2**20  # characters of a text that are looked at


def text_options(length: int) -> dict[str, Choice]:
    return {
        "length": number(length, 1, 4096, "tokens of a text; longer ones are cut, shorter ones filled with 0"),
        "tokenizer": Choice("bytes", "bytes, or the folder of a tokenizer of transformers", "a text", str),
    }


def clean_title(text: str) -> str:
    """Without RT in front, number signs, and links with what follows them, as BalanceBenchmark cleans Food-101's."""
    return _LINK.sub("", _RETWEET.sub("", text)).replace("#", "").strip()


def encode_text(text: str, length: int, tokenizer: str = "bytes") -> Tensor:
    """Token ids of a text.

    Args:
        text: any.
        length: tokens; longer texts are cut.
        tokenizer: "bytes": 1 + each byte of the text in UTF-8, 0 beyond its end; else the folder of a tokenizer of
            transformers, such as bert-base-uncased as it was downloaded. No code of the folder is run.

    Returns:
        (length,) int64.

    Example:
        >>> encode_text("é!", 4).tolist()
        [196, 170, 34, 0]

    Raises:
        ModuleNotFoundError: transformers is not installed.
        ValueError: the folder holds no tokenizer.
    """
    made = torch.zeros(length, dtype=torch.int64)
    if tokenizer == "bytes":
        ids = [1 + byte for byte in text[:_LONGEST].encode("utf-8", "replace")[:length]]
    else:
        ids = _loaded(tokenizer)(text[:_LONGEST], length)
    made[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return made


@cache
def _loaded(folder: str) -> Callable[[str, int], list[int]]:
    transformers = needed("transformers")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its readers stumble over
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"Expected option `tokenizer` to be bytes or the folder of a tokenizer, but got {folder!r}: {reason}"
        ) from None

    def encode(text: str, length: int) -> list[int]:
        made = tokenizer(text, truncation=True, max_length=length)["input_ids"]
        return [int(token) for token in made]

    return encode
