import pytest
import torch
from torch.nn import functional as F

from agm.models import ResNet18
from agm.models.resnet import BasicBlock


def parameter_names():
    """torchvision's names for resnet18, `fc` left out."""

    def norm(prefix):
        return [f"{prefix}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]

    names = ["conv1.weight", *norm("bn1")]
    for layer in range(1, 5):
        for block in range(2):
            at = f"layer{layer}.{block}"
            names += [f"{at}.conv1.weight", *norm(f"{at}.bn1"), f"{at}.conv2.weight", *norm(f"{at}.bn2")]
            if layer > 1 and block == 0:
                names += [f"{at}.downsample.0.weight", *norm(f"{at}.downsample.1")]
    return names


@pytest.mark.parametrize(("channels", "count"), [(3, 11_176_512), (1, 11_176_512 - 2 * 64 * 49)])
def test_names_and_count_are_torchvisions(channels, count):
    net = ResNet18(channels)
    assert list(net.state_dict()) == parameter_names()
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.num_features == 512
    assert net.layer4[1].conv2.weight.shape == (512, 512, 3, 3)
    assert net.layer3[0].downsample[0].stride == net.layer3[0].conv1.stride == (2, 2)
    assert net.layer1[0].downsample is None


def batch_norm(x, norm):
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    x = (x - mean) / (variance + 1e-5).sqrt()
    return x * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_basic_block_against_its_equation(stride):
    torch.manual_seed(0)
    block = BasicBlock(4, 4 * stride, stride).double()
    for p in block.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64)
    out = batch_norm(F.conv2d(x, block.conv1.weight, stride=stride, padding=1), block.bn1).clamp(min=0)
    out = batch_norm(F.conv2d(out, block.conv2.weight, padding=1), block.bn2)
    identity = x
    if stride == 2:
        identity = batch_norm(F.conv2d(x, block.downsample[0].weight, stride=2), block.downsample[1])
    torch.testing.assert_close(block(x), (out + identity).clamp(min=0))


def test_whole_network():
    """Stem, layers, pooling over positions and frames, tokens."""
    torch.manual_seed(0)
    net = ResNet18(1).eval()
    video = torch.randn(2, 3, 1, 40, 70)
    with torch.no_grad():
        frame = video[:, 0]
        x = F.relu(net.bn1(F.conv2d(frame, net.conv1.weight, stride=2, padding=3)))
        x = F.max_pool2d(x, 3, 2, 1)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
        assert x.shape == (2, 512, 2, 3)
        torch.testing.assert_close(net(frame), x.mean((2, 3)))
        apart = torch.stack([net(video[:, t]) for t in range(3)], 1)
        torch.testing.assert_close(net(video), apart.mean(1), rtol=1e-4, atol=1e-5)
        net.pool = None
        tokens = net(video)
        torch.testing.assert_close(tokens[:, :6], x.flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)
        assert tokens.shape == (2, 18, 512)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"images \(B, 3, H, W\).*got \(2, 1, 32, 32\)"):
        ResNet18()(torch.zeros(2, 1, 32, 32))
