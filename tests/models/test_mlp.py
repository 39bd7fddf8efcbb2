import pytest
import torch

from agm.models import MLPEncoder


def test_against_its_equation():
    torch.manual_seed(0)
    net = MLPEncoder(5, num_features=3, hidden=7).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    first, second = net.layers[0], net.layers[3]
    hidden = (x @ first.weight.T + first.bias).clamp(min=0)
    torch.testing.assert_close(net(x), (hidden @ second.weight.T + second.bias).clamp(min=0))
    assert net.num_features == 3


def test_bad_arguments():
    for options in ({"in_features": 0}, {"in_features": 3, "num_features": 0}, {"in_features": 3, "hidden": -1}):
        with pytest.raises(ValueError, match=f"`{list(options)[-1]}`"):
            MLPEncoder(**options)
