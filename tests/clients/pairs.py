"""Two encoders of Hugging Face's transformers, from small configurations, beside one linear head."""

from typing import Any

import torch
import transformers
from torch import Tensor, nn

from .client import CLASSES, Client, normal
from .huggingface import SMALL, SPECIAL, TEXT, VISION, WAVES, with_text

_CAUSAL = {**TEXT, "num_key_value_heads": 2}
_STAGES = {"hidden_sizes": (16, 16, 32, 32), "depths": (1, 1, 1, 1)}

TEXTS: dict[str, dict[str, Any]] = {
    "Albert": {**TEXT, "embedding_size": 16},
    "Electra": {**TEXT, "embedding_size": 16},
    "DebertaV2": {
        **TEXT,
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "max_relative_positions": 16,
    },
    "MPNet": TEXT,
    "XLMRoberta": TEXT,
    "Data2VecText": TEXT,
    "ModernBert": {**TEXT, "global_attn_every_n_layers": 2, "local_attention": 4, "sep_token_id": 2, "cls_token_id": 1},
    "T5Encoder": {
        **SPECIAL,
        "vocab_size": 60,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
    },
    "GPT2": {**SPECIAL, "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "Qwen2": _CAUSAL,
    "Gemma": {**_CAUSAL, "head_dim": 8},
    "Mamba": {**SPECIAL, "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
_WITH_CACHE = ("GPT2", "Qwen2", "Gemma", "Mamba")

IMAGES: dict[str, dict[str, Any]] = {
    "DeiT": VISION,
    "Beit": VISION,
    "Dinov2": VISION,
    "Data2VecVision": VISION,
    "SiglipVision": VISION,
    "Swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": (1, 1),
        "num_heads": (2, 2),
        "window_size": 4,
    },
    "ConvNext": {**_STAGES, "drop_path_rate": 0.2},
    "ConvNextV2": _STAGES,
    "ResNet": {"embedding_size": 16, "hidden_sizes": (16, 32), "depths": (1, 1), "layer_type": "basic"},
    "RegNet": {"embedding_size": 16, **_STAGES, "groups_width": 8},
    "MobileNetV2": {"image_size": 32, "depth_multiplier": 0.35},
    "PoolFormer": _STAGES,
    "PvtV2": {"image_size": 32, **_STAGES, "num_attention_heads": (1, 1, 2, 2), "mlp_ratios": (2, 2, 2, 2)},
}

SOUNDS: dict[str, dict[str, Any]] = {
    "WavLM": WAVES,
    "SEW": {**WAVES, "squeeze_factor": 2},
    "UniSpeechSat": WAVES,
    "Wav2Vec2Conformer": WAVES,
    "Data2VecAudio": {**WAVES, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
    "AST": {
        **SMALL,
        "patch_size": 8,
        "num_mel_bins": 16,
        "max_length": 32,
        "frequency_stride": 8,
        "time_stride": 8,
    },
}

VIDEOS: dict[str, dict[str, Any]] = {
    "VideoMAE": {**VISION, "num_frames": 4, "tubelet_size": 2},
    "Timesformer": {**VISION, "num_frames": 4},
    "Vivit": {**VISION, "num_frames": 4, "tubelet_size": (2, 16, 16)},
}


def model(kind: str, settings: dict[str, Any]) -> nn.Module:
    """An encoder with random weights."""
    config = getattr(transformers, {"T5Encoder": "T5"}.get(kind, kind) + "Config")
    made: nn.Module = getattr(transformers, f"{kind}Model")(config(**settings))
    return made


def pooled(output: Any) -> Tensor:
    """One vector a sample."""
    found: Tensor | None = getattr(output, "pooler_output", None)
    if found is None:
        found = output.last_hidden_state
    if found.dim() == 4:  # (B, D, H, W)
        return found.mean((2, 3))
    return found.mean(1) if found.dim() == 3 else found.flatten(1)


class Reading(nn.Module):
    """Text beside an image."""

    def __init__(self, text: nn.Module, image: nn.Module, **call: Any) -> None:
        super().__init__()
        self.text, self.image, self.call = text, image, call
        self.head = nn.LazyLinear(CLASSES)
        _shape(self, WORDS_AND_IMAGE())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        read = self.text(input_ids=input_ids, attention_mask=attention_mask, **self.call)
        logits: Tensor = self.head(torch.cat([pooled(read), pooled(self.image(pixel_values))], -1))
        return logits


class Listening(nn.Module):
    """Sound beside an image or a video."""

    def __init__(self, sound: nn.Module, sight: nn.Module, inputs: dict[str, Tensor]) -> None:
        super().__init__()
        self.sound, self.sight = sound, sight
        self.head = nn.LazyLinear(CLASSES)
        _shape(self, inputs)

    def forward(self, sound: Tensor, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([pooled(self.sound(sound)), pooled(self.sight(pixel_values))], -1))
        return logits


def _shape(network: nn.Module, inputs: dict[str, Tensor]) -> None:
    """The width of the head, from one pass."""
    with torch.no_grad():
        network.eval()(**inputs)
    network.train()


WORDS_AND_IMAGE = with_text(pixel_values=lambda: normal(3, 32, 32))
_GROUPED = {"text": ("input_ids", "attention_mask"), "image": "pixel_values"}
_BY_NAME = {"text": "text", "image": "image"}


def _reading(text: str, text_settings: dict[str, Any], image: str, image_settings: dict[str, Any]) -> Client:
    call = {"use_cache": False} if text in _WITH_CACHE else {}
    return Client(
        lambda: Reading(model(text, text_settings), model(image, image_settings), **call),
        _GROUPED,
        _BY_NAME,
        WORDS_AND_IMAGE,
        inside="use_cache=False" if call else "",
        # Zeros in its layer norms, one behind another: in float32 their gradient overflows, of which AGM warns.
        more={"absent_gradient": False} if image == "PvtV2" else {},
    )


def _listening(sound: str, sight: str, sight_settings: dict[str, Any]) -> Client:
    def inputs() -> dict[str, Tensor]:
        heard = normal(32, 16) if sound == "AST" else normal(400)
        frames = sight_settings.get("num_frames")
        return {"sound": heard, "pixel_values": normal(3, 32, 32) if frames is None else normal(frames, 3, 32, 32)}

    return Client(
        lambda: Listening(model(sound, SOUNDS[sound]), model(sight, sight_settings), inputs()),
        ("sound", "pixel_values"),
        {"sound": "sound", "pixel_values": "sight"},
        inputs,
    )


CLIENTS = {
    **{f"{name} + ViT": _reading(name, settings, "ViT", VISION) for name, settings in TEXTS.items()},
    **{f"BERT + {name}": _reading("Bert", TEXT, name, settings) for name, settings in IMAGES.items()},
    **{f"{name} + ViT": _listening(name, "ViT", VISION) for name in SOUNDS},
    **{f"AST + {name}": _listening("AST", name, settings) for name, settings in VIDEOS.items()},
}
