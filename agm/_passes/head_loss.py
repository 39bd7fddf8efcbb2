"""A step that ends in a loss, computed from what a linear head is given: its logits never exist."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from agm._inputs.arguments import Arguments
from agm._module_state.structure import Structure
from agm._passes.masked_passes import MaskedPasses
from agm._passes.options import LossName
from agm._passes.outputs import Outputs
from agm.modulation.modulator import Modulator

__all__ = ["HeadLoss"]


class HeadLoss:
    """The loss of a model whose linear head is declared.

    Args:
        name: "cross_entropy", or "causal_lm": the labels (B, T) are the tokens themselves, and the logits of each are
            for the one behind it, as in the causal models of Hugging Face.
        passes: of the network, with the head.
        modulator: of the model.
        subsets: how many are drawn in each step; None: none are.

    Raises:
        ValueError: the head is no plain linear layer, or there are settings that such a loss cannot have.
    """

    def __init__(self, name: LossName, passes: MaskedPasses, modulator: Modulator, subsets: int | None) -> None:
        assert passes.head is not None
        passes.head.linear()
        modulator.check_linear()
        if passes.options.class_dim is not None:
            raise ValueError(
                "Expected argument `class_dim` to be None with `loss`, whose linear head has its classes last, but got "
                f"{passes.options.class_dim}."
            )
        if subsets is not None:
            raise ValueError(
                "Expected argument `subsets` to be None with `loss`, whose kernel takes all of them, but got "
                f"{subsets}. Leave `subsets` out."
            )
        if isinstance(passes.network, DistributedDataParallel):
            raise ValueError(
                "Expected a network without DistributedDataParallel with `loss`, since its head does not run in the "
                "network's forward. Wrap the model instead: DistributedDataParallel(agm.AGM(network, ...))."
            )
        self.name: LossName = name

    def note(self, passes: MaskedPasses) -> str:
        """For a plan: what the loss is computed of."""
        assert passes.head is not None
        return (
            f"The head `{passes.head.path}` does not run: loss={self.name!r} is computed of what it is given for each "
            "subset, a few rows or classes at a time, and its logits are not made whole."
        )

    def step(
        self,
        passes: MaskedPasses,
        modulator: Modulator,
        arguments: Arguments,
        target: Tensor,
        items: Any = None,
        structure: Structure | None = None,
    ) -> Any:
        """The output of a call in training mode, with the loss in it and no logits.

        It is a step if the modulator is active, and otherwise the joint pass alone.

        Args:
            passes: of the network.
            modulator: of the model.
            arguments: of forward.
            target: class indices (B, ...), or the labels (B, T).
            items: by how many of them the sum of their losses is divided; None: by as many as count.
            structure: of the network as it is now; None where the step is compiled.

        Raises:
            ValueError: the head is not what returns the logits, or the output holds a loss or has no room for one.
        """
        assert passes.head is not None
        head = passes.head.linear()
        if "labels" in arguments.rest:
            raise ValueError(
                "Expected no `labels` for the network of a model with `loss`, since a loss of its own would need the "
                "logits, but got some. Call model(..., target=labels), or let the model take them under that name: "
                "agm.AGM(..., target='labels')."
            )
        target = self.shifted(target, modulator.ignore_index)
        if structure is not None:
            structure.tensors.note()
        output, hidden = passes.before_head(arguments) if modulator.active else passes.joint_before_head(arguments)
        if structure is not None:  # without its head the network had another one, which was told by itself
            structure.tensors.written()
        passes.outputs.check_losses(output, head)
        loss = modulator.linear_cross_entropy(hidden, head.weight, target, head.bias)
        if items is not None:
            count = (target != modulator.ignore_index).sum()
            loss = torch.where(count > 0, loss * (count / items), 0.0)
        return passes.outputs.with_loss(output, loss, keeps_logits=False)

    def beside(self, outputs: Outputs, output: Any, target: Tensor, ignore_index: int, items: Any = None) -> Any:
        """The output of a call in eval mode, with the loss of its logits beside them.

        Args:
            outputs: where the logits are.
            output: of the network.
            target, items: as in `step`.
            ignore_index: the target of what does not count.
        """
        logits = outputs.logits(output)
        target = self.shifted(target, ignore_index)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        reduction = "mean" if items is None else "sum"
        loss = F.cross_entropy(
            wide.flatten(0, -2), target.flatten().long(), ignore_index=ignore_index, reduction=reduction
        )
        return outputs.with_loss(output, loss if items is None else loss / items, keeps_logits=True)

    def shifted(self, target: Tensor, ignore_index: int) -> Tensor:
        """The class that each row of logits is for, of the target that the user gives.

        Raises:
            ValueError: it has no dimension of tokens.
        """
        if self.name == "cross_entropy":
            return target
        if target.dim() < 2:
            raise ValueError(
                "Expected argument `target` to hold labels (B, T) with loss='causal_lm', but got "
                f"{tuple(target.shape)}. Use loss='cross_entropy' for one class a sample."
            )
        return F.pad(target[..., 1:], (0, 1), value=ignore_index)
