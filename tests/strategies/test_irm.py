import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import IRM

from .networks import assert_same, batch_of, gradients, gradients_of, late, take


def teachers(modalities):
    return {m: nn.Sequential(nn.Flatten(), nn.Linear(25, 4)) for m in modalities}


@pytest.mark.parametrize("modalities", [2, 3])
def test_the_loss_of_every_sample(modalities):
    network, (inputs, target) = late(modalities), batch_of(modalities)
    given = teachers(inputs)

    def loss() -> torch.Tensor:
        logits = network(**inputs)
        total, extra = F.cross_entropy(logits, target), 0.0
        for i, y in enumerate(target.tolist()):
            taught = {m: given[m](inputs[m])[i].softmax(0).detach() for m in inputs}
            gaps = {m: 1 - float(t[y]) for m, t in taught.items()}
            for m, t in taught.items():
                ratio = modalities * gaps[m] / sum(gaps.values())
                extra = extra + ratio * (t * (t.log() - logits[i].log_softmax(0))).sum()
        return total + 0.7 * extra / len(target)

    expected = gradients_of(network, loss)
    strategy = IRM(network, teachers=given, weight=0.7)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-3, atol=1e-6)
    assert not any(p.requires_grad for p in strategy.teachers.parameters())
    assert strategy.statistics()["coefficient"].mean().item() == pytest.approx(1)


def test_teachers_are_trained_once_from_the_encoders_of_that_moment():
    network, (inputs, target) = late(), batch_of()
    strategy = IRM(network, teacher_epochs=30)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}

    def right():
        strategy.train()
        return sum(int((strategy.teachers[m](inputs[m]).argmax(1) == target).sum()) for m in inputs)

    untrained = right()
    with pytest.raises(ValueError, match="IRM needs the train split"):
        strategy.begin_epoch(0)
    strategy.begin_epoch(0, train=[(inputs, target)])
    assert right() > untrained
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    taught = [p.clone() for p in strategy.teachers.parameters()]
    strategy.begin_epoch(1)
    take(strategy, inputs, target)
    assert all(torch.equal(a, b) for a, b in zip(taught, strategy.teachers.parameters(), strict=True))
    again = IRM(late())
    again.load_state_dict(strategy.state_dict())
    again.begin_epoch(2)  # needs no split
    assert all(torch.equal(a, b) for a, b in zip(taught, again.teachers.parameters(), strict=True))


def test_certain_teachers_weigh_alike_and_others_are_refused():
    network, (inputs, target) = late(), batch_of()

    class Certain(nn.Module):
        def forward(self, x):
            return 1e4 * F.one_hot(target, 4).float()

    strategy = IRM(network, teachers={m: Certain() for m in inputs})
    take(strategy, inputs, target)
    assert strategy.statistics()["coefficient"].tolist() == [1, 1]
    assert all(g.isfinite().all() for g in gradients(network).values())
    with pytest.raises(ValueError, match="`teachers` to map each of"):
        IRM(network, teachers={"audio": Certain()})
