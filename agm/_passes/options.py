"""How masked logits are computed: the settings that `agm.AGM` and `agm.masked_logits` share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agm._inputs.absent import Absent
from agm._inputs.arguments import Modalities
from agm._one_pass.choice import Passes, check_passes
from agm._passes.outputs import Output

__all__ = ["Masked", "MaskedOptions"]

Masked = Literal["exact", "shared"]


@dataclass(frozen=True)
class MaskedOptions:
    """The settings of the masked passes; `agm.masked_logits` says what each means.

    Raises:
        ValueError: one that cannot be.
        TypeError: one of another type.
    """

    modalities: Modalities | None = None
    masked: Masked = "exact"
    absent: Mapping[str, Absent] | None = None
    encoders: Mapping[str, str] | None = None
    inputs: Mapping[str, Any] | None = None
    output: Output | None = None
    class_dim: int | None = None
    passes: Passes = "auto"
    max_rows: int | None = None
    checkpoint: bool = False
    absent_gradient: bool = True
    absent_refresh: int = 1

    def __post_init__(self) -> None:
        if self.masked not in ("exact", "shared"):
            raise ValueError(f"Expected argument `masked` to be 'exact' or 'shared', but got {self.masked!r}.")
        check_passes(self.passes)
        if not isinstance(self.absent_gradient, bool):
            raise TypeError(f"Expected argument `absent_gradient` to be a bool, but got {self.absent_gradient!r}.")
        refresh = self.absent_refresh
        if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
            raise ValueError(
                f"Expected argument `absent_refresh` to be a number of steps, 1 or more, but got {refresh!r}."
            )
        if refresh > 1 and (self.absent_gradient or self.masked != "shared"):
            raise ValueError(
                f"Expected argument `absent_refresh` to be 1, but got {refresh}: features of absent rows are kept from "
                "step to step in shared mode without their gradient alone. Set masked='shared' and "
                "absent_gradient=False."
            )

    @property
    def shared(self) -> bool:
        """Whether present modalities have the joint pass's features in the masked passes."""
        return self.masked == "shared"
