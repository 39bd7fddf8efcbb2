"""Several processes, each on its share of every batch: torchrun --nproc-per-node 2 examples/distributed.py"""

import torch
import torch.nn.functional as F
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import agm
from agm.models import LateFusion

BATCH = 64  # of all processes together


def main() -> None:
    distributed.init_process_group("gloo")  # "nccl" on GPUs
    torch.manual_seed(0)
    target = torch.randint(5, (512,))
    audio, visual = F.one_hot(target, 8) + 0.3 * torch.randn(512, 8), torch.randn(512, 6) + target.view(-1, 1)
    data = TensorDataset(audio, visual, target)
    sampler = DistributedSampler(data)
    encoders = {"audio": nn.Linear(8, 16), "visual": nn.Linear(6, 16)}
    network = LateFusion(encoders, num_classes=5, num_features={"audio": 16, "visual": 16})
    model = DistributedDataParallel(agm.AGM(network, alpha=1.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        for audio, visual, y in DataLoader(data, BATCH // distributed.get_world_size(), sampler=sampler):
            loss = F.cross_entropy(model(audio=audio, visual=visual, target=y), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    report = model.module.modulator.report()  # of the last batch of all processes
    coefficients = {name: round(row["coefficient"], 6) for name, row in report.items()}
    print(f"process {distributed.get_rank()}: {coefficients}")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
