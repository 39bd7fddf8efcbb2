"""The kernels of the batch norm of train rows and eval rows, for each layout."""

from collections.abc import Iterator
from typing import Any

from agm.kernels import batch_norm_rows
from common import OPTIONS, Case


def cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    if dtype in ("bf16", "fp16"):  # activations are converted when they are loaded; the rest is as for fp32
        return
    channels_last = dtype == "fp64"
    channels = batch_norm_rows._CHANNELS if channels_last else 1
    tile = {"CHANNELS_LAST": channels_last, "VALUES": batch_norm_rows._TILE // channels, "CHANNELS": channels, **dtypes}
    merged = {**tile, "CHUNKS": batch_norm_rows._MAX_CHUNKS}
    names = ("channels", "positions", "values", "train_values", "share", "train_chunks", "chunks")
    batch = dict.fromkeys(names, "i32")
    activations = {"source": f"*{dtype}", "partial": f"*{wide}"}
    statistics = dict.fromkeys(("updated_mean", "updated_var", "saved_mean", "saved_invstd"), f"*{wide}")
    affine = dict.fromkeys(("weight", "bias"), f"*{wide}")
    running = dict.fromkeys(("running_mean", "running_var"), f"*{wide}")
    out = {"out": f"*{dtype}"}
    numbers = {"momentum": "i64", "eps": "i64"}
    yield batch_norm_rows._collect, {**activations, **batch}, tile, OPTIONS
    grads = {"grad": f"*{dtype}", **activations, **batch}
    yield (
        batch_norm_rows._collect_gradients,
        {**grads, "saved_mean": f"*{wide}", "rest_mean": f"*{wide}"},
        tile,
        OPTIONS,
    )
    of_parameters = dict.fromkeys(("grad_weight", "grad_bias"), f"*{wide}")
    inputs = {**activations, **out, **affine, **statistics, **batch, **numbers}
    inputs_back = {**grads, **out, "weight": f"*{wide}", **statistics, **of_parameters, "eps": "i64"}
    yield batch_norm_rows._normalise, {**inputs, **running, "batches": "*i64"}, merged, OPTIONS
    yield batch_norm_rows._pull_back, inputs_back, merged, OPTIONS
    # Without running statistics.
    none = dict.fromkeys((*running, "batches"))
    yield batch_norm_rows._normalise, inputs, {**merged, **none}, OPTIONS
    none = {name: None for name in statistics if name.startswith("updated")}
    given = {name: kind for name, kind in inputs_back.items() if name not in none}
    yield batch_norm_rows._pull_back, given, {**merged, **none}, OPTIONS
