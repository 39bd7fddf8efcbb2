import pytest
import torch
from torch import nn

from agm.models import GatedFusion

WIDTHS = {"a": 3, "b": 5, "c": 2}


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_against_its_equation(names):
    torch.manual_seed(0)
    widths = {n: WIDTHS[n] for n in names}
    net = GatedFusion({n: nn.Identity() for n in names}, 4, width=7, num_features=widths).double()
    x = {n: torch.randn(6, d, dtype=torch.float64) for n, d in widths.items()}
    everything = torch.cat(list(x.values()), 1)
    hidden = torch.zeros(6, 7, dtype=torch.float64)
    for m, name in enumerate(names):
        gate = 1 / (1 + torch.exp(-everything @ net.gates.weight[7 * m : 7 * (m + 1)].T))
        hidden = hidden + gate * torch.tanh(x[name] @ net.projections[name].weight.T)
    torch.testing.assert_close(net.fused_features(x), hidden)
    torch.testing.assert_close(net.fuse(x), hidden @ net.classifier.weight.T + net.classifier.bias)


def test_width_is_the_largest_by_default():
    net = GatedFusion({n: nn.Identity() for n in WIDTHS}, 4, num_features=WIDTHS)
    assert net.classifier.in_features == 5
    with pytest.raises(ValueError, match="`width`"):
        GatedFusion({n: nn.Identity() for n in WIDTHS}, 4, width=0, num_features=WIDTHS)
