"""What the cases of all ops share."""

from typing import Any

# (kernel, signature without constants, constants, options) as the launchers use them
Case = tuple[Any, dict[str, Any], dict[str, object], dict[str, object]]

OPTIONS = {"enable_fp_fusion": True}
STEP = {"values": "*fp64", "counts": "*i64", "scales": "*fp64", "alpha": "i64", "max_gap": "i64"}
SHAPE = {"batch": "i32", "classes": "i32"}
