"""What every fusion owes whoever calls `encoders` and `fuse` apart."""

import copy

import pytest
import torch
from torch import nn

from agm.models import FactorisedNetwork, build, fusions

SHAPES = {"audio": (1, 9, 12), "image": (3, 8, 8), "text": (5, 6), "table": (7,)}


def network(fusion, count, **kwargs):
    torch.manual_seed(0)
    return build(fusion, dict(list(SHAPES.items())[:count]), num_classes=4, width=8, **kwargs)


def batch(network, rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    return {
        name: torch.randn(rows, *SHAPES[name], generator=generator, dtype=torch.float64).to(dtype)
        for name in network.encoders
    }


def without_dropout(network):
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return network


every_fusion = pytest.mark.parametrize("fusion", list(fusions))
one_to_four = pytest.mark.parametrize("count", [1, 2, 3, 4])


@every_fusion
@one_to_four
def test_forward_is_fuse_of_the_encoders(fusion, count):
    net = network(fusion, count).eval()
    inputs = batch(net, 3)
    features = {name: net.encoders[name](inputs[name]) for name in net.encoders}
    expected = net.fuse(features)
    assert isinstance(net, FactorisedNetwork)
    assert net.modalities == tuple(SHAPES)[:count]
    assert expected.shape == (3, 4)
    torch.testing.assert_close(net(**inputs), expected, rtol=0, atol=0)
    # Neither the order of the keywords nor that of the features matters.
    torch.testing.assert_close(net(**dict(reversed(inputs.items()))), expected, rtol=0, atol=0)
    torch.testing.assert_close(net.fuse(dict(reversed(features.items()))), expected, rtol=0, atol=0)


@every_fusion
def test_logits_are_a_linear_reading_of_the_fused_features(fusion):
    net = network(fusion, 3).eval()
    features = {name: net.encoders[name](x) for name, x in batch(net, 40).items()}
    fused, logits = net.fused_features(features), net.fuse(features)
    design = torch.cat([fused, torch.ones(40, 1)], dim=1).double()
    fit = design @ torch.linalg.lstsq(design, logits.double(), driver="gelsd").solution
    torch.testing.assert_close(fit, logits.double(), rtol=1e-4, atol=1e-5)


@every_fusion
@one_to_four
def test_fuse_treats_rows_alike(fusion, count):
    """All subsets in one batch, features of present rows beside one absent row, give each row's own logits."""
    net = network(fusion, count).double().eval()
    inputs = batch(net, 3, torch.float64)
    present = {name: net.encoders[name](inputs[name]) for name in inputs}
    absent = {name: net.encoders[name](torch.zeros_like(inputs[name][:1])) for name in inputs}
    subsets = range(1, 2**count)
    rows = {
        name: torch.cat([present[name] if s >> bit & 1 else absent[name].expand_as(present[name]) for s in subsets])
        for bit, name in enumerate(inputs)
    }
    together = net.fuse(rows)
    for s, logits in zip(subsets, together.split(3), strict=True):
        masked = {name: x * (s >> bit & 1) for bit, (name, x) in enumerate(inputs.items())}
        torch.testing.assert_close(logits, net(**masked))
    one_by_one = [net.fuse({name: x[row : row + 1] for name, x in rows.items()}) for row in range(3)]
    torch.testing.assert_close(together[:3], torch.cat(one_by_one))


@every_fusion
@one_to_four
@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(fusion, count, training):
    net = network(fusion, count).train(training)
    nn.functional.cross_entropy(net(**batch(net, 6)), torch.arange(6) % 4).backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@every_fusion
def test_modes_differ_by_batch_norm_and_dropout_alone(fusion):
    """With dropout at 0 and running statistics in use, train and eval mode agree, gradients included."""
    net = without_dropout(network(fusion, 3)).double()
    inputs, gradients = batch(net, 4, torch.float64), []
    for training in (True, False):
        net.train(training)
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        net.zero_grad()
        logits = net(**inputs)
        logits.square().sum().backward()
        gradients.append((logits.detach(), [p.grad.clone() for p in net.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
    with torch.no_grad():  # where torch may take its fused attention
        torch.testing.assert_close(net(**inputs), gradients[0][0])


@every_fusion
def test_float64_agrees_with_float32(fusion):
    net = network(fusion, 4).eval()
    single = net(**batch(net, 3))
    double = net.double()(**batch(net, 3, torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@every_fusion
def test_state_dict_and_copies_carry_everything(fusion):
    net = network(fusion, 3)
    net(**batch(net, 8))  # moves the running statistics
    torch.manual_seed(1)
    other = build(fusion, dict(list(SHAPES.items())[:3]), num_classes=4, width=8)
    inputs = batch(net, 3)
    expected = net.eval()(**inputs)
    assert not torch.allclose(other.eval()(**inputs), expected)
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(**inputs), expected, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(net)(**inputs), expected, rtol=0, atol=0)


@every_fusion
def test_parameters_may_come_from_outside(fusion):
    """As plain tensors, which is how torch.func passes them."""
    net = network(fusion, 4).eval()
    inputs = batch(net, 3)
    tensors = {name: p.detach() * 2 for name, p in net.named_parameters()}
    out = torch.func.functional_call(net, tensors, kwargs=inputs)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    torch.testing.assert_close(out, net(**inputs))


@every_fusion
def test_parameters_are_contiguous(fusion):
    net = network(fusion, 4)
    net(**batch(net, 4)).sum().backward()
    assert all(p.is_contiguous() and p.grad.is_contiguous() for p in net.parameters())


@every_fusion
def test_traces_without_graph_breaks(fusion):
    net = network(fusion, 3).eval()
    inputs = batch(net, 3)
    traced = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(**inputs), net(**inputs))


@every_fusion
def test_wrong_modalities_are_named(fusion):
    net = network(fusion, 2)
    inputs = batch(net, 2)
    with pytest.raises(TypeError, match="keyword arguments, but image missing; sound unknown"):
        net(audio=inputs["audio"], sound=inputs["image"])
    with pytest.raises(TypeError, match="but text unknown"):
        net(**inputs, text=inputs["audio"])
    with pytest.raises(TypeError, match="but audio, image missing"):
        net()
    with pytest.raises(ValueError, match="`features` to hold audio, image, but image missing"):
        net.fuse({"audio": net.encoders["audio"](inputs["audio"])})
    with pytest.raises(ValueError, match="feature of modality 'audio' to be"):
        net.fuse({"audio": torch.zeros(2, 9), "image": torch.zeros(2, 8)})
