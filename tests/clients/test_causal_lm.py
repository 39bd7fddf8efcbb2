"""Causal language models of Hugging Face whose steps end in their loss, against the logits made whole."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils._python_dispatch import TorchDispatchMode

import agm
from agm.ops import reference

transformers = pytest.importorskip("transformers")

from agm.integrations.transformers import ModulatedTrainer  # noqa: E402

BATCH, LENGTH, IMAGE = 3, 8, 119
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SMALL, **SPECIAL, "vocab_size": 120, "max_position_embeddings": 600, "num_key_value_heads": 2}
MODALITIES = ("pixel_values", "input_ids")
ABSENT = {"input_ids": lambda ids: torch.where(ids == IMAGE, ids, 0)}  # image tokens stay
TOWER = {"pixel_values": "model.vision_tower"}


def llava(**text: Any) -> nn.Module:
    """LLaVA, whose image tokens stand among the words."""
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=16),
        text_config=transformers.LlamaConfig(**{**TEXT, **text}),
        image_token_index=IMAGE,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    return transformers.LlavaForConditionalGeneration(config).double()


class Prompting(nn.Module):
    """A Llama that is given four tokens of an image before its words."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(24, 128)
        self.llm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))
        self.double()

    def forward(self, image: Tensor, input_ids: Tensor) -> Any:
        seen = self.project(image).unflatten(1, (4, 32))
        words = self.llm.get_input_embeddings()(input_ids)
        return self.llm(inputs_embeds=torch.cat([seen, words], 1), use_cache=False)


