import pytest
import torch
import torch.nn.functional as F

from agm.strategies import DUS

from .networks import assert_same, batch_of, gradients, gradients_of, late, take, true_class_probabilities


def test_the_modality_that_is_behind_trains_on_more_samples():
    network, mean = late(3), {}
    strategy = DUS(network, share=0.5, weight=2.0)
    for step in range(3):
        inputs, target = batch_of(3, samples=12, seed=step)
        scores = true_class_probabilities(network, inputs, target)
        mean = {m: (step * mean.get(m, 0.0) + s) / (step + 1) for m, s in scores.items()}
        room = sum(1 - s for s in mean.values())
        numbers = {m: min(max(round(18 * (1 - s) / room), 1), 12) for m, s in mean.items()}

        def loss(inputs=inputs, target=target, numbers=numbers) -> torch.Tensor:
            features = {m: network.encoders[m](inputs[m]) for m in inputs}
            alone = network.unimodal_logits(features)
            total = F.cross_entropy(network.fuse(features), target)
            for m, n in numbers.items():
                total = total + 2.0 * 3 / 18 * F.cross_entropy(alone[m][:n], target[:n], reduction="sum")
            return total

        expected = gradients_of(network, loss)
        take(strategy, inputs, target)
        told = strategy.statistics()
        assert told["score"].tolist() == pytest.approx(list(mean.values()), rel=1e-4)
        assert told["samples"].tolist() == list(numbers.values())
        assert told["coefficient"].tolist() == pytest.approx([n / 6 for n in numbers.values()])
        assert_same(gradients(network), expected, rtol=1e-3, atol=1e-6)
        torch.optim.SGD(network.parameters(), lr=0.5).step()
    again = DUS(late(3))
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.confidence, strategy.confidence)


def test_certain_modalities_share_alike():
    """No division by 0 where all are certain."""
    strategy = DUS(late())
    strategy.confidence.fill_(1.0)
    strategy.count.fill_(10**12)
    take(strategy, *batch_of())
    assert strategy.statistics()["samples"].tolist() == [4, 4]
