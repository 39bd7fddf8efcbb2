"""What `agm.verify` returns."""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Verification"]


@dataclass(frozen=True)
class Verification:
    """How far a model's training step is from the whole network once for every subset; `print` it.

    Attributes:
        masked: "exact" or "shared", the mode of the model.
        logits: subset in words -> largest difference of its logits, over the largest logit of all.
        gradients: parameter or input -> largest difference of its gradient, over the largest element of the gradient,
            or over a tenth of the largest one of all if that is more.
        buffers: buffer -> largest difference after the step, over its largest element, or over a tenth of the largest
            one of its module's if that is more.
        coefficients: modality -> difference of its modulation coefficient, over the coefficient.
        left: attribute of a module, or parameter -> how far what the step left there is from what one joint pass
            leaves, over its largest element; infinite for something of another kind.
        tolerance: what none of them may exceed.
        not_finite: what of the definition holds NaN or infinities, in words: the network itself is at fault.
        advice: what is wrong and what to do, if something is, and what is worth knowing.
    """

    masked: str
    logits: Mapping[str, float]
    gradients: Mapping[str, float]
    buffers: Mapping[str, float]
    coefficients: Mapping[str, float]
    tolerance: float
    advice: tuple[str, ...] = ()
    left: Mapping[str, float] = field(default_factory=dict)
    not_finite: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no difference exceeds the tolerance, and every number is finite."""
        return self.worst <= self.tolerance and not self.not_finite

    @property
    def worst(self) -> float:
        """The largest difference of all."""
        return max(value for figures in self._kinds().values() for value in figures.values())

    def _kinds(self) -> dict[str, Mapping[str, float]]:
        return {
            "logits": self.logits,
            "gradients": self.gradients,
            "buffers": self.buffers,
            "coefficients": self.coefficients,
            "left behind": self.left,
        }

    def _wrong(self, kind: str) -> list[str]:
        """Where the differences of a kind are too large, the largest first."""
        figures = self._kinds()[kind]
        wrong = [where for where, value in figures.items() if not value <= self.tolerance]
        return sorted(wrong, key=lambda where: -figures[where])

    def __str__(self) -> str:
        text = [
            f"The training step (masked={self.masked!r}) {'equals' if self.ok else 'is not'} one pass of the whole "
            f"network for each of the {len(self.logits)} subsets, at tolerance {self.tolerance:.0e}."
        ]
        text += [f"  not finite    {where}" for where in self.not_finite]
        for kind, figures in self._kinds().items():
            if not figures:
                continue
            wrong = self._wrong(kind)
            where = wrong[0] if wrong else max(figures, key=lambda name: figures[name])
            others = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            mark = "too large:" if wrong else "largest:"
            text.append(f"  {kind:<12}  {figures[where]:.1e}  {mark} {where}{others}")
        return "\n".join([*text, *self.advice])