def batch(length: int = LENGTH, seed: int = 1) -> dict[str, Tensor]:
    """Images, and four tokens of each before its words; the first words are a question that does not count."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(3, IMAGE, (BATCH, length), generator=generator)
    ids = torch.cat([torch.full((BATCH, 4), IMAGE), words], 1)
    labels = ids.clone()
    labels[:, : 4 + 2] = -100
    images = torch.randn(BATCH, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def shifted(labels: Tensor) -> Tensor:
    return F.pad(labels, (0, 1), value=-100)[:, 1:]


def ending(network: nn.Module, **settings: Any) -> agm.AGM:
    given = {"absent": ABSENT, "alpha": 1.5, "head": "lm_head", "loss": "causal_lm", "target": "labels"}
    return agm.AGM(network, MODALITIES, **{**given, **settings})


def assert_alike(found: agm.AGM, expected: agm.AGM, given: dict[str, Tensor], **call: Any) -> None:
    """Loss, all gradients and the state of two steps, on parameters that change."""
    inputs = {name: value for name, value in given.items() if name != "labels"}
    target = shifted(given["labels"])
    for _ in range(2):
        loss = found(**given, **call).loss
        logits = expected(**inputs, **call, target=target).logits
        other = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
        for model, one in ((found, loss), (expected, other)):
            model.zero_grad()
            one.backward()
        for (name, one), another in zip(found.named_parameters(), expected.parameters(), strict=True):
            assert (one.grad is None) == (another.grad is None)
            if one.grad is not None:
                assert (one.grad - another.grad).norm() <= 1e-10 * another.grad.norm(), name
        state, wanted = found.modulator.state, expected.modulator.state
        torch.testing.assert_close(state.values, wanted.values, rtol=1e-10, atol=1e-12)
        assert torch.equal(state.counts, wanted.counts)
        for model in (found, expected):
            SGD(model.parameters(), 0.3).step()
    assert (state.coefficients - 1).abs().min() > 1e-4


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, {}),
        ({}, {"tie_word_embeddings": True}),
        ({"encoders": TOWER}, {}),
        ({"encoders": TOWER, "masked": "shared"}, {}),
        ({"max_rows": 4, "checkpoint": True}, {}),
    ],
)
def test_llava(settings: dict[str, Any], text: dict[str, Any]) -> None:
    network = llava(**text)
    if text.get("tie_word_embeddings"):
        assert network.lm_head.weight is network.get_input_embeddings().weight
    found = ending(network, **settings)
    expected = agm.AGM(copy.deepcopy(network), MODALITIES, absent=ABSENT, alpha=1.5, **settings)
    assert_alike(found, expected, batch(), use_cache=False)


def test_a_llama_with_tokens_of_an_image() -> None:
    given = {"image": torch.randn(BATCH, 24, dtype=torch.float64), "input_ids": batch()["input_ids"][:, 4:]}
    labels = F.pad(given["input_ids"], (4, 0), value=-100)
    network, names = Prompting(), ("image", "input_ids")
    found = agm.AGM(network, names, alpha=1.5, head="llm.lm_head", loss="causal_lm", target="labels")
    expected = agm.AGM(copy.deepcopy(network), names, alpha=1.5)
    assert_alike(found, expected, {**given, "labels": labels})


def test_the_loss_is_the_network_s_own_in_every_mode() -> None:
    network, given = llava(), batch()
    model = ending(copy.deepcopy(network))
    for items in ({}, {"num_items_in_batch": torch.tensor(30)}):
        own = network(**given, use_cache=False, **items)
        output = model(**given, use_cache=False, **items)
        assert type(output) is type(own)
        assert output.logits is None
        assert output.loss.item() == pytest.approx(own.loss.item(), rel=1e-6)  # theirs is made in float32
    network.eval(), model.eval()
    own, output = network(**given), model(**given)
    assert torch.equal(output.logits, own.logits)
    assert output.loss.item() == pytest.approx(own.loss.item(), rel=1e-6)
    output.loss.backward()


def test_labels_that_are_not_taken_from_the_call_are_refused() -> None:
    model, given = ending(llava(), target="target"), batch()
    with pytest.raises(ValueError, match=r"Expected no `labels`.*agm.AGM\(..., target='labels'\)"):
        model(**given, use_cache=False, target=given["labels"])
    with pytest.raises(ValueError, match="forward to have no parameter `labels`"):
        agm.AGM(llava(), MODALITIES, target="labels")


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor with a dimension of the classes that an operation has made."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _IN_CHUNKS:  # in whose kernel a mode sees nothing, so run it here
            with self:
                return _IN_CHUNKS[func.overloadpacket](*args, **(kwargs or {}))
        results = func(*args, **(kwargs or {}))
        for one in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(one, Tensor) and self.classes in one.shape:
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return results


_IN_CHUNKS = {
    torch.ops.agm.modulate_linear_cross_entropy: reference.modulate_linear_cross_entropy,
    torch.ops.agm.modulate_linear_cross_entropy_backward: reference.modulate_linear_cross_entropy_backward,
}


def test_no_tensor_of_rows_by_tokens_is_made() -> None:
    classes, given = 1201, batch(length=300)
    tokens = given["labels"].numel()
    with _Largest(classes) as seen:
        ending(llava(vocab_size=classes), backend="reference")(**given, use_cache=False).loss.backward()
    assert 128 * classes == seen.numbers < tokens * classes / 7
    whole = agm.AGM(llava(vocab_size=classes), MODALITIES, absent=ABSENT)
    inputs, target = {name: x for name, x in given.items() if name != "labels"}, shifted(given["labels"])
    with _Largest(classes) as seen:
        F.cross_entropy(whole(**inputs, use_cache=False, target=target).logits.mT, target).backward()
    assert seen.numbers >= 3 * tokens * classes


def test_the_trainer_of_hugging_face(tmp_path: Path) -> None:
    """Over accumulated batches of different numbers of labels, and in evaluation."""
    data = [{name: value[row] for name, value in batch().items()} for row in range(BATCH)]
    data[0]["labels"][:9] = -100

    class Uncached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.llava = llava()

        def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return self.llava(
                pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, use_cache=False
            )

    def model() -> agm.AGM:
        settings = {"absent": ABSENT, "alpha": 1.5, "head": "llava.lm_head", "loss": "causal_lm"}
        return agm.AGM(Uncached(), MODALITIES, **settings)

    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "max_grad_norm": 0.0}
    plain = {"optim": "sgd", "lr_scheduler_type": "constant", "learning_rate": 0.1, "logging_steps": 1}
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=BATCH, **quiet, **plain
    )
    trainer = ModulatedTrainer(model(), arguments, train_dataset=data, eval_dataset=data)
    own = llava().eval()
    stacked = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    expected = sum(own(**{name: value[None] for name, value in row.items()}).loss.item() for row in data) / BATCH
    arguments.per_device_eval_batch_size = 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    trainer.train()
    counted = int((stacked["labels"] != -100).sum())
    total = own(**stacked, num_items_in_batch=counted).loss.item()
    assert next(row["loss"] for row in trainer.state.log_history if "loss" in row) == pytest.approx(total, rel=1e-3)
    refused: dict[str, dict[str, Any]] = {
        "label_smoothing_factor=0.1": {"label_smoothing_factor": 0.1},
        "a compute_loss_func": {},
    }
    for words, settings in refused.items():
        arguments = transformers.TrainingArguments(str(tmp_path), **quiet, **settings)
        with pytest.raises(ValueError, match=f"model with a `loss` of its own, but got {words}"):
            ModulatedTrainer(model(), arguments, compute_loss_func=None if settings else print)
