"""Several labels a sample, some of them unknown: a loss of one's own beside `score="binary_cross_entropy"`."""

import torch
import torch.nn.functional as F
from torch import Tensor

import agm
from agm.models import LateFusion, MLPEncoder

SAMPLES, LABELS, UNKNOWN = 512, 6, -1


def data() -> tuple[Tensor, Tensor, Tensor]:
    """A picture that shows every label faintly, a sound in which half of them are loud, and the labels."""
    labels = torch.randint(2, (SAMPLES, LABELS)).float()
    picture = labels @ torch.randn(LABELS, 32) + 2 * torch.randn(SAMPLES, 32)
    sound = labels[:, : LABELS // 2] @ torch.randn(LABELS // 2, 16) + 0.2 * torch.randn(SAMPLES, 16)
    return picture, sound, labels.long().masked_fill(torch.rand(SAMPLES, LABELS) < 0.1, UNKNOWN)


torch.manual_seed(0)
picture, sound, labels = data()
network = LateFusion({"picture": MLPEncoder(32), "sound": MLPEncoder(16)}, num_classes=LABELS)
model = agm.AGM(network, alpha=2.0, score="binary_cross_entropy", ignore_index=UNKNOWN)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(5):
    for rows in torch.randperm(SAMPLES).split(64):
        target = labels[rows]
        logits = model(picture=picture[rows], sound=sound[rows], target=target)
        known = target != UNKNOWN
        loss = F.binary_cross_entropy_with_logits(logits[known], target[known].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report = model.modulator.report()
    modulation = ", ".join(f"{name} {row['score']:.2f} x {row['coefficient']:.2f}" for name, row in report.items())
    print(f"epoch {epoch}: loss {loss.item():.3f}; scores x coefficients: {modulation}")
