"""Hugging Face Trainer: two encoders of transformers, built from their configurations, under AGM."""

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, TrainingArguments, ViTConfig, ViTModel

import agm
from agm.integrations.transformers import ModulatedTrainer

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


class TextAndImage(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bert = BertModel(BertConfig(vocab_size=30, **SMALL))
        self.vit = ViTModel(ViTConfig(image_size=8, patch_size=4, **SMALL))
        self.head = nn.Linear(64, 3)

    def forward(self, text: dict[str, Tensor], image: Tensor) -> Tensor:
        words, patches = self.bert(**text), self.vit(pixel_values=image)
        return self.head(torch.cat([words.last_hidden_state[:, 0], patches.last_hidden_state[:, 0]], 1))


def collate(labels: list[int]) -> dict[str, object]:
    target = torch.tensor(labels)
    ids = torch.randint(3, 30, (len(labels), 6)).index_fill(1, torch.tensor(1), 0) + target[:, None] * torch.eye(6)[1]
    text = {"input_ids": ids.long(), "attention_mask": torch.ones_like(ids).long()}
    return {"text": text, "image": torch.randn(len(labels), 3, 8, 8) + target.view(-1, 1, 1, 1), "labels": target}


torch.manual_seed(0)
encoders = {"text": "bert", "image": "vit"}
absent = {"text": {"input_ids": 0, "attention_mask": None}}  # an absent sentence: pad ids, as long as it was
model = agm.AGM(TextAndImage(), tuple(encoders), alpha=1.0, encoders=encoders, absent=absent)
settings = {"remove_unused_columns": False, "logging_steps": 10, "report_to": "none", "disable_tqdm": True}
arguments = TrainingArguments("out", num_train_epochs=2, save_strategy="no", learning_rate=1e-3, **settings)
ModulatedTrainer(model, arguments, train_dataset=[0, 1, 2] * 40, data_collator=collate).train()
print(f"steps {int(model.modulator.state.step)}", model.modulator.report()["image"])
