"""The kernels of additive fusions, with and without joint logits that were given."""

from collections.abc import Iterator
from typing import Any

from agm.kernels import additive_gradients, finishing, modulate, modulate_additive
from common import OPTIONS, SHAPE, STEP, Case


def cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    inputs = dict.fromkeys(("present", "absent", "bias", "joint_logits", "out"), f"*{dtype}") | {"labels": "*i64"}
    strides = dict.fromkeys(("row_stride", "batch_stride", "absent_stride", "joint_stride"), "i64")
    strides["ignore_index"] = "i32"
    found = {"found": f"*{wide}", "beaten_by": "*i32"}
    left = {"costs": "*fp64", "hits": "*i64"}
    for modalities, given in ((2, False), (6, True), (16, False)):
        padded = 1 << (modalities - 1).bit_length()
        tile = modulate_additive.tile_of(padded, dtype == "fp64")
        common = {"MODALITIES": modalities, "PADDED": padded}
        few = {"SAMPLES": modulate_additive._MAX_STATES // padded, "CLASSES": 16, "ALIGNED": False}
        absent = {"bias": None} if given else {"joint_logits": None}
        yield (
            modulate_additive._score_additive,
            {**inputs, **left, **SHAPE, **strides, "cap": "i64"},
            {**common, **absent, **few, **dtypes},
            OPTIONS,
        )
        yield (
            modulate_additive._score_additive_shares,
            {**inputs, **found, **SHAPE, "share": "i32", **strides},
            {**common, **absent, "CLASSES": tile, "ALIGNED": True, **dtypes},
            OPTIONS,
        )
        if dtype in ("bf16", "fp16"):  # as above, only the inputs differ
            continue
        last = {
            **common,
            "weights": None,
            "SCALES": "additive beside joint logits" if given else "additive",
            "UPDATE": True,
            "LOSS": False,
            "SMOOTHING": False,
            **dict.fromkeys(("class_weight", "label_smoothing", "loss", "sums")),
        }
        yield (
            finishing._finish_shares,
            {**found, "labels": "*i64", **SHAPE, "shares": "i32", "ignore_index": "i32", "cap": "i64", **STEP},
            {**last, **dict.fromkeys(("joint_found", "normalizer")), "SAMPLES": modulate._SAMPLES, **dtypes},
            OPTIONS,
        )
        if dtype == "fp32":  # the same for all
            last |= {**dict.fromkeys(("losses", "classes")), "BLOCK": modulate._PROGRAMS}
            yield finishing._finish, {**left, "programs": "i32", **STEP}, last, OPTIONS
    gradient = {"grad": f"*{dtype}", "sums": "*fp64", "scales": "*fp64", "out": f"*{dtype}", "rows": "i32", **SHAPE}
    for classes in (16, additive_gradients._MAX_CLASSES):
        yield (
            additive_gradients._scale_and_sum,
            {**gradient, "share": "i32"},
            {"SAMPLES": additive_gradients._BLOCK // classes, "CLASSES": classes},
            OPTIONS,
        )
    columns = {name: kind for name, kind in gradient.items() if name not in ("grad", "rows")}
    yield (
        additive_gradients._scale_columns,
        {**columns, **dict.fromkeys(("parts", "shares", "last"), "i32")},
        {"SHARES": additive_gradients._SHARES, "CLASSES": additive_gradients._MAX_CLASSES, **dtypes},
        OPTIONS,
    )
