"""A loop of one's own that can be stopped after any step and goes on bit for bit: python resume.py [STEPS]."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from networks import ENCODERS, AudioVisual, dataset

import agm
from agm.training.checkpoint import load_checkpoint, random_state, restore_random_state, save_checkpoint

file, until = Path("checkpoint.pt"), int(sys.argv[1]) if len(sys.argv) > 1 else 40
torch.manual_seed(0)
model = agm.AGM(AudioVisual(), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}  # and the scaler, if there is one
step = 0
if file.exists():
    saved = load_checkpoint(file)  # runs no code from the file
    for name, part in parts.items():
        part.load_state_dict(saved[name])  # the running scores are part of the model
    restore_random_state(saved["random"])
    step = saved["step"]

audio, visual, target = dataset().tensors
while step < until:
    epoch, number = divmod(step, 8)  # 8 batches of 32: the order follows from the epoch, and needs no saving
    model.epoch = epoch
    index = torch.randperm(256, generator=torch.Generator().manual_seed(epoch))[32 * number : 32 * (number + 1)]
    optimizer.zero_grad()
    F.cross_entropy(model(audio=audio[index], visual=visual[index], target=target[index]), target[index]).backward()
    optimizer.step()
    scheduler.step()
    step += 1
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(file, {**states, "random": random_state(), "step": step})  # whole, or the one before

print(f"steps {step}, weights {sum(p.double().sum() for p in model.parameters()).item():.17g}")
