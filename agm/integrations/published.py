"""Networks of other code bases of the field, from their checkpoints."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from agm.models.film import FiLMFusion
from agm.models.late import LateFusion
from agm.models.resnet import ResNet18

__all__ = ["load_published"]

# Where the three code bases have their encoders: `audio_net.conv1.weight`, `modality_encoder.audio.conv1.weight`.
_ENCODER = re.compile(r"(?:^|\.)(?:(?P<net>\w+)_net|modality_encoder\.(?P<item>\w+))\.(?P<name>.+)$")
_HEAD = re.compile(r"(?:^|\.)fusion_module\.(?P<name>\w+\.(?:weight|bias))$")
_NESTED = ("model", "state_dict")
_CLASSIFIER = ("fc.", "avgpool.")  # of a ResNet-18, which none of them uses
_LATE = {"fc_out.weight", "fc_out.bias"}
_SUM = {"fc_x.weight", "fc_x.bias", "fc_y.weight", "fc_y.bias"}
_FILM = {"fc.weight", "fc.bias", "fc_out.weight", "fc_out.bias"}


def load_published(checkpoint: Mapping[str, Any]) -> LateFusion | FiLMFusion:
    """Make the network of ResNet-18 encoders whose weights are in a checkpoint of a published code base.

    Checkpoints of OGM-GE (GeWu-Lab/OGM-GE_CVPR2022), of AGM (lihong2303/AGM_ICCV2023) where it has `audio_net` and
    `visual_net` beside a `fusion_module`, and of BalanceBenchmark (GeWu-Lab/BalanceBenchmark) are read, with fusion by
    concatenation, by a sum, or by FiLM (of two modalities, of which the first conditions the second, as OGM-GE's
    networks are made). Their gated fusion is another one than `agm.models.GatedFusion`, and is not converted. What
    stands before the names of the modules, such as DataParallel's `module.`, does not matter. Modalities are in the
    order of the checkpoint, which is that of the columns of the head.

    The network takes spectrograms (B, 1, H, W) and frames (B, T, 3, H, W) or images (B, 3, H, W); OGM-GE has its frames
    as (B, 3, T, H, W). It returns the joint logits alone. Optimisers, schedules and running scores are not read.

    Example:
        >>> network = load_published(torch.load("best_model.pth", weights_only=True))  # doctest: +SKIP
        >>> model = agm.AGM(network, alpha=1.5)  # doctest: +SKIP

    Args:
        checkpoint: the state dict, or a mapping that has it under "model" or "state_dict".

    Raises:
        TypeError: `checkpoint` is not a mapping.
        ValueError: its keys are those of another network, fusion or encoder.
    """
    if not isinstance(checkpoint, Mapping):
        raise TypeError(
            f"Expected argument `checkpoint` to be a state dict, or a mapping that has one, but got "
            f"{type(checkpoint).__name__}. Load it with torch.load(path, weights_only=True)."
        )
    state = next((checkpoint[key] for key in _NESTED if isinstance(checkpoint.get(key), Mapping)), checkpoint)
    encoders: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, value in state.items():
        if found := _ENCODER.search(key):
            encoders.setdefault(found["net"] or found["item"], {})[found["name"]] = value
        elif found := _HEAD.search(key):
            head[found["name"]] = value
    if len(encoders) < 2:
        raise ValueError(
            "Expected argument `checkpoint` to have encoders `NAME_net` or `modality_encoder.NAME` of two modalities "
            f"or more, but got {list(encoders) or 'none'} in {len(state)} keys."
        )
    kinds = {"concat": _LATE, "sum": _SUM, "FiLM": _FILM}
    kind = next((kind for kind, names in kinds.items() if head.keys() == names), None)
    if kind is None:
        raise ValueError(
            "Expected argument `checkpoint` to have a `fusion_module` of `fc_out` (concat), of `fc_x` and `fc_y` "
            f"(sum), or of `fc` and `fc_out` (FiLM), but got {sorted(head) or 'none'}. Gated and early fusion are not "
            "converted."
        )
    if kind != "concat" and len(encoders) != 2:
        raise ValueError(
            f"Expected argument `checkpoint` to have two modalities for a fusion by {kind}, but got {list(encoders)}."
        )
    made = {name: _resnet(name, weights) for name, weights in encoders.items()}
    first = head["fc_x.weight" if kind == "sum" else "fc_out.weight"]
    width = ResNet18.num_features * (len(made) if kind == "concat" else 1)
    if first.dim() != 2 or first.shape[1] != width:
        raise ValueError(
            f"Expected argument `checkpoint` to have a head of {width} columns, {ResNet18.num_features} an encoder, "
            f"but got one of shape {tuple(first.shape)}."
        )
    if kind == "FiLM":
        film = FiLMFusion(made, first.shape[0])
        assert film.generator is not None
        _load(film.generator, head, "fc")
        _load(film.classifier, head, "fc_out")
        return film
    network = LateFusion(made, first.shape[0], combine="sum" if kind == "sum" else "concat")
    if kind == "sum":
        for name, part in zip(made, ("fc_x", "fc_y"), strict=True):
            _load(network.heads[name], head, part)
    else:
        _load(network.classifier, head, "fc_out")
    return network


def _load(layer: nn.Module, head: Mapping[str, Tensor], part: str) -> None:
    """Into a linear layer.

    Raises:
        ValueError: weights of another shape.
    """
    wanted = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    got = {key: tuple(head[f"{part}.{key}"].shape) for key in wanted}
    if wanted != got:
        raise ValueError(
            f"Expected argument `checkpoint` to have `fusion_module.{part}` of shapes {wanted}, but got {got}."
        )
    layer.load_state_dict({key: head[f"{part}.{key}"] for key in wanted})


def _resnet(name: str, weights: Mapping[str, Tensor]) -> ResNet18:
    """An encoder with these weights.

    Raises:
        ValueError: they are not those of a ResNet-18.
    """
    weights = {key: value for key, value in weights.items() if not key.startswith(_CLASSIFIER)}
    first = weights.get("conv1.weight")
    channels = first.shape[1] if first is not None and first.dim() == 4 else 1
    encoder = ResNet18(channels)
    wanted = {key: value.shape for key, value in encoder.state_dict().items()}
    got = {key: value.shape for key, value in weights.items()}
    if wanted != got:
        different = sorted(key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key))
        raise ValueError(
            f"Expected argument `checkpoint` to have a ResNet-18 for `{name}`, but got other parameters than its: "
            f"{', '.join(different[:3])}{' ...' if len(different) > 3 else ''}. Other encoders are not converted."
        )
    encoder.load_state_dict(dict(weights))
    return encoder
