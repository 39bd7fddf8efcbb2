"""Activation checkpoints of the network's own."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import agm

from .networks import BOTH, Pairs, inputs, rows


class Checkpointed(Pairs):
    """Checkpoints inside an encoder, and around the other one."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__(audio=self.Inside(reentrant), visual=self.Inside(None))
        self.reentrant = reentrant

    class Inside(nn.Module):
        def __init__(self, reentrant: bool | None) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 5))
            self.reentrant = reentrant

        def forward(self, x: Tensor) -> Tensor:
            if self.reentrant is None:
                return self.layers(x)
            return checkpoint(self.layers, x, use_reentrant=self.reentrant)

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        if self.reentrant is None:
            return [self.audio_net(audio), self.visual_net(visual)]
        return [self.audio_net(audio), checkpoint(self.visual_net, visual, use_reentrant=self.reentrant)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"encoders": BOTH}, {"encoders": BOTH, "masked": "shared"}])
def test_activation_checkpointing(reentrant: bool, options: dict[str, Any]) -> None:
    """What is recomputed in the backward has the network's modes of then, not those of the masked pass."""
    plain, checkpointed = Checkpointed(None), Checkpointed(reentrant)
    checkpointed.load_state_dict(plain.state_dict())
    gradients = []
    for network in (plain, checkpointed):
        given = {name: x.requires_grad_() for name, x in inputs().items()}  # as reentrant checkpoints need
        torch.manual_seed(0)
        if reentrant and network is checkpointed and options.get("masked") == "shared":
            with pytest.raises(ValueError, match="use_reentrant=False"):
                agm.masked_logits(network, given, **options)
            return
        masked = agm.masked_logits(network, given, **options)
        masked.backward(rows(*masked.shape, seed=5))
        gradients.append([masked.detach(), *(parameter.grad for parameter in network.parameters())])
    for left, right in zip(*gradients, strict=True):
        torch.testing.assert_close(left, right)


def test_an_error_in_a_checkpoint_leaves_no_hooks_and_takes_none() -> None:
    network = Checkpointed(False)
    model = agm.AGM(network, ("audio", "visual"), encoders=BOTH)
    handle = network.visual_net.layers[1].register_forward_hook(lambda *_: 1 / 0)
    packed = []

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with pytest.raises(ZeroDivisionError):
            model(**inputs(), target=torch.tensor([0, 1, 2, 0]))
        handle.remove()
        gc.collect()
        packed.clear()
        rows(2).requires_grad_().square()
        assert len(packed) == 1
