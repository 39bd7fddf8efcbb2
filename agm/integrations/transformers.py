"""Hugging Face: a `Trainer` whose model is an `agm.AGM`."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from agm.integrations.logs import modulators, scalars

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "agm.integrations.transformers needs Hugging Face's, which is not installed: pip install 'agm[transformers]'"
    ) from error

__all__ = ["ModulatedTrainer"]


class ModulatedTrainer(Trainer):
    """`transformers.Trainer` for an `agm.AGM` (or a module that forwards to one): the labels reach it as `target`.

    The model's inputs are the modalities by keyword, tensors or dicts of tensors as a collator makes them; `labels` are
    class indices. The loss is the mean cross-entropy, with the `label_smoothing_factor` of the arguments; over
    `num_items_in_batch` where the Trainer accumulates gradients. In every `logging_steps` the figures of
    `agm.integrations.logs.scalars` are logged with the loss, by whatever `report_to` names (TensorBoard, W&B ...). The
    window of epochs follows the Trainer, also in a resumed run, and the running scores are in its checkpoints.

    Set `remove_unused_columns=False` in the arguments: an AGM takes what its network takes, which the Trainer cannot
    see.

    Raises:
        ValueError: the model holds no AGM, or the Trainer would remove its inputs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        modulators(cast(nn.Module, self.model))
        self.label_names = ["labels"]  # not among the parameters of AGM's forward, where the Trainer looks
        if self.args.remove_unused_columns:
            raise ValueError(
                "Expected the training arguments to have remove_unused_columns=False, but got True, which would remove "
                "every modality from the batches."
            )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        for modulator in modulators(cast(nn.Module, self.model)):
            modulator.epoch = int(self.state.epoch or 0)
        loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss (), and with `return_outputs` also {"loss", "logits"}."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError(f"Expected the batch to have `labels`, but got only {sorted(inputs)}. Name the target so.")
        logits = model(**inputs, target=labels)
        total = num_items_in_batch is not None
        loss = F.cross_entropy(
            logits,
            labels,
            reduction="sum" if total else "mean",
            label_smoothing=self.args.label_smoothing_factor if model.training else 0.0,
        )
        loss = loss / num_items_in_batch if total else loss
        return (loss, {"loss": loss, "logits": logits}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        values = scalars(cast(nn.Module, self.model)) if "loss" in logs else {}
        super().log({**logs, **values}, *args, **kwargs)
