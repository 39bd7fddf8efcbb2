"""Networks out of parts of Hugging Face's transformers, built from small configurations, as people wire them."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from .client import BATCH, Client, generator

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**SMALL, "image_size": 32, "patch_size": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**SMALL, **SPECIAL, "vocab_size": 60, "max_position_embeddings": 32}
WAVES = {
    **SMALL,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 8),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "layerdrop": 0.3,
    "mask_time_prob": 0.3,
    "mask_time_length": 3,
}


def image() -> Tensor:
    return torch.randn(BATCH, 3, 32, 32, generator=generator())


def words() -> tuple[Tensor, Tensor]:
    """Token ids of several lengths, padded with 0, and their mask."""
    mask = (torch.arange(8) < torch.tensor([[8], [3], [5], [6]])).long()
    return torch.randint(3, 58, (BATCH, 8), generator=generator()) * mask, mask


class Clip(nn.Module):
    """A classifier on CLIP's features, by its own methods."""

    def __init__(self) -> None:
        super().__init__()
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
        self.clip, self.head = transformers.CLIPModel(config), nn.Linear(32, 5)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        text = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        seen = self.clip.get_image_features(pixel_values=pixel_values)
        both = [x if isinstance(x, Tensor) else x.pooler_output for x in (text, seen)]
        return self.head(torch.cat([F.normalize(x, dim=-1) for x in both], -1))


class Listening(nn.Module):
    """A speech encoder with SpecAugment and LayerDrop beside ViT."""

    def __init__(self, kind: str, checkpointed: bool = False) -> None:
        super().__init__()
        self.audio = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**WAVES))
        self.vit = transformers.ViTModel(transformers.ViTConfig(**VISION))
        self.head = nn.Linear(64, 5)
        if checkpointed:
            self.audio.gradient_checkpointing_enable()
            self.vit.gradient_checkpointing_enable()

    def forward(self, waveform: Tensor, pixel_values: Tensor) -> Tensor:
        heard = self.audio(waveform).last_hidden_state.mean(1)
        return self.head(torch.cat([heard, self.vit(pixel_values).pooler_output], -1))


class Reading(nn.Module):
    """A text encoder beside ViT, whose output is a `ModelOutput`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        own: dict[str, Any] = {**TEXT}
        if kind == "DistilBert":
            own = {
                "vocab_size": 60,
                "dim": 32,
                "n_layers": 2,
                "n_heads": 4,
                "hidden_dim": 64,
                "max_position_embeddings": 32,
            }
        self.text = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**own))
        self.vit = transformers.ViTModel(transformers.ViTConfig(**VISION))
        self.head = nn.Linear(64, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Any:
        read = self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
        seen = self.vit(pixel_values=pixel_values).last_hidden_state[:, 0]
        logits = self.head(torch.cat([read, seen], -1))
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=logits, hidden_states=(read, seen))


class Transcribing(nn.Module):
    """Whisper's encoder beside BERT."""

    def __init__(self) -> None:
        super().__init__()
        each = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
        parts = {f"{part}_{what}": size for part in ("encoder", "decoder") for what, size in each.items()}
        lengths = {"max_source_positions": 20, "max_target_positions": 16, "decoder_start_token_id": 1}
        config = transformers.WhisperConfig(
            **SPECIAL, **parts, **lengths, vocab_size=60, num_mel_bins=8, d_model=32, encoder_layerdrop=0.2
        )
        self.whisper = transformers.WhisperModel(config)
        self.bert, self.head = transformers.BertModel(transformers.BertConfig(**TEXT)), nn.Linear(64, 5)

    def forward(self, input_features: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        heard = self.whisper.encoder(input_features).last_hidden_state.mean(1)
        return self.head(torch.cat([heard, self.bert(input_ids, attention_mask=attention_mask)[1]], -1))


LLAMA = {**TEXT, "num_key_value_heads": 2}


class Looking(nn.Module):
    """A frozen CLIP tower whose tokens stand before those of a small Llama; logits a token."""

    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION)).requires_grad_(False)
        self.project = nn.Linear(32, 32)
        self.llm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
        if checkpointed:
            self.llm.gradient_checkpointing_enable()

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = self.project(self.vision(pixel_values).last_hidden_state[:, 1:])
        words = self.llm.get_input_embeddings()(input_ids)
        mask = torch.cat([torch.ones(seen.shape[:2], dtype=attention_mask.dtype), attention_mask], 1)
        return self.llm(inputs_embeds=torch.cat([seen, words], 1), attention_mask=mask, use_cache=False).logits[:, 4:]


