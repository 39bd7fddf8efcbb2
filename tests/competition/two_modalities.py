"""Two modalities of which one competes with the other as much as asked, and small networks on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 4
WIDTHS = {"quick": 4, "slow": 16}
FEATURES = 16


def samples(count: int, overlap: float, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor]:
    """The label is two bits. "quick" shows it, linearly and clearly, in a share `overlap` of the samples, and another
    one in the rest. "slow" has each bit as the product of two signs, under noise and beside distractors: that takes a
    network a while, and what it finds is no linear function of what it starts from. Where "quick" says everything, the
    loss is gone before "slow" is learnt; where it says nothing, there is nothing to compete with.
    """

    def normal(width: int) -> Tensor:
        return torch.randn(count, width, generator=generator)

    target = torch.randint(CLASSES, (count,), generator=generator)
    bits = torch.stack([target % 2, target // 2], 1) * 2 - 1
    signs = torch.randint(2, (count, 2), generator=generator) * 2 - 1
    slow = torch.cat([signs + 0.6 * normal(2), signs * bits + 0.6 * normal(2), normal(12)], 1)
    told = torch.rand(count, generator=generator) < overlap
    shown = torch.where(told, target, torch.randint(CLASSES, (count,), generator=generator))
    return {"quick": 2 * F.one_hot(shown, CLASSES) + 0.35 * normal(4), "slow": slow}, target


class Late(nn.Module):
    """An MLP a modality and a linear layer on their features."""

    def __init__(self, modalities: tuple[str, ...]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(WIDTHS[name], 64), nn.ReLU(), nn.Linear(64, FEATURES), nn.ReLU())
                for name in modalities
            }
        )
        self.head = nn.Linear(FEATURES * len(modalities), CLASSES)

    def fused_features(self, features: dict[str, Tensor]) -> Tensor:
        return torch.cat([features[name] for name in self.encoders], 1)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.head(self.fused_features({name: self.encoders[name](inputs[name]) for name in self.encoders}))


def trained(modalities: tuple[str, ...], overlap: float, seed: int, steps: int = 300) -> Late:
    """A network after SGD on fresh samples; torch's own generator is left alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Late(modalities)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        inputs, target = samples(128, overlap, generator)
        loss = F.cross_entropy(network(**{name: inputs[name] for name in modalities}), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network
