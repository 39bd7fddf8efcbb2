"""How masked logits are computed: the settings that `agm.AGM` and `agm.masked_logits` share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from agm._inputs.absent import Absent
from agm._inputs.arguments import Modalities
from agm._one_pass.choice import Passes, check_passes
from agm._passes.outputs import Output

__all__ = ["LossName", "Masked", "MaskedOptions"]

Masked = Literal["exact", "shared"]

LossName = Literal["cross_entropy", "causal_lm"]
"""The mean cross-entropy of the joint logits, with the target as it is or each token's target being the next one."""


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
    head: str | None = None
    loss: LossName | None = None

    def __post_init__(self) -> None:
        if self.masked not in ("exact", "shared"):
            raise ValueError(f"Expected argument `masked` to be 'exact' or 'shared', but got {self.masked!r}.")
        check_passes(self.passes)
        if not isinstance(self.absent_gradient, bool):
            raise TypeError(f"Expected argument `absent_gradient` to be a bool, but got {self.absent_gradient!r}.")
        if self.loss not in (None, *get_args(LossName)):
            raise ValueError(
                f"Expected argument `loss` to be one of {get_args(LossName)} or None, but got {self.loss!r}."
            )
        if self.loss is not None and self.head is None:
            raise ValueError(
                "Expected argument `head` with `loss`, the path of the linear layer that returns the logits, but got "
                "None. Name it: head='lm_head'."
            )
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
    def summing_head(self) -> str | None:
        """The path of the head that is declared to add up the modalities; for a loss it need not."""
        return self.head if self.loss is None else None

    @property
    def shared(self) -> bool:
        """Whether present modalities have the joint pass's features in the masked passes."""
        return self.masked == "shared"
