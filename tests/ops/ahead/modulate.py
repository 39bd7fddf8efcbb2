"""The kernels of a step, without and with the loss, and of the two backwards."""

from collections.abc import Iterator
from typing import Any

from agm.kernels import finishing, modulate, modulate_cross_entropy, scoring
from common import OPTIONS, SHAPE, STEP, Case


def backward_cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    yield (
        modulate._scale_rows,
        {"grad": f"*{dtype}", "scales": "*fp64", "out": f"*{dtype}", "rows": "i32", "size": "i64"},
        {"BLOCK": modulate._BLOCK, "ALIGNED": True},
        OPTIONS,
    )
    inputs = dict.fromkeys(("logits", "grad_logits", "out"), f"*{dtype}") | {"labels": "*i64"}
    inputs |= dict.fromkeys(("grad_loss", "class_weight", "normalizer"), f"*{wide}")
    inputs |= dict.fromkeys(("sums", "scales"), "*fp64")
    strides = {"rows": "i32", **SHAPE, "batch_stride": "i64", "ignore_index": "i32", "label_smoothing": "i64"}
    for classes in (16, modulate_cross_entropy._TILE):
        yield (
            modulate_cross_entropy._scale_loss_rows,
            {**inputs, **strides},
            {"SAMPLES": modulate_cross_entropy._TILE // classes, "CLASSES": classes, "ALIGNED": True, **dtypes},
            OPTIONS,
        )


def step_cases(dtype: str, wide: str, dtypes: dict[str, Any], modalities: int, loss: bool) -> Iterator[Case]:
    """(kernel, signature without constants, constants, options) as the launchers use them."""
    strides = {"row_stride": "i64", "batch_stride": "i64", "ignore_index": "i32"}
    found = {"found": f"*{wide}", "beaten_by": "*i32"}
    inputs = {"logits": f"*{dtype}", "labels": "*i64", "weights": f"*{wide}"}

    def only_with_loss(**signature: str) -> tuple[dict[str, str], dict[str, Any]]:
        """The arguments of the loss: their types, or the constant None."""
        return (signature, {}) if loss else ({}, dict.fromkeys(signature))

    tile = modulate._TILE[modalities]
    both = {"PADDED": 1 << (modalities - 1).bit_length(), "LOSS": loss, "SMOOTHING": loss}
    rows = {"ROWS": 2**modalities - 1}
    last = {"MODALITIES": modalities, "UPDATE": True, "SCALES": "subsets"}
    weight, normalizer = {"class_weight": f"*{wide}"}, {"normalizer": f"*{wide}"}
    mean = {"label_smoothing": "i64", "loss": f"*{wide}", "sums": "*fp64"}

    own, none = only_with_loss(**weight, **normalizer, losses="*fp64")
    most = modulate._MAX_SAMPLES_WITH_LOSS if loss else modulate._MAX_SAMPLES
    yield (
        scoring._score,
        {**inputs, "costs": "*fp64", "hits": "*i64", **SHAPE, **strides, "cap": "i64", **own},
        {**rows, **both, "SAMPLES": min(tile // 16, most), "CLASSES": 16, "ALIGNED": False, **dtypes, **none},
        OPTIONS,
    )
    if dtype in ("bf16", "fp16"):  # the logits are converted when they are loaded; the rest is as for fp32
        return
    own, none = only_with_loss(**weight, joint_found="*fp64")
    yield (
        scoring._score_shares,
        {**inputs, **found, **SHAPE, "share": "i32", **strides, **own},
        {**rows, **both, "CLASSES": tile, "ALIGNED": True, **dtypes, **none},
        OPTIONS,
    )
    own, none = only_with_loss(joint_found="*fp64", **weight, **normalizer, **mean)
    more = {"shares": "i32", "ignore_index": "i32", "cap": "i64"}
    yield (
        finishing._finish_shares,
        {**found, "labels": "*i64", **SHAPE, **more, "weights": "*fp64", **STEP, **own},
        {**last, **both, "SAMPLES": modulate._SAMPLES, **dtypes, **none},
        OPTIONS,
    )
    if dtype == "fp64" and not loss:  # the same for all
        return
    own, none = only_with_loss(losses="*fp64", **weight, **mean)
    yield (
        finishing._finish,
        {"costs": "*fp64", "hits": "*i64", "programs": "i32", "classes": "i32", "weights": "*fp64", **STEP, **own},
        {**last, **both, "BLOCK": modulate._PROGRAMS, **none},
        OPTIONS,
    )


def cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    yield from backward_cases(dtype, wide, dtypes)
    for modalities in (2, 6) if dtype == "fp32" else (2,):
        for loss in (False, True):
            yield from step_cases(dtype, wide, dtypes, modalities, loss)
