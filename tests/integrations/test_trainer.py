"""The Trainer of Hugging Face trains on the loss that belongs to the model's score and labels, or refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

transformers = pytest.importorskip("transformers")

from agm.integrations.transformers import ModulatedTrainer  # noqa: E402

MODALITIES = ("left", "right")


class Net(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p, self.q, self.o = nn.Linear(4, 6), nn.Linear(2, 6), nn.Linear(6, outputs)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.o(torch.tanh(self.p(left) + self.q(right)))


def rows(count: int, labels: Callable[[int], Any], length: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    torch.manual_seed(1)
    return [
        {"left": torch.randn(*length, 4), "right": torch.randn(*length, 2), "labels": labels(row)}
        for row in range(count)
    ]


def stacked(given: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(row[name]) for row in given]) for name in given[0]}


def trainer(folder: Path, model: nn.Module, data: list[dict[str, Any]], **settings: Any) -> ModulatedTrainer:
    given = {name: settings.pop(name) for name in ("compute_loss_func", "data_collator") if name in settings}
    base = {"max_steps": 1, "per_device_train_batch_size": len(data), "learning_rate": 0.1, "logging_steps": 1}
    fixed = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "max_grad_norm": 0.0,
    }
    quiet = {"disable_tqdm": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(str(folder), **{**base, **fixed, **quiet, **settings})
    return ModulatedTrainer(model, arguments, train_dataset=data, eval_dataset=data, **given)


def losses(made: ModulatedTrainer) -> tuple[float, float]:
    """Of the first step and of an evaluation before it."""
    evaluated = made.evaluate()["eval_loss"]
    made.train()
    return next(row["loss"] for row in made.state.log_history if "loss" in row), evaluated


@pytest.mark.parametrize("length", [(), (9,), (3,), (3, 3), (2, 5)])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_class_indices_of_samples_and_of_tokens(tmp_path: Path, length: tuple[int, ...], ignore_index: int) -> None:
    data = rows(8, lambda row: torch.randint(0, 3, length), length)
    net, given = Net(), stacked(data)
    with torch.no_grad():
        logits = net(given["left"], given["right"]).flatten(0, -2)
        expected = F.cross_entropy(logits, given["labels"].flatten(), ignore_index=ignore_index).item()
    model = agm.AGM(net, MODALITIES, ignore_index=ignore_index)
    assert losses(trainer(tmp_path, model, data)) == pytest.approx((expected, expected), rel=1e-4)


def _known(logits: Tensor, labels: Tensor, cost: Callable[..., Tensor]) -> Tensor:
    costs = cost(logits, labels.nan_to_num(), reduction="none")
    known = ~labels.isnan()
    each = (costs * known).sum(-1) / known.sum(-1)
    return each.mean()


TASKS: dict[str, tuple[Callable[[int], Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "squared_error": (lambda row: torch.randn(3), F.mse_loss),
    "absolute_error": (lambda row: torch.randn(3), F.l1_loss),
    "binary_cross_entropy": (lambda row: (torch.rand(3) < 0.5).float(), F.binary_cross_entropy_with_logits),
    "soft_cross_entropy": (lambda row: torch.rand(3).softmax(0), F.cross_entropy),
    "ordinal": (
        lambda row: torch.tensor(row % 4),
        lambda logits, ranks: F.binary_cross_entropy_with_logits(logits, (ranks[:, None] > torch.arange(3)).float()),
    ),
}


@pytest.mark.parametrize("score", TASKS)
def test_other_tasks(tmp_path: Path, score: str) -> None:
    label, loss = TASKS[score]
    data = rows(8, label)
    net, given = Net(), stacked(data)
    with torch.no_grad():
        expected = loss(net(given["left"], given["right"]), given["labels"]).item()
    assert losses(trainer(tmp_path, agm.AGM(net, MODALITIES, score=score), data)) == pytest.approx(
        (expected, expected), rel=1e-4
    )


def test_labels_that_are_not_known(tmp_path: Path) -> None:
    data = rows(8, lambda row: torch.tensor([1.0, torch.nan if row % 3 else 0.0, 0.0]))
    net, given = Net(), stacked(data)
    with torch.no_grad():
        logits = net(given["left"], given["right"])
        expected = _known(logits, given["labels"], F.binary_cross_entropy_with_logits).item()
    model = agm.AGM(net, MODALITIES, score="binary_cross_entropy")
    assert losses(trainer(tmp_path, model, data)) == pytest.approx((expected, expected), rel=1e-4)


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_accumulated_batches_are_one_mean_over_all_their_labels(tmp_path: Path, ignore_index: int) -> None:
    """Batches with one, two and seven labels that count."""

    def label(row: int) -> Tensor:
        return torch.tensor([0, 1, 0, 1]).where(torch.arange(4) < (0 if row in (0, 2) else row), ignore_index)

    data = [row for row in rows(6, label, (4,)) if (row["labels"] != ignore_index).any()]
    data = data[:4]
    whole, parts = Net(), Net()
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(data)}
    trainer(tmp_path, agm.AGM(whole, MODALITIES, alpha=0.0, ignore_index=ignore_index), data).train()
    trainer(tmp_path, agm.AGM(parts, MODALITIES, alpha=0.0, ignore_index=ignore_index), data, **settings).train()
    torch.testing.assert_close(parts.state_dict(), whole.state_dict())


def test_smoothing(tmp_path: Path) -> None:
    data = rows(8, lambda row: row % 3)
    net, given = Net(), stacked(data)
    with torch.no_grad():
        logits = net(given["left"], given["right"])
        expected = [F.cross_entropy(logits, given["labels"], label_smoothing=amount).item() for amount in (0.3, 0.0)]
    made = trainer(tmp_path, agm.AGM(net, MODALITIES), data, label_smoothing_factor=0.3)
    assert losses(made) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="label_smoothing_factor=0"):
        trainer(tmp_path, agm.AGM(net, MODALITIES, score="ordinal"), data, label_smoothing_factor=0.3)


def test_a_loss_function_is_called(tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 5.0, 25.0])

    def weighted(outputs: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs, labels, weight)

    data = rows(8, lambda row: row % 3)
    net, given = Net(), stacked(data)
    with torch.no_grad():
        expected = F.cross_entropy(net(given["left"], given["right"]), given["labels"], weight).item()
    made = trainer(tmp_path, agm.AGM(net, MODALITIES), data, compute_loss_func=weighted)
    assert losses(made) == pytest.approx((expected, expected), rel=1e-4)


def test_a_score_that_is_a_function_needs_a_loss_function(tmp_path: Path) -> None:
    def cost(response: Tensor, target: Tensor) -> Tensor:
        return (response[:, 0] - target).abs()

    data = rows(4, lambda row: float(row))
    model = agm.AGM(Net(1), MODALITIES, score=cost)
    with pytest.raises(ValueError, match="`compute_loss_func`"):
        trainer(tmp_path, model, data)
    given: dict[str, Any] = {"compute_loss_func": lambda outputs, labels, **_: (outputs[:, 0] - labels).pow(2).mean()}
    assert trainer(tmp_path, model, data, **given).train().global_step == 1


def test_labels_of_another_shape_are_refused(tmp_path: Path) -> None:
    data = rows(4, lambda row: torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"`labels` to have shape \(4,\)"):
        trainer(tmp_path, agm.AGM(Net(), MODALITIES), data).evaluate()
    made = trainer(tmp_path, agm.AGM(Net(), MODALITIES), data)
    with pytest.raises(ValueError, match="`labels`"):
        made.compute_loss(made.model, {"left": torch.zeros(1, 4)})


def test_prediction_without_labels_and_with_a_last_batch_of_one(tmp_path: Path) -> None:
    data = [{"left": row["left"], "right": row["right"]} for row in rows(5, int)]
    net, given = Net(), stacked(data)
    made = trainer(tmp_path, agm.AGM(net, MODALITIES), rows(5, lambda row: 0), per_device_eval_batch_size=2)
    with torch.no_grad():
        expected = net(**given)
    for count in (5, 4, 1):
        found = made.predict(data[:count])
        assert found.label_ids is None
        torch.testing.assert_close(torch.from_numpy(found.predictions), expected[:count])
    labelled = made.predict(rows(5, lambda row: row % 3))
    torch.testing.assert_close(torch.from_numpy(labelled.predictions), expected)


class Wrapper(nn.Module):
    """Forwards to an AGM and returns a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.model = agm.AGM(Net(), MODALITIES)

    def forward(self, left: Tensor, right: Tensor, target: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.model(left=left, right=right, target=target), "sums": left.sum(1)}


