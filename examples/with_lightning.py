"""Lightning: AGM inside a LightningModule, and a callback for the window of epochs and the loggers."""

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from networks import ENCODERS, AudioVisual, dataset
from torch import Tensor
from torch.utils.data import DataLoader

import agm
from agm.integrations.lightning import ModulationCallback


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = agm.AGM(AudioVisual(), tuple(ENCODERS), alpha=1.5, encoders=ENCODERS)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        audio, visual, target = batch
        return F.cross_entropy(self.model(audio=audio, visual=visual, target=target), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


pl.seed_everything(0)
module = Classifier()
trainer = pl.Trainer(
    max_epochs=3,
    accelerator="auto",
    logger=CSVLogger("logs"),  # or TensorBoardLogger, WandbLogger ...
    callbacks=[ModulationCallback(every_n_steps=4)],
    enable_progress_bar=False,
)
trainer.fit(module, DataLoader(dataset(), batch_size=32, shuffle=True))
print(f"steps {int(module.model.modulator.state.step)}", module.model.modulator.report()["audio"])
