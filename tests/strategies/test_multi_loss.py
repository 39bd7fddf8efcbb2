import pytest
import torch
import torch.nn.functional as F

from agm.strategies import MultiLoss, linear_heads

from .networks import assert_same, batch_of, early, gradients, gradients_of, late, take


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_the_loss_is_the_joint_one_and_one_a_modality(combine):
    network, (inputs, target) = late(combine=combine), batch_of()

    def naive() -> torch.Tensor:
        features = {name: network.encoders[name](inputs[name]) for name in inputs}
        total = F.cross_entropy(network.fuse(features), target)
        for place, name in enumerate(features):
            if combine == "sum":
                logits = network.heads[name](features[name])
            else:
                columns = network.classifier.weight[:, 5 * place : 5 * place + 5]
                logits = features[name] @ columns.T + network.classifier.bias / 2
            total = total + 0.5 * F.cross_entropy(logits, target)
        return total

    expected = gradients_of(network, naive)
    take(MultiLoss(network, weight=0.5), inputs, target)
    assert_same(gradients(network), expected)


def test_heads_of_its_own_where_the_fusion_does_not_split():
    network, (inputs, target) = early(), batch_of()
    with pytest.raises(ValueError, match=r"EarlyFusion has no `unimodal_logits.*linear_heads.*AdaptiveAvgPool2d"):
        MultiLoss(network)
    heads = linear_heads(network.widths, 4)
    strategy = MultiLoss(network, heads=heads)
    take(strategy, inputs, target)
    found = {name: p.grad.clone() for name, p in strategy.named_parameters()}
    strategy.zero_grad()
    features = {name: network.encoders[name](inputs[name]) for name in inputs}
    loss = F.cross_entropy(network.fuse(features), target)
    for name, head in heads.items():
        loss = loss + F.cross_entropy(head.linear(features[name]), target)
    loss.backward()
    for name, parameter in strategy.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    assert {name for name in found if name.startswith("heads.audio")} == {
        "heads.audio.linear.weight",
        "heads.audio.linear.bias",
    }


def test_outside_its_window_and_at_weight_0_it_is_joint_training():
    network, (inputs, target) = late(), batch_of()
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    strategy = MultiLoss(network, start=1)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected)
    take(MultiLoss(network, weight=0.0), inputs, target)
    assert_same(gradients(network), expected)
