"""AGM in the loops of Lightning, Accelerate and Hugging Face, beside the loop by hand."""

import csv
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import agm
from agm.integrations.logs import scalars

from .networks import MODALITIES, batch, engine

BATCHES = 4


class Batches(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 12 * BATCHES

    def __getitem__(self, index: int) -> dict[str, Any]:
        inputs, target = batch(index // 12)
        return {**{name: x[index % 12] for name, x in inputs.items()}, "labels": target[index % 12]}


def by_hand(model: agm.AGM, epochs: int = 2) -> agm.AGM:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        model.epoch = epoch
        for given in DataLoader(Batches(), batch_size=12):
            target = given.pop("labels")
            optimizer.zero_grad()
            F.cross_entropy(model(**given, target=target), target).backward()
            optimizer.step()
    return model


def assert_same(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict())


def test_scalars_are_the_report_and_the_counts() -> None:
    model = by_hand(engine(), 1)
    values = scalars(nn.ModuleDict({"wrapped": model}))
    report = model.modulator.report()
    assert values["agm/audio/coefficient"] == report["audio"]["coefficient"]
    assert {name for name in values if "visual" in name} == {f"agm/visual/{kind}" for kind in report["visual"]}
    assert (values["agm/step"], values["agm/skipped"]) == (BATCHES, 0)
    two = scalars(nn.ModuleList([model, engine()]), prefix="")
    assert (two["0/step"], two["1/step"]) == (BATCHES, 0)
    with pytest.raises(ValueError, match=r"hold an agm\.AGM"):
        scalars(nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["lightning", "transformers", "torchmetrics"])
def test_a_framework_that_is_missing_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    monkeypatch.delitem(sys.modules, f"agm.integrations.{name}", raising=False)
    monkeypatch.setitem(sys.modules, {"lightning": "lightning.pytorch"}.get(name, name), None)
    with pytest.raises(ImportError, match=rf"pip install 'agm-torch\[{name}\]'"):
        importlib.import_module(f"agm.integrations.{name}")


class TestLightning:
    @pytest.fixture
    def module(self) -> Any:
        pl = pytest.importorskip("lightning.pytorch")

        class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self, model: agm.AGM) -> None:
                super().__init__()
                self.model = model

            def training_step(self, given: dict[str, Tensor], index: int) -> Tensor:
                target = given["labels"]
                logits = self.model(**{name: given[name] for name in MODALITIES}, target=target)
                return F.cross_entropy(logits.float(), target)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.1)

        return Module

    def trainer(self, folder: Path, epochs: int = 2, **settings: Any) -> Any:
        import lightning.pytorch as pl

        quiet = {"enable_progress_bar": False, "enable_model_summary": False, "barebones": False}
        return pl.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, **quiet, **settings)

    def test_trains_and_logs(self, module: Any, tmp_path: Path) -> None:
        from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

        from agm.integrations.lightning import ModulationCallback

        loggers: list[Any] = [CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)]
        try:
            import tensorboard  # noqa: F401

            loggers.append(TensorBoardLogger(tmp_path / "board"))
        except ImportError:
            pass
        model = module(engine(start=1))
        trainer = self.trainer(tmp_path, callbacks=[ModulationCallback(every_n_steps=2)], logger=loggers)
        trainer.fit(model, DataLoader(Batches(), batch_size=12))
        assert_same(model.model, by_hand(engine(start=1)))
        assert model.model.modulator.state.step == BATCHES  # the first epoch is outside the window
        with open(next((tmp_path / "csv").rglob("metrics.csv"))) as file:
            rows = list(csv.DictReader(file))
        assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
        assert float(rows[-1]["agm/audio/coefficient"]) == scalars(model)["agm/audio/coefficient"]
        if len(loggers) > 1:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            events = EventAccumulator(loggers[1].log_dir).Reload().Scalars("agm/visual/score")
            assert [event.step for event in events] == [2, 4, 6, 8]

    def test_logs_to_weights_and_biases(self, module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a network: what the run has in its summary is what was logged last."""
        wandb = pytest.importorskip("wandb", reason="Weights & Biases is not installed")
        from lightning.pytorch.loggers import WandbLogger

        from agm.integrations.lightning import ModulationCallback

        monkeypatch.setenv("WANDB_SILENT", "true")
        model, logger = module(engine()), WandbLogger(save_dir=tmp_path, offline=True)
        trainer = self.trainer(tmp_path, epochs=1, callbacks=[ModulationCallback(every_n_steps=1)], logger=logger)
        trainer.fit(model, DataLoader(Batches(), batch_size=12))
        logged = dict(logger.experiment.summary)
        wandb.finish()
        assert scalars(model).items() <= logged.items()

    def test_resumes(self, module: Any, tmp_path: Path) -> None:
        from agm.integrations.lightning import ModulationCallback

        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "callbacks": [ModulationCallback()]}
        first = module(engine())
        trainer = self.trainer(tmp_path, epochs=1, **settings)
        trainer.fit(first, DataLoader(Batches(), batch_size=12))
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        second = module(engine(seed=5))
        settings["callbacks"] = [ModulationCallback()]
        loader = DataLoader(Batches(), batch_size=12)
        self.trainer(tmp_path, **settings).fit(second, loader, ckpt_path=tmp_path / "a.ckpt")
        assert_same(second.model, by_hand(engine()))

    def test_mixed_precision_with_our_scaler(self, module: Any, tmp_path: Path) -> None:
        from lightning.pytorch.plugins import MixedPrecision

        from agm.integrations.amp import GradScaler

        model = module(engine())
        scaler = GradScaler(model, init_scale=2.0**60, growth_interval=100, backoff_factor=2.0**-50)
        plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "plugins": [plugin]}
        self.trainer(tmp_path, epochs=1, **settings).fit(model, DataLoader(Batches(), batch_size=12))
        state = model.model.modulator.state
        assert (state.step.item(), state.skipped.item()) == (BATCHES - 1, 1)

    def test_settings(self, module: Any) -> None:
        from agm.integrations.lightning import ModulationCallback

        with pytest.raises(ValueError, match="every_n_steps"):
            ModulationCallback(0)


class TestAccelerate:
    def test_trains_as_by_hand_and_logs(self, tmp_path: Path) -> None:
        accelerate = pytest.importorskip("accelerate")
        from accelerate.tracking import GeneralTracker

        class Recorder(GeneralTracker):  # type: ignore[misc]
            name, requires_logging_directory, main_process_only = "recorder", False, True
            tracker: ClassVar[list[Any]] = []

            def store_init_configuration(self, values: Any) -> None:
                pass

            def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
                self.tracker.append((step, values))

        accelerator = accelerate.Accelerator(cpu=True, log_with=Recorder())
        accelerator.init_trackers("run")
        model = engine()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(Batches(), batch_size=12))
        for epoch in range(2):
            accelerator.unwrap_model(wrapped).epoch = epoch
            for given in loader:
                target = given.pop("labels")
                optimizer.zero_grad()
                accelerator.backward(F.cross_entropy(wrapped(**given, target=target), target))
                optimizer.step()
            accelerator.log(scalars(wrapped), step=epoch)
        assert_same(accelerator.unwrap_model(wrapped), by_hand(engine()))
        assert [step for step, _ in Recorder.tracker] == [0, 1]
        assert Recorder.tracker[-1][1]["agm/audio/score"] == scalars(model)["agm/audio/score"]

    def test_the_optimizer_of_accelerate_with_our_scaler(self) -> None:
        optimizers = pytest.importorskip("accelerate.optimizer")
        accelerate = pytest.importorskip("accelerate")
        from agm.integrations.amp import GradScaler

        accelerate.Accelerator(cpu=True)
        model = engine()
        scaler = GradScaler(model, init_scale=2.0**60, backoff_factor=2.0**-50)
        plain = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = optimizers.AcceleratedOptimizer(plain, device_placement=False, scaler=scaler)
        skipped = []
        for seed in range(2):
            inputs, target = batch(seed)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = F.cross_entropy(model(**inputs, target=target), target)
            scaler.scale(loss).backward()
            optimizer.step()
            skipped.append(optimizer.step_was_skipped)
        assert skipped == [True, False]
        state = model.modulator.state
        assert (state.step.item(), state.skipped.item()) == (1, 1)


class TestTransformers:
    def arguments(self, folder: Path, **settings: Any) -> Any:
        from transformers import TrainingArguments

        base = {"per_device_train_batch_size": 12, "num_train_epochs": 2, "learning_rate": 0.1, "max_grad_norm": 0.0}
        fixed = {"optim": "sgd", "lr_scheduler_type": "constant", "use_cpu": True, "report_to": "none"}
        quiet = {"disable_tqdm": True, "remove_unused_columns": False, "save_strategy": "no", "logging_steps": 2}
        return TrainingArguments(output_dir=str(folder), **{**base, **fixed, **quiet, **settings})

    def test_trains_as_by_hand_and_logs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("transformers")
        from agm.integrations.transformers import ModulatedTrainer

        class InOrder(ModulatedTrainer):
            def _get_train_sampler(self, *_: Any) -> Any:
                return torch.utils.data.SequentialSampler(Batches())

        def make(seed: int, **settings: Any) -> Any:
            model = engine(seed=seed, start=1)
            return InOrder(model, self.arguments(tmp_path, **settings), train_dataset=Batches(), eval_dataset=Batches())

        monkeypatch.setattr(ModulatedTrainer, "_get_train_sampler", InOrder._get_train_sampler)
        trainer = make(0, save_strategy="steps", save_steps=6)
        trainer.train()
        expected = by_hand(engine(start=1))
        assert_same(trainer.model, expected)
        logged = [row for row in trainer.state.log_history if "agm/audio/score" in row]
        assert [row["step"] for row in logged] == [2, 4, 6, 8]
        assert logged[-1]["agm/audio/score"] == scalars(expected)["agm/audio/score"]
        figures = trainer.evaluate()
        expected.eval()
        with torch.no_grad():
            given = next(iter(DataLoader(Batches(), batch_size=48)))
            target = given.pop("labels")
            assert figures["eval_loss"] == pytest.approx(F.cross_entropy(expected(**given), target).item(), rel=1e-4)

        again = make(3)
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert_same(again.model, trainer.model)

    def test_two_encoders_from_their_configurations(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        from agm.integrations.transformers import ModulatedTrainer

        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}

        class TextAndImage(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bert = transformers.BertModel(transformers.BertConfig(vocab_size=30, **small))
                self.vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **small))
                self.head = nn.Linear(32, 3)

            def forward(self, text: dict[str, Tensor], image: Tensor) -> Tensor:
                words = self.bert(**text).last_hidden_state[:, 0]
                patches = self.vit(pixel_values=image).last_hidden_state[:, 0]
                return self.head(torch.cat([words, patches], 1))

        def sample(index: int) -> dict[str, Any]:
            random = torch.Generator().manual_seed(index)
            ids = torch.randint(1, 30, (5,), generator=random)
            mask = (torch.arange(5) < 3 + index % 3).long()
            image = torch.randn(3, 8, 8, generator=random)
            return {"ids": ids, "mask": mask, "image": image, "label": index % 3}

        def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
            stacked = {name: torch.stack([s[name] for s in samples]) for name in ("ids", "mask", "image")}
            text = {"input_ids": stacked["ids"], "attention_mask": stacked["mask"]}
            labels = torch.tensor([s["label"] for s in samples])
            return {"text": text, "image": stacked["image"], "labels": labels}

        torch.manual_seed(0)
        model = agm.AGM(
            TextAndImage(),
            ("text", "image"),
            alpha=1.5,
            absent={"text": {"input_ids": 0, "attention_mask": None}},  # pad ids, where the sentence was
            encoders={"text": "bert", "image": "vit"},
        )
        given = collate([sample(index) for index in range(6)])
        target = given.pop("labels")
        result = agm.verify(model, given, target)
        assert result.ok, result
        before = {name: p.clone() for name, p in model.named_parameters()}
        arguments = self.arguments(tmp_path, per_device_train_batch_size=6, learning_rate=0.01)
        data: Any = [sample(index) for index in range(18)]
        trainer = ModulatedTrainer(model, arguments, train_dataset=data, data_collator=collate)
        assert trainer.train().global_step == model.modulator.state.step == 6
        assert not torch.equal(
            before["module.bert.embeddings.word_embeddings.weight"], model.module.bert.embeddings.word_embeddings.weight
        )


def test_metrics_of_an_epoch() -> None:
    pytest.importorskip("torchmetrics")
    from agm.integrations.torchmetrics import ModalityMetrics

    model = engine()
    metrics = ModalityMetrics(MODALITIES)
    state = model.modulator.state
    rows = []
    for seed, size in enumerate((12, 9, 5)):
        inputs, target = batch(seed, size)
        model(**inputs, target=target)
        metrics.update(model.modulator)
        rows.append(
            (state.scores.tolist(), state.coefficients.tolist(), state.mono_correct.tolist(), int(state.joint_correct))
        )
    found = metrics.compute()
    for bit, name in enumerate(MODALITIES):
        assert found[f"{name}/score"].item() == pytest.approx(sum(row[0][bit] for row in rows) / 3)
        assert found[f"{name}/coefficient"].item() == pytest.approx(sum(row[1][bit] for row in rows) / 3)
        assert found[f"{name}/accuracy"].item() == sum(row[2][bit] for row in rows) / 26
    assert found["joint/accuracy"].item() == sum(row[3] for row in rows) / 26
    metrics.reset()
    metrics.update(model.modulator)
    assert metrics.compute()["audio/score"] == state.scores[0]
    with pytest.raises(ValueError, match="of the modalities"):
        metrics.update(agm.Modulator(("a", "b")))
