"""Shared mode, in which an absent row goes through its encoder alone: norms without statistics, small batches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

NAMES = ("audio", "visual")
PATHS = {name: f"encoders.{name}" for name in NAMES}


class Own(nn.Module):
    """A norm in a module of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x)).tanh()  # type: ignore[no-any-return]


def flat() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Tanh(), nn.Linear(6, 6))


def spatial() -> nn.Module:
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 6, 2), norm, nn.Tanh(), nn.Flatten(), nn.Linear(24, 6))


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh())


class Net(nn.Module):
    def __init__(self, make: Any, product: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": make(), "visual": plain()})
        self.product = product
        self.head = nn.Linear(6 if product else 12, 3)

    def fuse(self, features: dict[str, Tensor]) -> Any:
        audio, visual = features["audio"], features["visual"]
        return self.head(audio * visual.sigmoid() if self.product else torch.cat([audio, visual], 1))

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.fuse({"audio": self.encoders["audio"](audio), "visual": self.encoders["visual"](visual)})


def batch(size: int) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(size)
    return {name: torch.randn(size, 5, dtype=torch.float64) for name in NAMES}, torch.arange(size) % 3


@pytest.mark.parametrize("encoders", [None, PATHS], ids=["protocol", "paths"])
@pytest.mark.parametrize("passes", ["auto", "two"])
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("make", [flat, spatial, Own])
@pytest.mark.parametrize("size", [2, 3, 6])
def test_a_norm_without_running_statistics_sees_absent_rows_as_in_a_batch_of_them(
    size: int, make: Any, product: bool, passes: Any, encoders: dict[str, str] | None
) -> None:
    """One alone has no statistics, which torch refuses; in the definition there are as many as samples."""
    model = agm.AGM(Net(make, product).double(), NAMES, masked="shared", passes=passes, encoders=encoders)
    inputs, target = batch(size)
    for _ in range(2):
        model(**inputs, target=target)
    assert agm.verify(model, inputs, target).ok


@pytest.mark.parametrize("encoders", [None, PATHS], ids=["protocol", "paths"])
@pytest.mark.parametrize("make", [flat, spatial, plain])
@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("sizes", [(7, 1, 7, 2, 1), (1, 7, 1, 2), (2, 7, 2)])
def test_kept_features_serve_batches_of_other_sizes(
    sizes: tuple[int, ...], product: bool, make: Any, encoders: dict[str, str] | None
) -> None:
    """Of a batch of one sample an absent row has the shape of the present one, and was taken for it."""
    network = Net(make, product).double()
    options: dict[str, Any] = {"masked": "shared", "absent_gradient": False, "encoders": encoders}
    kept, anew = (agm.AGM(network, NAMES, **options, absent_refresh=refresh) for refresh in (10, 1))
    for size in sizes:
        if size == 1 and make is flat:
            continue  # torch refuses a single sample
        inputs, target = batch(size)
        found = []
        for model in (kept, anew):
            network.zero_grad()
            nn.functional.cross_entropy(model(**inputs, target=target), target).backward()
            gradients = [x.grad.clone() for x in network.parameters() if x.grad is not None]
            found.append([*gradients, model.modulator.state.coefficients.clone()])
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
