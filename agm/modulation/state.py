"""What the modulation remembers from step to step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from agm import ops
from agm.ops import reference
from agm.shapley.weights import MAX_MODALITIES

__all__ = ["ModulationState"]


class ModulationState(nn.Module):
    """Running scores and step of a training run, and the statistics of its last step.

    Everything is a tensor on the device and is written in place by `agm.fused_modulate`; reading a value
    in Python (`.tolist()`, `.item()`) is the only synchronisation. Clone what you want to keep.

    The state dict holds copies of `running_scores`, `step` and `skipped`, which continue a run exactly; the
    statistics of the last step are not part of it. Moving the state (`.to(device)`) moves all of it, and casts
    (`.half()`, `.to(torch.bfloat16)`) leave its dtypes as they are. A state that was made on the meta device is a fresh
    one as soon as it gets memory, by `to_empty` or by a checkpoint.

    None of it is among `buffers()`: averages of weights (`torch.optim.swa_utils.AveragedModel(use_buffers=True)`,
    Lightning's `WeightAveraging`) would average the step.

    Attributes:
        running_scores: (M,) float64, R_m: mean score of each modality over the steps so far.
        step: () int64, steps taken, skipped ones left out.
        skipped: () int64, steps whose scores or coefficients were not finite: they used kappa = 1 and left
            `running_scores` and `step` alone.
        scores: (M,) float64, s_m of the last step, in nats; of errors the logarithm (see `agm.modulation.scores`).
            NaN of a modality that none of its samples has.
        ratios: (M,) float64, discrepancy ratios r_m of the last step.
        reference_ratios: (M,) float64, tau_m of the last step.
        coefficients: (M,) float64, modulation coefficients kappa_m of the last step.
        mono_correct: (M,) int64, samples of the last step that the mono-modal response alone got right; 0 where the
            score does not tell what is right.
        joint_correct: () int64, samples that the joint logits got right, or 0.
        samples: () int64, samples (or tokens, segments) of the last step that were not ignored.
        mono_samples: (M,) int64, those of them that had each modality.

    Args:
        num_modalities: M, from 2 to 16.
        device: where the state lives; it must be where the logits are.

    Raises:
        ValueError: `num_modalities` is not an integer from 2 to 16.
    """

    values: Tensor  # (5, M) float64, one row a quantity
    counts: Tensor  # (M + 4,) int64
    seen: Tensor  # (M + 1,) int64: `mono_samples` of the step whose number is in the last place, skipped ones counted

    _saved: tuple[str, ...] = ("running_scores", "step", "skipped")

    def __init__(self, num_modalities: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        if isinstance(num_modalities, bool) or not isinstance(num_modalities, int):
            raise ValueError(f"Expected argument `num_modalities` to be an integer, but got {num_modalities!r}.")
        if not 2 <= num_modalities <= MAX_MODALITIES:
            raise ValueError(
                f"Expected argument `num_modalities` to be from 2 to {MAX_MODALITIES}, but got {num_modalities}."
            )
        self.num_modalities = num_modalities
        self._place(*_fresh(num_modalities, device))

    @property
    def running_scores(self) -> Tensor:
        return self.values[reference.RUNNING_SCORES]

    @property
    def scores(self) -> Tensor:
        return self.values[reference.SCORES]

    @property
    def ratios(self) -> Tensor:
        return self.values[reference.RATIOS]

    @property
    def reference_ratios(self) -> Tensor:
        return self.values[reference.REFERENCE_RATIOS]

    @property
    def coefficients(self) -> Tensor:
        return self.values[reference.COEFFICIENTS]

    @property
    def mono_correct(self) -> Tensor:
        return self.counts[: self.num_modalities]

    @property
    def joint_correct(self) -> Tensor:
        return self.counts[self.num_modalities + reference.JOINT_CORRECT]

    @property
    def samples(self) -> Tensor:
        return self.counts[self.num_modalities + reference.SAMPLES]

    @property
    def mono_samples(self) -> Tensor:
        # Kernels, which know no lacking modalities, leave `seen` as it is.
        return torch.where(self.seen[-1] == self.step + self.skipped, self.seen[:-1], self.samples)

    @property
    def step(self) -> Tensor:
        return self.counts[self.num_modalities + reference.STEP]

    @property
    def skipped(self) -> Tensor:
        return self.counts[self.num_modalities + reference.SKIPPED]

    def save_coefficients(self) -> None:
        """From now on the state dict has the `coefficients` of the last step too, and must have them to be loaded."""
        self._saved = (*type(self)._saved, "coefficients")

    def extra_repr(self) -> str:
        if self.values.is_meta:
            return f"num_modalities={self.num_modalities}"
        scores = ", ".join(f"{score:.4g}" for score in self.running_scores.tolist())
        return f"num_modalities={self.num_modalities}, step={int(self.step)}, running_scores=[{scores}]"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ModulationState":
        own, fresh = (self.values, self.counts, self.seen), _fresh(self.num_modalities, "cpu")
        self._place(*(_moved(tensor, fn, new) for tensor, new in zip(own, fresh, strict=True)))
        return self

    def _place(self, values: Tensor, counts: Tensor, seen: Tensor) -> None:
        self.values, self.counts, self.seen = values, counts, seen
        for tensor in (values, counts, seen):
            # As torch._dynamo.mark_static_address does, which would import the compiler: a CUDA graph may write to
            # what stays at its address.
            tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]
        ops.prepare(self.num_modalities, values.device)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in self._saved:
            # Views of `values` and `counts` share their memory, which safetensors and Accelerate leave out.
            destination[prefix + name] = getattr(self, name).clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = [state_dict[prefix + name] for name in self._saved if prefix + name in state_dict]
        assign = local_metadata.get("assign_to_params_buffers", False)
        device = next((given.device for given in found if not given.is_meta), self.values.device)
        if device != self.values.device and (assign or self.values.is_meta):
            self._apply(lambda own: torch.empty_like(own, device=device))
        for name in self._saved:
            key, own = prefix + name, getattr(self, name)
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != own.shape:
                error_msgs.append(
                    f"size mismatch for {key}: {tuple(state_dict[key].shape)} in the checkpoint, "
                    f"{tuple(own.shape)} here; was it saved with as many modalities?"
                )
            elif not state_dict[key].is_meta:
                own.copy_(state_dict[key])
        known = {prefix + name for name in (*self._saved, "coefficients")}
        unexpected_keys.extend(k for k in state_dict if k.startswith(prefix) and k not in known)


def _fresh(num_modalities: int, device: torch.device | str | None) -> tuple[Tensor, Tensor, Tensor]:
    """`values`, `counts` and `seen` before the first step."""
    values = torch.zeros(5, num_modalities, dtype=torch.float64, device=device)
    values[reference.RATIOS :] = 1.0
    counts = torch.zeros(num_modalities + 4, dtype=torch.int64, device=device)
    return values, counts, torch.full((num_modalities + 1,), -1, dtype=torch.int64, device=device)


def _moved(own: Tensor, fn: Callable[[Tensor], Tensor], fresh: Tensor) -> Tensor:
    """`own` where `fn` (of `nn.Module._apply`) puts it, with its dtype and values whatever `fn` makes of them.

    `fn` may cast, which must not round the running scores, or give memory that nobody has written to.
    """
    moved = fn(own)
    if moved is own:
        return own
    if moved.device == own.device:  # a cast, a pinned copy, empty memory ...
        return moved if moved.dtype == own.dtype and (own.is_meta or torch.equal(moved, own)) else own
    return (fresh if own.is_meta else own).to(moved.device)
