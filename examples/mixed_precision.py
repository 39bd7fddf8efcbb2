"""Autocast in float16 with gradient scaling: a batch whose gradients overflow leaves the running scores alone too."""

import torch
import torch.nn.functional as F
from networks import ENCODERS, AudioVisual, dataset
from torch.utils.data import DataLoader

import agm
from agm.integrations.amp import GradScaler

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
model = agm.AGM(AudioVisual().to(device), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scaler = GradScaler(model, init_scale=2.0**40)  # torch's own, but for the model; the scale is far too large at first

for epoch in range(4):
    model.epoch = epoch
    for audio, visual, target in DataLoader(dataset(), batch_size=32, shuffle=True):
        audio, visual, target = audio.to(device), visual.to(device), target.to(device)
        optimizer.zero_grad()
        with torch.autocast(device, torch.float16):  # with torch.bfloat16 there is no need of a scaler
            logits = model(audio=audio, visual=visual, target=target)
            loss = F.cross_entropy(logits, target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

state = model.modulator.state
print(f"steps {int(state.step)}, overflowed {int(state.skipped)}, scale {scaler.get_scale():g}, loss {loss:.3f}")
