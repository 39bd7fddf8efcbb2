"""Hugging Face Accelerate: nothing but `prepare`; `scalars` serves its trackers."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from networks import ENCODERS, AudioVisual, dataset
from torch.utils.data import DataLoader

import agm
from agm.integrations.logs import scalars

accelerator = Accelerator(mixed_precision="bf16")  # for "fp16": accelerator.scaler = GradScaler(model), then prepare
torch.manual_seed(0)
model = agm.AGM(AudioVisual(), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
loader = DataLoader(dataset(), batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

for epoch in range(3):
    accelerator.unwrap_model(model).epoch = epoch
    for audio, visual, target in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(audio=audio, visual=visual, target=target), target)
        accelerator.backward(loss)
        optimizer.step()
    accelerator.log(scalars(model), step=epoch)  # to the trackers of log_with=

values = scalars(model)
accelerator.print(f"loss {loss:.3f}, steps {values['agm/step']:.0f}, kappa {values['agm/audio/coefficient']:.3f}")
