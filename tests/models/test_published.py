"""Encoders of published recipes, and sets of encoders by name."""

import pytest
import torch
from torch import nn

from agm import models
from agm.models import FirstTokenTransformer, LeNet, ResNet18, TextEncoder


def test_lenet_is_multibench_s():
    # 28 x 28 digits end in 8 times, spectrograms of 112 x 112 in 32 times the channels, one place each.
    for side, blocks, features in ((28, 4, 48), (112, 6, 192)):
        network = LeNet(1, side)
        assert network.num_features == features
        assert [c.kernel_size for c in network.convolutions] == [(5, 5)] + [(3, 3)] * (blocks - 1)
        assert network(torch.randn(2, 1, side, side)).shape == (2, features)


def test_lenet_reads_frames_as_their_mean():
    torch.manual_seed(0)
    network = LeNet(3, 16).eval()
    frames = torch.randn(2, 4, 3, 16, 20)
    expected = torch.stack([network(frames[:, t]) for t in range(4)]).mean(0)
    torch.testing.assert_close(network(frames), expected)


def test_first_token_is_torch_s_transformer():
    torch.manual_seed(0)
    network = FirstTokenTransformer(5, width=8, num_heads=2, num_layers=2, hidden=16).eval()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    stack.load_state_dict({name: value for name, value in network.state_dict().items() if name.startswith("layers")})
    x = torch.randn(3, 6, 5)
    torch.testing.assert_close(network(x), stack(network.embedding(x))[:, 0])
    # Padding behind a row changes nothing, whatever it holds.
    mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2, [False] * 3 + [True] * 3])
    short = torch.cat([network(x[i : i + 1, : int((~mask[i]).sum())]) for i in range(3)])
    torch.testing.assert_close(network({"x": x, "padding_mask": mask}), short)
    with pytest.raises(ValueError, match=r"a float sequence \(B, T, 5\) with T >= 1, but got"):
        network(torch.zeros(3, 6, 4))


def test_sets_of_encoders():
    shapes = {"audio": (1, 40, 32), "visual": (3, 3, 32, 32)}
    network = models.build("late", shapes, 6, encoders="resnet18")
    assert all(isinstance(encoder, ResNet18) for encoder in network.encoders.values())
    assert [encoder.in_channels for encoder in network.encoders.values()] == [1, 3]
    assert network(audio=torch.randn(2, 1, 40, 32), visual=torch.randn(2, 3, 3, 32, 32)).shape == (2, 6)
    # The hidden widths of early fusion follow what the encoders give, as in the paper: 1024, 2048, 1024.
    early = models.build("early", shapes, 6, encoders="resnet18")
    widths = early.trunk[0].num_features, early.trunk[2].num_features, early.classifier.in_features
    assert widths == (1024, 2048, 1024)
    words = {"t": 256}
    mixed = models.build("late", {"s": (7, 5), "t": (9,)}, 2, width=8, encoders="transformer-2", vocabularies=words)
    assert len(mixed.encoders["s"].layers) == 2
    assert isinstance(mixed.encoders["t"], TextEncoder)
    for kind, shape in (("resnet18", (7, 5)), ("lenet", (5,)), ("transformer-8", (1, 8, 8)), ("lenet", (1, 1, 9))):
        with pytest.raises(ValueError, match=r"modality 'a' to be \(.*, but got"):
            models.build("late", {"a": shape}, 2, encoders=kind)
    with pytest.raises(ValueError, match=r"`encoders` to be one of small, resnet18, lenet, .*, but got 'vit'"):
        models.build("late", {"a": (3,)}, 2, encoders="vit")


def test_initial_weights_by_rule():
    torch.manual_seed(0)
    network = models.build("late", {"image": (3, 8, 8)}, 200, width=64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    models.initialise_(network, "torch")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    models.initialise_(network, "xavier")
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"classifier.weight", *(f"encoders.image.convolutions.{i}.weight" for i in range(3))}
    weight = network.classifier.weight
    assert weight.std().item() == pytest.approx((2 / (64 + 200)) ** 0.5, rel=0.03)
    last = network.encoders["image"].convolutions[2].weight  # (64, 32, 3, 3), fan out 576
    assert last.abs().max().item() == pytest.approx((6 / 576) ** 0.5, rel=0.01)
    with pytest.raises(ValueError, match="`rule` to be 'torch' or 'xavier', but got 'he'"):
        models.initialise_(network, "he")