def test_a_module_that_returns_a_mapping(tmp_path: Path) -> None:
    data = rows(5, lambda row: row % 3)
    model, given = Wrapper(), stacked(data)
    with torch.no_grad():
        logits = model.model.module(given["left"], given["right"])
    made = trainer(tmp_path, model, data, per_device_eval_batch_size=2)
    found = made.predict(data)
    torch.testing.assert_close(torch.from_numpy(found.predictions[0]), logits)
    torch.testing.assert_close(torch.from_numpy(found.predictions[1]), given["left"].sum(1))
    expected = F.cross_entropy(logits, given["labels"]).item()
    assert losses(made) == pytest.approx((expected, expected), rel=1e-4)
    assert model.model.modulator.state.step == 1


def test_columns_that_the_network_does_not_take_are_removed(tmp_path: Path) -> None:
    data = [{**row, "identifier": f"sample {place}"} for place, row in enumerate(rows(4, lambda row: row % 3))]
    model = agm.AGM(Net(), MODALITIES)
    assert trainer(tmp_path, model, data).train().global_step == 1
    with pytest.raises(TypeError, match="identifier"):
        trainer(
            tmp_path,
            model,
            data,
            remove_unused_columns=False,
            data_collator=lambda given: {
                **stacked([{k: v for k, v in row.items() if k != "identifier"} for row in given]),
                "identifier": 1,
            },
        ).train()


class TwoTowers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        self.bert = transformers.BertModel(transformers.BertConfig(vocab_size=30, **small))
        self.vit = transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **small))
        self.head = nn.Linear(32, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        words = self.bert(inputs_embeds=left).last_hidden_state[:, 0]
        return self.head(torch.cat([words, self.vit(pixel_values=right).last_hidden_state[:, 0]], 1))


def test_recomputed_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [{"left": torch.randn(5, 16), "right": torch.randn(3, 8, 8), "labels": row % 3} for row in range(4)]
    model = agm.AGM(TwoTowers(), MODALITIES)
    made = trainer(tmp_path, model, data, gradient_checkpointing=True)
    assert made.train().global_step == 1
    assert model.module.bert.is_gradient_checkpointing
    assert model.module.vit.is_gradient_checkpointing
    assert made.args.gradient_checkpointing
    with pytest.raises(ValueError, match="gradient_checkpointing=False"):
        trainer(tmp_path, agm.AGM(Net(), MODALITIES), data, gradient_checkpointing=True)
