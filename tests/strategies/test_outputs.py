"""Networks that return more than logits, and modalities that several arguments carry: as `agm.AGM` takes them."""

import pytest
import torch
from torch import nn

from agm.strategies import LinearHead, build, options_of, strategies

from .networks import batch_of


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.linear = nn.Embedding(7, 6), nn.Linear(6, 5)

    def forward(self, tokens, mask):
        kept = mask.unsqueeze(2).float()
        return self.linear((self.embedding(tokens) * kept).sum(1) / kept.sum(1))


class Both(nn.Module):
    """Text of two arguments and an image, and an output with something else beside the logits."""

    def __init__(self):
        super().__init__()
        self.text, self.image = Text(), nn.Sequential(nn.Flatten(), nn.Linear(25, 5), nn.Tanh())
        self.out = nn.Linear(10, 4)

    def forward(self, tokens, mask, pixels):
        found = torch.cat([self.text(tokens=tokens, mask=mask), self.image(pixels)], 1)
        return {"hidden": found, "scores": self.out(found)}


@pytest.mark.parametrize("name", list(strategies))
def test_every_strategy_takes_them(name):
    network, (inputs, target) = Both(), batch_of()
    text = {"tokens": torch.randint(7, (8, 6)), "mask": torch.arange(6).expand(8, 6) < torch.randint(2, 6, (8, 1))}
    given = {"text": text, "image": inputs["audio"]}
    widths, shared = {"text": 5, "image": 5}, LinearHead(5, 4)
    settings = {
        "modalities": {"text": ("tokens", "mask"), "image": "pixels"},
        "encoders": {"text": "text", "image": "image"},
        "output": "scores",
    }
    if name not in ("agm", "aug"):
        settings["heads"] = {m: shared if name == "mla" else LinearHead(5, 4) for m in widths}
    settings |= {"cggm": {"direction": 0.0}, "g2d": {"teacher_epochs": 2}}.get(name, {})
    if "widths" in options_of(name):
        settings |= {"widths": widths, "num_classes": 4}
    strategy = build(name, network, **settings)
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    numbers = (torch.arange(8),) if "index" in strategy.needs else ()
    splits = {"train": [(given, target, *numbers)], "validation": [(given, target)]}
    before = network.text.linear.weight.detach().clone()
    strategy.begin_epoch(0, **splits)
    for outcome in strategy.steps(given, target):
        assert outcome.logits.shape == (8, 4)
        strategy.optimizer.step()
    strategy.end_epoch(**splits)
    assert not torch.equal(network.text.linear.weight, before)


def test_what_a_group_lacks_is_said():
    strategy = build(
        "ogm",
        Both(),
        modalities={"text": ("tokens", "mask"), "image": "pixels"},
        encoders={"text": "text", "image": "image"},
        output="scores",
    )
    with pytest.raises(ValueError, match=r"input of `text` to map each of .*tokens.*, but got Tensor"):
        list(strategy.steps({"text": torch.ones(2, 3), "image": torch.ones(2, 1, 5, 5)}, torch.zeros(2).long()))
