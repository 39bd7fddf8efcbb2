import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import UMT, Teacher

from .networks import Encoder, assert_same, batch_of, early, gradients, gradients_of, late, take


@pytest.mark.parametrize("build_network", [late, early])
@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_number_by_number(build_network, modalities):
    network, (inputs, target) = build_network(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    teachers = {m: Teacher(Encoder(), nn.Linear(5, 4)).double() for m in inputs}

    def loss() -> torch.Tensor:
        total = F.cross_entropy(network(**inputs), target)
        for m in inputs:
            taught = teachers[m].encoder.eval()(inputs[m]).detach()
            learnt = network.encoders[m](inputs[m])
            squares = [(learnt[i, d] - taught[i, d]) ** 2 for i in range(8) for d in range(5)]
            total = total + 0.7 * sum(squares) / 40
        return total

    expected = gradients_of(network, loss)
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(UMT(network, teachers=teachers, weight=0.7), inputs, target)
    found = gradients(network)
    assert_same(found, expected, rtol=1e-9, atol=1e-12)
    key = "encoders.audio.linear.weight"
    assert not torch.allclose(found[key], plain[key], rtol=1e-3)


def test_outside_the_window_the_loss_is_the_joint_one():
    network, (inputs, target) = late(), batch_of()
    strategy = UMT(network, start=1)
    strategy.begin_epoch(0)  # needs no split yet
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(strategy, inputs, target)
    assert_same(gradients(network), expected)
    assert strategy.extra_epochs == 0
