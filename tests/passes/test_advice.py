"""What is said where a network cannot have its masked rows as one batch."""

import pytest
import torch
from torch import Tensor, nn

import agm

from .networks import BOTH, Pairs, inputs

NAMES = ("audio", "visual")
TARGET = torch.tensor([0, 1, 2, 0])


class Carrying(Pairs):
    """Carries a hidden state from batch to batch."""

    def __init__(self) -> None:
        super().__init__(audio=nn.GRU(6, 5, batch_first=True))
        self.state: Tensor | None = None

    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        output, state = self.audio_net(audio.unsqueeze(1), self.state)
        if self.training:
            self.state = state.detach()
        return [output[:, -1], self.visual_net(visual)]


class Listing(nn.Linear):
    """Returns a tensor for each sample, as LLaVA's get_image_features does."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return list(super().forward(x))


class OfList(Pairs):
    def features(self, audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [torch.stack(self.audio_net(audio)), self.visual_net(visual)]


def test_a_state_of_the_size_of_the_batch() -> None:
    with pytest.raises(ValueError, match="leave `encoders` out, and set `max_rows` to the size of the batch"):
        agm.AGM(Carrying(), NAMES, encoders=BOTH)(**inputs(), target=TARGET)
    with pytest.raises(RuntimeError, match="hidden") as raised:
        agm.AGM(Carrying(), NAMES)(**inputs(), target=TARGET)
    assert "Set max_rows=4" in raised.value.__notes__[0]
    model = agm.AGM(Carrying(), NAMES, max_rows=4)
    model(**inputs(), target=TARGET)
    assert agm.verify(model, inputs(), TARGET).ok


@pytest.mark.parametrize("passes", ["auto", "two"])
def test_a_list_with_a_tensor_for_each_sample(passes: str) -> None:
    model = agm.AGM(OfList(audio=Listing(6, 5)), NAMES, encoders=BOTH, passes=passes)
    with pytest.raises(ValueError, match=r"list with a tensor for each sample .* name what returns one tensor"):
        model(**inputs(), target=TARGET)
