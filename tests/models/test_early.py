import pytest
import torch
from torch import nn

from agm.models import EarlyFusion, Maxout


@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_maxout_against_a_loop(pieces):
    torch.manual_seed(0)
    layer = Maxout(4, 5, pieces).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    weight, bias = layer.linear.weight.tolist(), layer.linear.bias.tolist()
    expected = [
        [
            max(
                sum(w * v for w, v in zip(weight[j * pieces + k], row, strict=True)) + bias[j * pieces + k]
                for k in range(pieces)
            )
            for j in range(5)
        ]
        for row in x.tolist()
    ]
    torch.testing.assert_close(layer(x), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(layer(x.view(3, 1, 4)), layer(x).view(3, 1, 5))
    assert torch.autograd.gradcheck(layer, x.requires_grad_())


def test_defaults_are_the_papers():
    net = EarlyFusion({"a": nn.Identity(), "v": nn.Identity()}, 6, num_features={"a": 512, "v": 512})
    first, maxout1, norm1, drop1, maxout2, norm2, drop2 = net.trunk
    assert (first.num_features, first.eps) == (1024, 1e-4)
    assert (maxout1.linear.in_features, maxout1.linear.out_features, maxout1.pieces) == (1024, 4096, 2)
    assert (maxout2.linear.in_features, maxout2.linear.out_features, maxout2.pieces) == (2048, 2048, 2)
    assert (norm1.num_features, norm2.num_features, norm1.eps) == (2048, 1024, 1e-5)
    assert (drop1.p, drop2.p) == (0.3, 0.3)
    assert (net.classifier.in_features, net.classifier.out_features) == (1024, 6)


def test_against_its_equation_in_train_mode():
    torch.manual_seed(0)
    net = EarlyFusion(
        {"a": nn.Identity(), "b": nn.Identity()}, 3, hidden=(7,), dropout=0.0, num_features={"a": 2, "b": 3}
    ).double()
    a, b = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)

    def norm(x, eps):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + eps).sqrt()

    maxout = net.trunk[1].linear
    pieces = (norm(torch.cat([a, b], 1), 1e-4) @ maxout.weight.T + maxout.bias).view(6, 7, 2)
    hidden = norm(torch.maximum(pieces[..., 0], pieces[..., 1]), 1e-5)
    torch.testing.assert_close(net(a=a, b=b), hidden @ net.classifier.weight.T + net.classifier.bias)


def test_bad_arguments():
    encoders, widths = {"a": nn.Identity()}, {"a": 2}
    with pytest.raises(ValueError, match="`hidden` to hold at least one width"):
        EarlyFusion(encoders, 3, hidden=(), num_features=widths)
    with pytest.raises(ValueError, match=r"`hidden`.*got 0"):
        EarlyFusion(encoders, 3, hidden=(4, 0), num_features=widths)
    with pytest.raises(ValueError, match="`pieces`"):
        EarlyFusion(encoders, 3, pieces=0, num_features=widths)
    for dropout in (1.0, -0.1, float("nan"), "a"):
        with pytest.raises(ValueError, match="`dropout`"):
            EarlyFusion(encoders, 3, dropout=dropout, num_features=widths)
