"""Lightning: a callback that tells AGM the epoch and logs what it does."""

from typing import Any

from agm.integrations.logs import modulators, scalars

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise ImportError(
        "agm.integrations.lightning needs Lightning, which is not installed: pip install 'agm-torch[lightning]'"
    ) from error

__all__ = ["ModulationCallback"]


class ModulationCallback(pl.Callback):
    """For a LightningModule that holds an `agm.AGM`: its window of epochs follows the trainer, and it is logged.

    The module itself stays as it is, with automatic optimisation:

        def training_step(self, batch, index):
            return F.cross_entropy(self.model(**batch["inputs"], target=batch["target"]), batch["target"])

    The running scores are in the module's state dict, so a checkpoint of the trainer continues them. The figures of
    `agm.integrations.logs.scalars` go to every logger of the trainer (CSV, TensorBoard, W&B ...), under its global
    step. Reading them synchronises with the device, in the logged steps alone.

    Args:
        every_n_steps: optimizer steps between two records; None: as the trainer's `log_every_n_steps`.
        prefix: of the names.

    Raises:
        ValueError: `every_n_steps` is not a positive integer; at the start of training, a module without AGM.
    """

    def __init__(self, every_n_steps: int | None = None, prefix: str = "agm/") -> None:
        if every_n_steps is not None and (not isinstance(every_n_steps, int) or every_n_steps < 1):
            raise ValueError(
                f"Expected argument `every_n_steps` to be a positive integer or None, but got {every_n_steps!r}."
            )
        self.every_n_steps = every_n_steps
        self.prefix = prefix
        self._logged = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        modulators(pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for modulator in modulators(pl_module):
            modulator.epoch = trainer.current_epoch

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_steps or int(getattr(trainer, "log_every_n_steps", 0) or 50)
        step = trainer.global_step
        # Under gradient accumulation several batches share a step.
        if step % every or step == self._logged or not step:
            return
        self._logged = step
        for logger in trainer.loggers if trainer.is_global_zero else []:
            logger.log_metrics(scalars(pl_module, self.prefix), step=step)
