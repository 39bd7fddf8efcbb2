"""Arguments of forward that have as many elements as there are samples, and belong to none of these."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

NAMES = ("audio", "visual")
PATHS = {name: name + "_net" for name in NAMES}
CLASSES = 6


class Weighted(nn.Module):
    """Logits with a weight a class, or with the sum of the weights."""

    def __init__(self, sums: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.visual_net, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, CLASSES)
        self.sums = sums

    def forward(self, audio: Tensor, visual: Tensor, weights: Tensor, scale: Tensor | None = None) -> Any:
        logits = self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1))
        logits = logits * (weights.sum() if self.sums else weights)
        return logits if scale is None else logits * scale[:, None]


def batch() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    torch.manual_seed(1)
    inputs = {name: torch.randn(CLASSES, 5, dtype=torch.float64) for name in NAMES}
    return inputs, torch.arange(CLASSES), torch.rand(CLASSES, dtype=torch.float64)


@pytest.mark.parametrize("encoders", [None, PATHS], ids=["whole", "paths"])
def test_an_error_of_the_network_says_what_was_repeated(encoders: Any) -> None:
    inputs, target, weights = batch()
    model = agm.AGM(Weighted(sums=False).double(), NAMES, encoders=encoders)
    for call in (
        lambda: model(**inputs, weights=weights, target=target),
        lambda: agm.verify(model, inputs, target, arguments={"weights": weights}),
    ):
        with pytest.raises(RuntimeError, match="must match") as raised:
            call()
        (note,) = raised.value.__notes__
        assert "`weights`" in note
        assert "functools.partial" in note


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("options", [{}, {"encoders": PATHS}, {"encoders": PATHS, "masked": "shared"}], ids=str)
def test_each_subset_has_it_as_it_is(options: Any, scaled: bool) -> None:
    inputs, target, weights = batch()
    model = agm.AGM(Weighted(sums=True).double(), NAMES, **options)
    arguments = {"weights": weights} | ({"scale": weights.flip(0)} if scaled else {})
    result = agm.verify(model, inputs, target, arguments=arguments)
    assert result.ok, str(result)
    model(**inputs, **arguments, target=target)
    assert "one subset at a time, because rows of a batch have met" in str(model.plan())


@pytest.mark.parametrize("scaled", [False, True])
def test_verify_names_the_argument(scaled: bool) -> None:
    inputs, target, weights = batch()
    model = agm.AGM(Weighted(sums=True).double(), NAMES, max_rows=CLASSES - 1)
    arguments = {"weights": weights} | ({"scale": weights.flip(0)} if scaled else {})
    result = agm.verify(model, inputs, target, arguments=arguments)
    assert not result.ok
    (advice,) = result.advice
    assert "`weights`" in advice


def test_an_error_without_such_arguments_has_no_note() -> None:
    inputs, target, _ = batch()
    network: Any = Weighted(sums=True)
    network.head = nn.Linear(3, 3)
    with pytest.raises(RuntimeError) as raised:
        agm.AGM(nn.Sequential(network)[0].double(), NAMES)(**inputs, weights=torch.tensor(1.0), target=target)
    assert not hasattr(raised.value, "__notes__")
