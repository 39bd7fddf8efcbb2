"""One run while it trains: its epochs and steps, and its checkpoints."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from agm.data import MultimodalData
from agm.strategies import Draw
from agm.training.answers import FURTHER, Answers
from agm.training.checkpoint import fitting, load_checkpoint, random_state, restore_random_state, save_checkpoint
from agm.training.clipping import clip_gradients_, head_weights
from agm.training.config import Config, differences
from agm.training.described import described
from agm.training.doubts import doubts
from agm.training.errors import DivergedError, UserError
from agm.training.evaluation import evaluate
from agm.training.methods import Method, new_optimizer
from agm.training.observer import Observer
from agm.training.partial_epoch import PartialEpoch
from agm.training.result import Final, Result
from agm.training.run_folder import STATISTICS, Row, RunFolder, Table, metric_columns, read_table, step_columns
from agm.training.samples import Passes, batches, cut, fingerprint, hold_out, on_device
from agm.training.schedule import best_epoch, ended_early, learning_rate

__all__ = ["Trainer"]


class Trainer:
    """One run: what changes while it trains, and how it is written and read."""

    def __init__(
        self,
        config: Config,
        run: RunFolder,
        data: MultimodalData,
        method: Method,
        observer: Observer,
        final: Final,
        checkpoint_every: int | None = None,
    ) -> None:
        device = torch.device(config.device)
        self.config, self.run, self.observer, self.final = config, run, observer, final
        self.fingerprint = fingerprint(data)
        self.doubts = doubts(data, config.batch_size)
        data = hold_out(data, config)
        self.description = described(config, data.select(method.modalities), method.network)
        self.train_split = on_device(data.train, method.modalities, device)
        self.test_split = on_device(data.test, method.modalities, device)
        self.watched_name = "test" if data.validation is None else "validation"
        self.watched_split = (
            self.test_split if data.validation is None else on_device(data.validation, method.modalities, device)
        )
        self.answers = Answers(self.train_split.target)
        self.method, self.strategy = method, method.strategy
        method.strategy.to(device)
        self.optimizer = new_optimizer(config, method.strategy.parameters())
        self.strategy.optimizer = self.optimizer
        self.head = head_weights(method.network)
        self.epoch = 0  # finished epochs
        self.step = 0  # steps taken in them
        self.checkpoint_every = checkpoint_every
        self.unfinished: dict[str, Any] | None = None  # a checkpoint from the midst of this epoch
        self.history: list[Row] = []
        self.best: dict[str, Any] | None = None  # weights of the best epoch so far, where they are chosen

    def fit(self) -> Result:
        """Train the epochs that are left."""
        # The checkpoint's history rules: a row that it does not know belongs to an epoch that is trained again.
        modalities = self.method.modalities
        columns = step_columns(modalities)
        # Of a damaged table, what can be read of it: nothing hangs on these rows.
        kept = read_table(self.run.steps, lambda row: row["step"] <= self.step, columns) if self.step else []
        further = FURTHER[self.answers.task]
        metrics = Table(self.run.metrics, metric_columns(modalities, further), self.history)
        steps = Table(self.run.steps, columns, kept)
        try:
            per_epoch = len(batches(len(self.train_split), self.config.batch_size, 0, 0))
            self.observer.started(self.run.path, self.config, self.epoch, per_epoch)
            if not self.epoch:
                self.observer.described(self.description)
                for doubt in self.doubts:
                    self.observer.doubted(doubt)
            while not self._is_over():
                row = self._run_epoch(steps)
                metrics.append([row])
                self.history.append(row)
                self.epoch += 1
                if self.config.choose == "best" and best_epoch(self.history) == len(self.history) - 1:
                    self.best = copy.deepcopy(dict(self.method.model.state_dict()))
                self._save_checkpoint()
                self.observer.epoch_finished(row)
        finally:
            metrics.close()
            steps.close()
        result = self.result()
        means = {name: value for name, value in self.history[-1].items() if name.startswith("coefficient_")}
        chosen = {} if self.best is None else {"chosen_epoch": 1 + best_epoch(self.history)}
        self.run.write_result(
            {"split": self.final, "epochs": self.epoch, "extra_epochs": result.extra_epochs, **chosen}
            | {"modalities": list(modalities), "samples": result.evaluation.samples}
            | {**result.evaluation.columns(), **means}
        )
        return result

    def _is_over(self) -> bool:
        done = self.epoch >= self.config.epochs or self.strategy.finished
        return done or (self.epoch >= self.strategy.least_epochs and ended_early(self.config, self.history))

    def result(self) -> Result:
        """The figures of the weights that setting `choose` means, which the network then has."""
        if self.best is not None:
            with fitting(self.run.checkpoint):
                self.method.model.load_state_dict(self.best)
        return Result(
            folder=self.run.path,
            config=self.config,
            modalities=self.method.modalities,
            evaluation=evaluate(
                self.method.network,
                self.test_split if self.final == "test" else self.watched_split,
                self.method.modalities,
            ),
            history=self.history,
            network=self.method.network,
            data=self.fingerprint,
            extra_epochs=self.strategy.extra_epochs,
        )

    def _run_epoch(self, steps: Table) -> Row:
        began, epoch = time.perf_counter(), self.epoch
        rate = learning_rate(self.config, epoch, self.history)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        taken = self._begin_taking()
        self.strategy.train()
        splits = self._splits(epoch)
        self.strategy.begin_epoch(epoch, **splits)
        draw, order = self._draw(epoch)
        self._go_on(taken)

        # What a step leaves stays on the device until the epoch's end, so that no step waits for it.
        stepping, before = time.perf_counter(), len(taken)
        for places in order[before:]:
            loss, hit = self._take_step(draw.take(places))
            taken.losses.append(loss)
            taken.hits.append(hit)
            taken.statistics.append(self.strategy.statistics())
            self._save_inside(taken, len(order))
            self.observer.stepped()

        step_losses = torch.stack(taken.losses).double().cpu()
        stepped = time.perf_counter()
        rows = self._step_rows(step_losses.tolist(), taken.statistics)
        steps.append(rows)
        self._require_finite(step_losses)
        self.step += len(order)
        ending = time.perf_counter()
        self.strategy.end_epoch(**splits)
        # Whatever the strategy did between the epochs is its own cost, and no step's.
        between = stepping - began + time.perf_counter() - ending
        evaluation = evaluate(self.method.network, self.watched_split, self.method.modalities)
        sizes = torch.tensor([len(places) for places in order], dtype=torch.float64)
        return {
            "epoch": epoch + 1,
            "step": self.step,
            "split": self.watched_name,
            "lr": rate,
            "train_loss": float(step_losses @ sizes / sizes.sum()),
            "train_accuracy": torch.stack(taken.hits).sum().item() / len(draw.index),
            **evaluation.columns(),
            **self._epoch_means(rows),
            "step_seconds": (stepped - stepping) / (len(order) - before),
            "between_seconds": between,
            "seconds": time.perf_counter() - began,
        }

    def _splits(self, epoch: int) -> dict[str, Passes]:
        """What a strategy may look at between epochs: never the test split."""
        size, seed = self.config.batch_size, self.config.seed
        numbered = "index" in self.strategy.needs
        splits = {"train": Passes(self.train_split, size, (seed, epoch), numbered)}
        if self.watched_name == "validation":
            splits["validation"] = Passes(self.watched_split, max(size, 256))
        return splits

    def _draw(self, epoch: int) -> tuple[Draw, tuple[Tensor, ...]]:
        """The samples of an epoch on the device, and which of them each step takes."""
        device, size = self.train_split.target.device, self.config.batch_size
        order = torch.cat(batches(len(self.train_split), size, self.config.seed, epoch))
        draw = self.strategy.draw(order.to(device))  # one transfer an epoch
        stretches = torch.arange(len(draw.index), device=device).tensor_split(draw.cuts)
        return draw, tuple(places for stretch in stretches for places in cut(stretch, size))

    def _begin_taking(self) -> PartialEpoch:
        """The steps of this epoch so far; generators and weights are as before it, also in a resumed run."""
        if self.unfinished is None:
            weights = {} if self.checkpoint_every is None else self.method.model.state_dict()
            return PartialEpoch(random_state(), copy.deepcopy(dict(weights)))
        with fitting(self.run.checkpoint):
            taken = PartialEpoch.read(self.unfinished["unfinished"], self.train_split.target.device)
            # What a strategy measures as it begins an epoch, it measures before the first step.
            self.method.model.load_state_dict(taken.model)
            restore_random_state(taken.random)
        return taken

    def _go_on(self, taken: PartialEpoch) -> None:
        """Behind the steps that were taken before."""
        if self.unfinished is not None:
            self._load_state(self.unfinished)
            self.unfinished = None
            for _ in range(len(taken)):
                self.observer.stepped()

    def _save_inside(self, taken: PartialEpoch, steps: int) -> None:
        """A checkpoint if one is due; behind the last step comes that of the epoch."""
        every, step = self.checkpoint_every, self.step + len(taken)
        if every is not None and step % every == 0 and len(taken) < steps:
            self._require_finite(torch.stack(taken.losses).double().cpu())
            self._save_checkpoint(taken)

    def _take_step(self, samples: Draw) -> tuple[Tensor, Tensor]:
        """All updates of one batch; returns the loss and how much is right before the last one, on the device."""
        index = samples.index
        target = self.train_split.target[index]
        inputs = {name: values[index] for name, values in self.train_split.inputs.items()}
        present = samples.present
        if self.train_split.present is not None and self.strategy.lacking == "told":
            present = self.train_split.present[index]
        for outcome in self.strategy.steps(inputs, target, index=index, present=present):
            if self.config.clip_norm is not None:
                clip_gradients_(
                    self.strategy.parameters(), self.config.clip_norm, self.head, above=self.config.clip_above
                )
            self.optimizer.step()
            loss, hit = outcome.loss, self.answers.right(outcome.logits.unsqueeze(0), target).squeeze(0)
        return loss, hit

    def _step_rows(self, losses: list[float], statistics: list[dict[str, Tensor]]) -> list[Row]:
        rows = [
            {"step": self.step + 1 + number, "epoch": self.epoch + 1, "loss": loss}
            for number, loss in enumerate(losses)
        ]
        for kind in STATISTICS:
            known = [found[kind] for found in statistics if kind in found]
            if not known:  # all of an epoch, or none
                continue
            values = torch.stack(known).double().cpu()  # (steps, M)
            for row, step_values in zip(rows, values.tolist(), strict=True):
                row |= {f"{kind}_{name}": v for name, v in zip(self.method.modalities, step_values, strict=True)}
        return rows

    def _epoch_means(self, rows: list[Row]) -> dict[str, float]:
        names = [f"{kind}_{name}" for kind in ("score", "ratio", "coefficient") for name in self.method.modalities]
        # A step that AGM skipped has scores that are not finite; it has no part in the mean.
        columns = {name: [row[name] for row in rows if math.isfinite(row.get(name, math.nan))] for name in names}
        return {name: math.fsum(values) / len(values) for name, values in columns.items() if values}

    def _require_finite(self, losses: Tensor) -> None:
        wrong = (~losses.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            what = f"the loss of step {self.step + 1 + first} is {losses[first].item()}"
        elif not all(bool(value.isfinite().all()) for value in self.method.network.state_dict().values()):
            what = "a weight is not finite"
        else:
            return
        saved = "The last checkpoint, from before, is unharmed. " if self.run.checkpoint.exists() else ""
        raise DivergedError(
            f"Training diverged in epoch {self.epoch + 1}: {what}. {saved}"
            "Train again into another folder with a lower --lr, or with --clip-norm 1."
        )

    def _save_checkpoint(self, taken: PartialEpoch | None = None) -> None:
        """After an epoch, or inside one whose steps so far are `taken`."""
        save_checkpoint(
            self.run.checkpoint,
            {
                "config": asdict(self.config),
                "data": self.fingerprint,
                "model": self.method.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "epoch": self.epoch,
                "step": self.step,
                "random": random_state(),
                "history": self.history,
                "best": self.best,
                "unfinished": None if taken is None else taken.contents(),
            },
        )

    def restore(self) -> None:
        """Go back to the last checkpoint; to the beginning if there is none."""
        if self.run.checkpoint.exists():
            self.load_checkpoint()

    def load_checkpoint(self) -> None:
        contents = load_checkpoint(self.run.checkpoint)
        with fitting(self.run.checkpoint):
            recorded = Config(**contents["config"])
        if changed := differences(self.config, replace(recorded, dataset=self.config.dataset)):
            raise UserError(
                f"Expected {str(self.run.config)!r} to be as when the run began, but got other settings than in "
                f"its checkpoint: {', '.join(changed)}. Put them back, or train into another folder with --out."
            )
        if contents.get("data") != self.fingerprint:
            raise UserError(
                f"Expected the data {self.config.dataset!r} to be those that the run began with, "
                "but their contents changed. Put them back, or train into another folder with --out."
            )
        self._load_state(contents)
        with fitting(self.run.checkpoint):
            self.epoch, self.step, self.history = contents["epoch"], contents["step"], contents["history"]
            _check_progress(self.epoch, self.step, self.history, self.config.epochs)
            self.unfinished = None if contents["unfinished"] is None else contents
            self.best = contents["best"]

    def _load_state(self, contents: dict[str, Any]) -> None:
        with fitting(self.run.checkpoint):
            self.method.model.load_state_dict(contents["model"])
            self.optimizer.load_state_dict(contents["optimizer"])
            restore_random_state(contents["random"])


def _check_progress(epoch: object, step: object, history: object, epochs: int) -> None:
    """What a checkpoint says of the epochs that are done: a row each.

    Raises:
        ValueError, KeyError, TypeError: it cannot be.
    """
    if type(epoch) is not int or type(step) is not int or not isinstance(history, list):
        raise TypeError("numbers of epochs and steps, and rows")
    if not 0 <= epoch <= epochs or step < 0 or len(history) != epoch:
        raise ValueError(f"{len(history)} rows of {epoch} epochs of {epochs}")
    for number, row in enumerate(history, 1):
        if row["epoch"] != number or not 0 <= row["step"] <= step:
            raise ValueError(f"row {number} is of epoch {row['epoch']} and step {row['step']}")
        for name, value in row.items():
            if not isinstance(name, str) or not isinstance(value, (int, float, str, type(None))):
                raise TypeError(f"row {number}")
        for name in ("lr", "train_loss", "train_accuracy", "loss", "accuracy", "seconds"):
            row[name] + 0.0