class Decoding(nn.Module):
    """A causal Llama as the text encoder, read at the last token."""

    def __init__(self, **call: Any) -> None:
        super().__init__()
        self.llm = transformers.LlamaModel(transformers.LlamaConfig(**LLAMA))
        self.image, self.head, self.call = nn.Linear(12, 32), nn.Linear(64, 5), call

    def forward(self, input_ids: Tensor, image: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.llm(input_ids, attention_mask=attention_mask, **self.call).last_hidden_state
        last = hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
        return self.head(torch.cat([last, self.image(image)], -1))


class Llava(nn.Module):
    """Hugging Face's own LLaVA, whose image tokens stand among the words."""

    def __init__(self) -> None:
        super().__init__()
        vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**LLAMA)
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=59,
            vision_feature_select_strategy="default",
            vision_feature_layer=-1,
        )
        self.llava = transformers.LlavaForConditionalGeneration(config)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask}
        return self.llava(**given, use_cache=False).logits


def with_text(**others: Callable[[], Tensor]) -> Callable[[], dict[str, Any]]:
    def made() -> dict[str, Any]:
        ids, mask = words()
        return {"input_ids": ids, "attention_mask": mask, **{name: make() for name, make in others.items()}}

    return made


def with_image_tokens() -> dict[str, Any]:
    ids, mask = words()
    tokens = torch.full((BATCH, 4), 59)
    given = {"input_ids": torch.cat([tokens, ids], 1), "attention_mask": torch.cat([torch.ones_like(tokens), mask], 1)}
    return {**given, "pixel_values": image()}


def tokens(length: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, 60, (BATCH, length), generator=generator())


def sound() -> dict[str, Any]:
    return {"waveform": torch.randn(BATCH, 400, generator=generator()), "pixel_values": image()}


GROUPED = {"text": ("input_ids", "attention_mask"), "image": "pixel_values"}
TOWERS = {"text": "clip.text_model", "image": "clip.vision_model"}
SPEECH = {"waveform": "audio", "pixel_values": "vit"}
SEEN_READ = {"pixel_values": "vision", "input_ids": "llm.model.embed_tokens"}
HEARD = {"input_features": "whisper.encoder", "input_ids": "bert"}
KEPT = {"input_ids": lambda x: torch.where(x == 59, x, 0)}

METHODS = {"text": "clip.get_text_features", "image": "clip.get_image_features"}
READ = {"text": "text", "image": "vit"}
CAUSAL = {"input_ids": "llm", "image": "image"}

seen_and_read = with_text(pixel_values=image)
heard_and_read = with_text(input_features=lambda: torch.randn(BATCH, 8, 40, generator=generator()))
measured_and_read = with_text(image=lambda: torch.randn(BATCH, 12, generator=generator()))

CLIENTS = {
    "CLIP": Client(Clip, GROUPED, TOWERS, seen_and_read),
    "CLIP by its methods": Client(Clip, GROUPED, METHODS, seen_and_read),
    "wav2vec 2.0 + ViT": Client(lambda: Listening("Wav2Vec2"), tuple(SPEECH), SPEECH, sound),
    "HuBERT + ViT": Client(lambda: Listening("Hubert"), tuple(SPEECH), SPEECH, sound),
    "wav2vec 2.0 + ViT, checkpointed": Client(lambda: Listening("Wav2Vec2", True), tuple(SPEECH), SPEECH, sound),
    "BERT + ViT": Client(lambda: Reading("Bert"), GROUPED, READ, seen_and_read),
    "RoBERTa + ViT": Client(lambda: Reading("Roberta"), GROUPED, READ, seen_and_read),
    "DistilBERT + ViT": Client(lambda: Reading("DistilBert"), GROUPED, READ, seen_and_read),
    "Whisper + BERT": Client(Transcribing, tuple(HEARD), HEARD, heard_and_read),
    "frozen tower + Llama": Client(Looking, tuple(SEEN_READ), SEEN_READ, seen_and_read, target=tokens()),
    "frozen tower + Llama, checkpointed": Client(
        lambda: Looking(True), tuple(SEEN_READ), {"pixel_values": "vision"}, seen_and_read, target=tokens()
    ),
    "Llama as an encoder": Client(lambda: Decoding(use_cache=False), tuple(CAUSAL), CAUSAL, measured_and_read),
    "LLaVA": Client(
        Llava,
        ("pixel_values", "input_ids"),
        {"pixel_values": "llava.model.vision_tower"},
        with_image_tokens,
        absent=KEPT,
        target=tokens(12),
    ),
}
