import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import G2D, Teacher

from .networks import Encoder, assert_same, batch_of, belongs, gradients, gradients_of, late, take


def case(modalities=2):
    network, (inputs, target) = late(modalities).double(), batch_of(modalities)
    inputs = {m: x.double() for m, x in inputs.items()}
    return network, inputs, target, {m: Teacher(Encoder(), nn.Linear(5, 4)).double() for m in inputs}


class Says(nn.Module):
    """A head of fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, feature):
        return self.logits


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_of_every_sample(modalities):
    network, inputs, target, teachers = case(modalities)

    def loss() -> torch.Tensor:
        joint = network(**inputs)
        total = F.cross_entropy(joint, target)
        for m, teacher in teachers.items():
            taught = teacher.encoder.eval()(inputs[m]).detach()
            for i in range(8):
                wanted = (teacher.head(taught[i]) / 2.5).softmax(0).detach()
                said = (joint[i] / 2.5).softmax(0)
                total = total + 0.3 * 2.5**2 * (wanted * (wanted.log() - said.log())).sum() / 8
            total = total + 0.6 * (network.encoders[m](inputs[m]) - taught).square().mean()
        return total

    expected = gradients_of(network, loss)
    strategy = G2D(network, teachers=teachers, logits=0.3, features=0.6, temperature=2.5, prioritise=False)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ahead", ["audio", "image"])
@pytest.mark.parametrize("convolutions_only", [False, True])
def test_the_modality_whose_teacher_is_surer_waits(ahead, convolutions_only):
    """Scores by hand: two samples whose true class has probability 1/4 and 1/2 by one, 1/4 and 3/4 by the other."""
    network, inputs, _, teachers = case()
    inputs, target = {m: x[:2] for m, x in inputs.items()}, torch.tensor([0, 1])
    rows = {0.5: [[0.0] * 4, [0.0, math.log(3.0), 0.0, 0.0]], 0.75: [[0.0] * 4, [0.0, math.log(9.0), 0.0, 0.0]]}
    for m, teacher in teachers.items():
        teacher.head = Says(torch.tensor(rows[0.75 if m == ahead else 0.5], dtype=torch.float64))
    free = G2D(network, teachers=teachers, prioritise=False)
    take(free, inputs, target)
    expected = gradients(network)
    strategy = G2D(network, teachers=teachers, convolutions_only=convolutions_only, stop=151)
    strategy.begin_epoch(150)
    take(strategy, inputs, target)
    for name, value in gradients(network).items():
        waits = belongs(name, ahead) and (value.dim() == 4 or not convolutions_only)
        torch.testing.assert_close(value, torch.zeros_like(value) if waits else expected[name])
    found = strategy.statistics()
    scores = {m: 0.5 if m == ahead else 0.375 for m in inputs}
    assert found["score"].tolist() == pytest.approx(list(scores.values()))
    assert found["coefficient"].tolist() == [0.0 if m == ahead else 1.0 for m in inputs]
    strategy.begin_epoch(151)  # behind the window the distillation goes on
    take(strategy, inputs, target)
    assert_same(gradients(network), expected)


def test_equal_teachers_wait_for_nobody():
    network, inputs, target, teachers = case()
    for teacher in teachers.values():
        teacher.head = Says(torch.zeros(8, 4, dtype=torch.float64))
    strategy = G2D(network, teachers=teachers)
    take(strategy, inputs, target)
    assert strategy.statistics()["coefficient"].tolist() == [1, 1]


def test_what_cannot_be():
    network, _, _, teachers = case(3)
    with pytest.raises(ValueError, match="two modalities, between which G2D prioritises, but got 3"):
        G2D(network, teachers=teachers)
    network, _, _, teachers = case()
    with pytest.raises(ValueError, match="`temperature` to be a finite number above 0, but got 0"):
        G2D(network, teachers=teachers, temperature=0)
    with pytest.raises(ValueError, match="`features` to be a number >= 0"):
        G2D(network, teachers=teachers, features=-1)
