import pytest
import torch
from torch.nn import functional as F

from agm.models import SmallCNN


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("size", [(8, 8), (40, 80), (5, 7), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_against_its_equation_in_eval_mode(size, channels):
    torch.manual_seed(0)
    net = SmallCNN(channels, 8).double().train()
    net(images(4, channels, 12, 12))  # running statistics that are not 0 and 1
    net.eval()
    x = images(2, channels, *size)
    expected = x
    for conv, norm in zip(net.convolutions, net.norms, strict=True):
        expected = F.conv2d(expected, conv.weight, stride=2, padding=1)
        mean, variance = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
        expected = ((expected - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    torch.testing.assert_close(net(x), expected.mean(dim=(2, 3)))
    # The tokens are the same map, position by position.
    net.pool = None
    torch.testing.assert_close(net(x), expected.flatten(2).transpose(1, 2))


def test_frames_are_averaged_or_listed():
    torch.manual_seed(0)
    net = SmallCNN(3, 8).double().eval()
    video = images(2, 5, 3, 8, 8)
    apart = torch.stack([net(video[:, t]) for t in range(5)], dim=1)
    torch.testing.assert_close(net(video), apart.mean(dim=1))
    torch.testing.assert_close(net(video[:, :1]), net(video[:, 0]))
    net.pool = None
    torch.testing.assert_close(net(video), torch.cat([net(video[:, t]) for t in range(5)], dim=1))


def test_gradients():
    torch.manual_seed(0)
    net = SmallCNN(1, 4).double()
    assert torch.autograd.gradcheck(net, images(2, 1, 6, 6).requires_grad_())


def test_bad_arguments_and_inputs():
    with pytest.raises(ValueError, match="`in_channels`"):
        SmallCNN(0)
    with pytest.raises(ValueError, match="`num_features` to be an integer of at least 4"):
        SmallCNN(1, 2)
    with pytest.raises(ValueError, match="`pool` to be 'mean' or None"):
        SmallCNN(1, pool="max")
    for shape in ((2, 3, 8, 8), (1, 8, 8), (2, 8)):
        with pytest.raises(ValueError, match=r"images \(B, 1, H, W\) or frames .* but got \("):
            SmallCNN(1)(torch.zeros(shape))
