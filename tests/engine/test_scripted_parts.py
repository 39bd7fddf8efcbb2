"""Networks with parts that TorchScript has compiled, and encoders that do more in a call than in `forward`."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .plain_network import ENCODERS, NAMES, OPTIONS, TARGET, Net, inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x)))


def scripted(how: str) -> Net:
    network = Net()
    torch.manual_seed(1)
    encoder: Any = Normed().double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        if how == "traced":
            encoder = torch.jit.trace(encoder.eval(), inputs()["audio"])
        elif how == "frozen":
            encoder = torch.jit.freeze(torch.jit.script(encoder.eval()))
        else:
            encoder = torch.jit.script(encoder)
    network.audio_net = nn.Sequential(encoder, nn.Linear(5, 5).double()) if how == "inside" else encoder
    return network


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("how", ["scripted", "inside", "traced", "frozen"])
def test_parts_of_torchscript(how: str, options: dict[str, Any]) -> None:
    network = scripted(how)
    model = agm.AGM(network, NAMES, **options)
    model.plan()
    model(**inputs(), target=TARGET)
    norms = [value for name, value in network.state_dict().items() if "running_mean" in name]
    assert len(norms) == (how != "frozen")
    assert all(value.count_nonzero() for value in norms) is (how != "traced" or not norms)
    assert agm.verify(model, inputs(), TARGET).ok


def test_of_a_network_of_torchscript_no_encoder_can_be_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.script(Net())
    with pytest.raises(ValueError, match=r"not to be compiled by TorchScript as a whole.*leave `encoders` out"):
        agm.AGM(network, NAMES, encoders=ENCODERS)


def test_a_scripted_norm_depends_on_the_mode() -> None:
    with pytest.raises(ValueError, match=r"layers depend on the mode \(audio_net\.norm\)"):
        agm.AGM(scripted("scripted"), NAMES, masked="shared")(**inputs(), target=TARGET)


class Scaled(Normed):
    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = super().__call__(x) * 2
        return result


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_a_call_adds_to_forward_is_added_once(options: dict[str, Any]) -> None:
    network = Net()
    network.audio_net = Scaled().double()
    model = agm.AGM(network, NAMES, **options)
    expected = network(**inputs())
    torch.testing.assert_close(model(**inputs(), target=TARGET), expected, rtol=0, atol=1e-12)
    assert agm.verify(model, inputs(), TARGET).ok
