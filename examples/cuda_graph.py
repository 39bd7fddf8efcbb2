"""A whole training step in a CUDA graph: captured once, replayed for every batch with one launch."""

import torch
import torch.nn.functional as F
from networks import ENCODERS, AudioVisual, dataset
from torch.utils.data import DataLoader

import agm


def train() -> str:
    torch.manual_seed(0)
    model = agm.AGM(AudioVisual().cuda(), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    place = [x.cuda() for x in dataset(32).tensors]  # a graph reads where it was captured

    def step() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(audio=place[0], visual=place[1], target=place[2]), place[2])
        loss.backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # the first step looks at numbers, which a captured one cannot
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for batch in DataLoader(dataset(256), batch_size=32, shuffle=True, drop_last=True):
        for own, values in zip(place, batch, strict=True):
            own.copy_(values)
        graph.replay()
    return f"loss {loss:.3f}, steps {int(model.modulator.state.step)}"


print(train() if torch.cuda.is_available() else "A CUDA graph needs a GPU, and there is none: nothing was captured.")
