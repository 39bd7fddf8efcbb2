"""The kernels that write the rows of every subset, and of their reduction."""

from collections.abc import Iterator
from typing import Any

from agm.kernels import expand_subsets
from common import OPTIONS, Case


def cases(dtype: str, wide: str, dtypes: dict[str, Any]) -> Iterator[Case]:
    for modalities in (2, 6) if dtype == "fp32" else (2,):
        widths = {"widths": ("i32",) * modalities}
        rows = dict.fromkeys(("present", "absent"), (f"*{dtype}",) * modalities)
        rows |= {"out": f"*{dtype}", "strides": ("i64",) * modalities, "batch": "i32"}

        def tile(size: int, modalities: int = modalities) -> dict[str, object]:
            columns, samples = expand_subsets._tile([512], 64, size)
            return {"MODALITIES": modalities, "SAMPLES": samples, "COLUMNS": columns}

        yield expand_subsets._concatenate, {**rows, **widths, "row_width": "i32"}, tile(expand_subsets._TILE), OPTIONS
        yield expand_subsets._sum, {**rows, "width": "i32"}, {**tile(expand_subsets._SUM_TILE), **dtypes}, OPTIONS
        grads = {"grad": f"*{dtype}", "grad_present": f"*{dtype}", "partial": f"*{wide}"}
        for shared in (1, 1 << (modalities - 1).bit_length()):  # concatenated, summed
            yield (
                expand_subsets._reduce,
                {**grads, **widths, "batch": "i32", "row_stride": "i64", "total": "i32"},
                {**tile(expand_subsets._TILE // shared), "SHARED": shared, **dtypes},
                OPTIONS,
            )
    yield (
        expand_subsets._sum_partial,
        {"partial": f"*{wide}", "grad_absent": f"*{dtype}", "programs": "i32", "total": "i32"},
        {"PROGRAMS": expand_subsets._PROGRAMS, "COLUMNS": expand_subsets._TILE // expand_subsets._PROGRAMS},
        OPTIONS,
    )
