"""torch.compile of forward, loss and backward: one graph for all steps, epochs and batch sizes."""

import os

import torch
import torch.nn.functional as F
from networks import ENCODERS, AudioVisual, dataset
from torch import Tensor
from torch.utils.data import DataLoader

import agm

torch.manual_seed(0)
model = agm.AGM(AudioVisual(), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# The last batch is smaller, hence dynamic=True; fullgraph=True makes a graph break an error.
@torch.compile(fullgraph=True, dynamic=True, backend=os.environ.get("COMPILE_BACKEND", "inductor"))
def loss_of(audio: Tensor, visual: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(model(audio=audio, visual=visual, target=target), target)


for epoch in range(3):
    model.epoch = epoch  # a window of epochs would make two graphs, with and without modulation
    for audio, visual, target in DataLoader(dataset(250), batch_size=32, shuffle=True):
        optimizer.zero_grad()
        loss = loss_of(audio, visual, target)
        loss.backward()
        optimizer.step()

print(f"loss {loss:.3f}, steps {int(model.modulator.state.step)}")
