import pytest
import torch
from torch import nn

from agm.models import FiLMFusion

WIDTHS = {"a": 3, "b": 5, "c": 2}


def film(names, **options):
    torch.manual_seed(0)
    widths = {n: WIDTHS[n] for n in names}
    net = FiLMFusion({n: nn.Identity() for n in names}, 4, num_features=widths, **options).double()
    return net, {n: torch.randn(6, d, dtype=torch.float64) for n, d in widths.items()}


@pytest.mark.parametrize(
    ("names", "base", "others"),
    [("ab", None, "a"), ("ab", "a", "b"), ("abc", None, "ab"), ("abc", "b", "ac")],
)
def test_against_its_equation(names, base, others):
    net, h = film(names, base=base)
    modulated = h[base or names[-1]]
    width = modulated.shape[1]
    out = torch.cat([h[n] for n in others], 1) @ net.generator.weight.T + net.generator.bias
    gamma, beta = out[:, :width], out[:, width:]
    expected = (gamma * modulated + beta) @ net.classifier.weight.T + net.classifier.bias
    torch.testing.assert_close(net.fuse(h), expected)


def test_alone_it_is_linear():
    net, h = film("a")
    torch.testing.assert_close(net.fuse(h), h["a"] @ net.classifier.weight.T + net.classifier.bias)
    assert len(list(net.parameters())) == 2


def test_unknown_base():
    with pytest.raises(ValueError, match="`base` to be one of a, b, but got 'z'"):
        film("ab", base="z")
