"""Hugging Face: a `Trainer` whose model is an `agm.AGM`."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm.engine import AGM
from agm.integrations.logs import modulators, scalars
from agm.modulation.scores import find_score

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "agm.integrations.transformers needs Hugging Face's, which is not installed: "
        "pip install 'agm-torch[transformers]'"
    ) from error

__all__ = ["ModulatedTrainer"]

# What the arguments of the Trainer call recomputing activations, in transformers 5 and before.
_RECOMPUTING = ("activation_checkpointing", "gradient_checkpointing")


class ModulatedTrainer(Trainer):
    """`transformers.Trainer` for an `agm.AGM` (or a module that forwards to one): the labels reach it as `target`.

    The model's inputs are what its network takes by keyword, tensors or dicts of tensors as a collator makes them;
    `labels` are what the model's `score` takes. The network may return logits (B, ..., C), or a `ModelOutput` or a
    mapping with `logits`.

    The loss is that of the score: the mean cross-entropy over samples or tokens, with the `label_smoothing_factor` of
    the arguments, of labels that are not the model's `ignore_index`; the mean squared error for `"squared_error"`, and
    so on. Over accumulated batches it is the mean over all their labels. `compute_loss_func(outputs, labels,
    num_items_in_batch=...)` is called in its place where it is given, and must be for a score that is a function.

    The steps of a model with `loss`, for a causal language model say, end in that one::

        >>> model = agm.AGM(llava, ("pixel_values", "input_ids"), head="lm_head", loss="causal_lm")
        >>> ModulatedTrainer(model, TrainingArguments(..., remove_unused_columns=False), train_dataset=dataset).train()

    In every `logging_steps` the figures of `agm.integrations.logs.scalars` are logged with the loss, by whatever
    `report_to` names (TensorBoard, W&B ...). The window of epochs follows the Trainer, also in a resumed run, and the
    running scores are in its checkpoints. With `gradient_checkpointing` the parts of the network that offer it
    recompute their activations, and `remove_unused_columns` leaves what the network takes, and `present`.

    Raises:
        ValueError: the model holds no AGM, or the arguments ask for what cannot be.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # What smooths labels in the Trainer looks at a configuration that only models of Hugging Face have.
        with _set(kwargs.get("args", args[1] if len(args) > 1 else None), label_smoothing_factor=0.0):
            super().__init__(*args, **kwargs)
        found = modulators(cast(nn.Module, self.model))
        self.label_names = ["labels"]  # not among the parameters of AGM's forward, where the Trainer looks
        scores = [modulator.score for modulator in found]
        self._score, self._ignore_index = scores[0], found[0].ignore_index
        self._has_loss = any(isinstance(part, AGM) and part.loss for part in cast(nn.Module, self.model).modules())
        if self._has_loss:
            self._check_has_no_other_loss()
        if self.compute_loss_func is None and (callable(self._score) or any(s != self._score for s in scores)):
            raise ValueError(
                "Expected `compute_loss_func` for a model whose score is a function or of which there are several, but "
                "got None: what it is trained on does not follow from its score. Give it to the Trainer."
            )
        if self.args.label_smoothing_factor and self._score != "cross_entropy":
            raise ValueError(
                f"Expected the training arguments to have label_smoothing_factor=0 with score={self._score!r}, but got "
                f"{self.args.label_smoothing_factor}, which is of class indices. Smooth the labels, or leave it out."
            )
        if self._recomputes():
            self._recompute()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        for modulator in modulators(cast(nn.Module, self.model)):
            modulator.epoch = int(self.state.epoch or 0)
        loss: Tensor = super().training_step(*args, **kwargs)
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # What recomputes does so already; the Trainer would ask the model, which has no method for it.
        with _set(self.args, **(dict.fromkeys(_RECOMPUTING, False) if self._recomputes() else {})):
            return super().train(*args, **kwargs)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss (), and with `return_outputs` also a dict of it, the logits, and what else the network returns."""
        inputs = dict(inputs)
        labels = inputs.pop("labels", None)
        if labels is None:
            raise ValueError(f"Expected the batch to have `labels`, but got only {sorted(inputs)}. Name the target so.")
        if self._has_loss:
            outputs = model(**inputs, target=labels, num_items_in_batch=num_items_in_batch)
            loss = _own_loss(outputs)
        else:
            outputs = model(**inputs, target=labels)
            if self.compute_loss_func is not None:
                loss = self.compute_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)
            else:
                loss = self._loss(_logits(outputs), labels, model.training, num_items_in_batch)
        if num_items_in_batch is not None and getattr(self.args, "average_tokens_across_devices", False):
            # The items are those of all processes, over which the gradients are averaged.
            processes = self.accelerator.num_processes // getattr(self, "get_tp_size", lambda: 1)()
            loss = loss * (processes if self.args.n_gpu <= 1 else self.args.n_gpu)
        return (loss, {**_named(outputs), "loss": loss}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        """As the Trainer's, also of batches without labels."""
        if inputs.get("labels") is not None:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs({name: value for name, value in inputs.items() if name != "labels"})
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = _named(model(**inputs))
        if prediction_loss_only:
            return None, None, None
        # The Trainer takes a batch of a single sample for a tuple of a single output.
        found = tuple(value for name, value in outputs.items() if name not in ("loss", *(ignore_keys or ())))
        detached = tuple(value.detach() if isinstance(value, Tensor) else value for value in found)
        return None, detached[0] if len(detached) == 1 else detached, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        values = scalars(cast(nn.Module, self.model)) if "loss" in logs else {}
        super().log({**logs, **values}, *args, **kwargs)

    def _loss(self, logits: Tensor, labels: Tensor, training: bool, items: Any) -> Tensor:
        """Of logits (B, ..., C), over all labels of accumulated batches, which are `items`, where they are counted."""
        if self._score == "cross_entropy":
            if labels.shape != logits.shape[:-1]:
                raise ValueError(
                    f"Expected `labels` to have shape {tuple(logits.shape[:-1])}, a class index for each of the logits "
                    f"{tuple(logits.shape)}, but got {tuple(labels.shape)}."
                )
            loss = F.cross_entropy(
                logits.flatten(0, -2),
                labels.flatten().long(),
                ignore_index=self._ignore_index,
                reduction="mean" if items is None else "sum",
                label_smoothing=self.args.label_smoothing_factor if training else 0.0,
            )
            return loss if items is None else loss / items
        score = find_score(self._score)
        score.check(labels, logits.shape, logits.device, self._ignore_index)
        loss = score.loss(logits, labels, self._ignore_index)
        return loss if items is None else loss * (self._known(labels).sum() / items)

    def _known(self, labels: Tensor) -> Tensor:
        """Which labels count: all but NaN, or the model's `ignore_index`."""
        return ~labels.isnan() if labels.is_floating_point() else labels.long() != self._ignore_index

    def _get_num_items_in_batch(self, batch_samples: list[Any], *args: Any, **kwargs: Any) -> Any:
        # The Trainer counts labels that are not -100.
        counted = [
            {**batch, "labels": torch.where(self._known(batch["labels"]), 0, -100)}
            if isinstance(batch.get("labels"), Tensor)
            else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(counted, *args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            taken = _parameters(cast(nn.Module, self.model)) or []
            columns: Any = [*taken, "label", "label_ids", "labels"]
            self._signature_columns = columns

    def _remove_unused_columns(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        if _parameters(cast(nn.Module, self.model)) is None:
            return dataset
        return super()._remove_unused_columns(dataset, *args, **kwargs)

    def _get_collator_with_removed_columns(self, data_collator: Any, *args: Any, **kwargs: Any) -> Any:
        if _parameters(cast(nn.Module, self.model)) is None:
            return data_collator
        return super()._get_collator_with_removed_columns(data_collator, *args, **kwargs)

    def _check_has_no_other_loss(self) -> None:
        """That nothing asks for another loss than that of a model with one.

        Raises:
            ValueError: something does.
        """
        smoothing = self.args.label_smoothing_factor
        if smoothing or self.compute_loss_func is not None:
            got = f"label_smoothing_factor={smoothing}" if smoothing else "a compute_loss_func"
            raise ValueError(
                "Expected neither label_smoothing_factor nor compute_loss_func for a model with a `loss` of its own, "
                f"but got {got}. Leave it out, or make the model without `loss`: it then returns the logits."
            )

    def _recomputes(self) -> bool:
        """Whether the arguments ask for it, of a model that the Trainer cannot tell by itself."""
        asked = any(getattr(self.args, name, False) for name in _RECOMPUTING)
        return asked and not any(hasattr(self.model, f"{name}_enable") for name in _RECOMPUTING)

    def _recompute(self) -> None:
        """Tell the parts of the network, as the Trainer tells a model of its own."""
        parts = _offering(cast(nn.Module, self.model), tuple(f"{name}_enable" for name in _RECOMPUTING))
        if not parts:
            raise ValueError(
                "Expected the training arguments to have gradient_checkpointing=False for a network of which no part "
                "offers gradient_checkpointing_enable, but got True. Use torch.utils.checkpoint in the network, or "
                "agm.AGM(..., max_rows=..., checkpoint=True)."
            )
        for part in parts:
            for name in _RECOMPUTING:
                if hasattr(part, f"{name}_enable"):
                    settings = dict(getattr(self.args, f"{name}_kwargs", None) or {})
                    own = {key: settings.pop(key) for key in ("every_n_layers", "offload") if key in settings}
                    getattr(part, f"{name}_enable")(**{f"{name}_kwargs": settings or None}, **own)
                    break


@contextmanager
def _set(target: Any, **values: Any) -> Iterator[None]:
    """Inside, attributes that `target` has are others."""
    before = {name: getattr(target, name) for name in values if hasattr(target, name)}
    try:
        for name in before:
            setattr(target, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def _logits(outputs: Any) -> Tensor:
    """The logits in what a model returns.

    Raises:
        ValueError: there are none to be seen.
    """
    named = _named(outputs)
    if not isinstance(named.get("logits"), Tensor):
        raise ValueError(
            f"Expected the model to return logits, or a ModelOutput or mapping with `logits`, but got "
            f"{type(outputs).__name__}{f' of {sorted(named)}' if named else ''}. Give the Trainer a compute_loss_func."
        )
    return cast(Tensor, named["logits"])


def _own_loss(outputs: Any) -> Tensor:
    """The loss in what a model with one returns.

    Raises:
        ValueError: there is none.
    """
    loss = outputs if isinstance(outputs, Tensor) and outputs.dim() == 0 else _named(outputs).get("loss")
    if not isinstance(loss, Tensor):
        raise ValueError(
            "Expected the network of a model with `loss` to return a ModelOutput, or a mapping with `logits`, in which "
            f"the loss has a place in eval mode too, but got {type(outputs).__name__}. Return a dict of them."
        )
    return loss


def _named(outputs: Any) -> dict[str, Any]:
    if isinstance(outputs, Tensor):
        return {"logits": outputs}
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, tuple) and not hasattr(outputs, "_asdict"):
        return {str(place): value for place, value in enumerate(outputs)}
    return dict(outputs._asdict() if hasattr(outputs, "_asdict") else vars(outputs))


def _parameters(model: nn.Module) -> list[str] | None:
    """Names of what the network takes, and `present`; None where it takes whatever comes."""
    network = model.module if isinstance(model, AGM) else model
    parameters = inspect.signature(network.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [*(parameter.name for parameter in parameters), "present"]


def _offering(module: nn.Module, methods: tuple[str, ...]) -> list[nn.Module]:
    """The outermost parts that have one of these methods."""
    if any(callable(getattr(module, method, None)) for method in methods):
        return [module]
    return [part for child in module.children() for part in _offering(child, methods)]
