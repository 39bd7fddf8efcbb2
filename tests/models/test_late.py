import pytest
import torch
from torch import nn

from agm.models import LateFusion, fusions


def fused(combine):
    torch.manual_seed(0)
    widths = {"a": 3, "b": 5, "c": 2}
    net = LateFusion({n: nn.Identity() for n in widths}, 4, combine=combine, num_features=widths).double()
    return net, {n: torch.randn(6, d, dtype=torch.float64) for n, d in widths.items()}


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_unimodal_logits_sum_to_the_joint_logits(combine):
    net, features = fused(combine)
    terms = net.unimodal_logits(features)
    assert list(terms) == ["a", "b", "c"]
    torch.testing.assert_close(sum(terms.values()), net.fuse(features))
    # ... and each depends on its own modality alone.
    moved = net.unimodal_logits({**features, "b": features["b"] + 1})
    torch.testing.assert_close(moved["a"], terms["a"], rtol=0, atol=0)
    torch.testing.assert_close(moved["c"], terms["c"], rtol=0, atol=0)
    assert not torch.allclose(moved["b"], terms["b"])


def test_concat_against_its_equation():
    net, features = fused("concat")
    weight, bias = net.classifier.weight, net.classifier.bias
    torch.testing.assert_close(net.fuse(features), torch.cat(list(features.values()), 1) @ weight.T + bias)
    terms = net.unimodal_logits(features)
    torch.testing.assert_close(terms["a"], features["a"] @ weight[:, :3].T + bias / 3)
    torch.testing.assert_close(terms["b"], features["b"] @ weight[:, 3:8].T + bias / 3)
    torch.testing.assert_close(terms["c"], features["c"] @ weight[:, 8:].T + bias / 3)


def test_sum_against_its_equation():
    net, features = fused("sum")
    terms = {n: features[n] @ net.heads[n].weight.T + net.heads[n].bias for n in features}
    torch.testing.assert_close(net.unimodal_logits(features), terms)
    torch.testing.assert_close(net.fuse(features), terms["a"] + terms["b"] + terms["c"])


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_split_head_is_differentiable(combine):
    net, features = fused(combine)
    net.fuse(features).square().sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    heads = net.split_head()
    (sum(features[n] @ w.T + b for n, (w, b) in heads.items())).square().sum().backward()
    torch.testing.assert_close([p.grad for p in net.parameters()], expected)


def test_late_sum_is_the_same_network_as_combine_sum():
    net, features = fused("sum")
    other = fusions["late-sum"]({n: nn.Identity() for n in features}, 4, num_features=net.widths).double()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other.fuse(features), net.fuse(features), rtol=0, atol=0)


def test_unknown_combine():
    with pytest.raises(ValueError, match="`combine` to be 'concat' or 'sum', but got 'mean'"):
        LateFusion({"a": nn.Identity()}, 2, combine="mean", num_features={"a": 1})
