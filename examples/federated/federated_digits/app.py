"""Balanced modality selection over Flower: each node has a part of AV-Digits, the server selects and averages.

Start a federation on this machine, and run the app in it:

    flower-superlink --insecure --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink 127.0.0.1:8000 --port 9094 --node-config "partition-id=0 num-partitions=2"
    flower-supernode --insecure --superlink 127.0.0.1:8000 --port 9095 --node-config "partition-id=1 num-partitions=2"
    flwr run examples/federated local --stream

with the connection `local` in ~/.flwr/config.toml:

    [superlink.local]
    address = "127.0.0.1:8000"
    insecure = true

Or simulate the nodes (pip install 'flwr[simulation]'), with a connection `simulation` there:

    [superlink.simulation]
    address = ":local:"

    flwr run examples/federated simulation --stream --federation-config "num-supernodes=2"
"""

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from torch import nn

from agm import data, models
from agm.federated import Client, Federation, ModalEnhancement
from agm.federated.flower import FlowerClients, client_app


def network() -> nn.Module:
    digits = data.load("av-digits")
    shapes = {name: tuple(digits.train.inputs[name].shape[1:]) for name in digits.modalities}
    torch.manual_seed(0)
    return models.build("late", shapes, digits.num_classes, width=32)


def make_client(context: Context) -> Client:
    """The client of a node, whose `node_config` says its part of the data."""
    return client_of(int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))


def client_of(part: int, parts: int) -> Client:
    """A client with every `parts`-th sample, beginning with its own number."""
    split = data.load("av-digits").train
    rows = torch.arange(part, len(split), parts)
    batches = [
        ({name: values[index] for name, values in split.inputs.items()}, split.target[index])
        for index in rows.split(64)
    ]
    return Client(
        ModalEnhancement(network()),
        batches,
        epochs=1,
        make_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    )


client = client_app(make_client)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    settings = context.run_config
    clients = FlowerClients(grid, count=int(settings["clients"]))
    federation = Federation(network().state_dict(), clients, count=int(settings["count"]))
    for number in range(int(settings["rounds"])):
        for choice in federation.round():
            print(f"round {number}: client {choice.client} trained {choice.modality or 'both'}")
    torch.save(federation.weights, str(settings["out"]))
