import math

import pytest
import torch
import torch.nn.functional as F

from agm.strategies import InfoReg

from .networks import assert_same, batch_of, belongs, gradients, gradients_of, late, take, true_class_probabilities


def joint_gradients(network, inputs, target):
    return gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))


def squared_norm(found, modality) -> float:
    return sum(float(value.square().sum()) for name, value in found.items() if belongs(name, modality))


def pulls(scores: dict[str, float], beta: float) -> dict[str, float]:
    """alpha_m without the window; 0 where a modality is ahead of none."""
    found = {}
    for name, score in scores.items():
        behind = [score - other for other in scores.values() if other < score]
        gap = sum(behind) / len(behind) if behind else 0.0
        found[name] = math.exp(beta * math.tanh(gap)) if gap > 0 else 0.0
    return found


def at_epoch_2(strategy, network, traces=((1.0, 1.0), (2.0, 2.0)), steps=1):
    """A strategy inside its window, and the weights at the end of the epoch before."""
    strategy.traces.copy_(torch.tensor(traces, dtype=torch.float64))
    strategy.epochs.fill_(2)
    strategy.begin_epoch(2)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return before


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("factors", [None, 0.5])
def test_an_encoder_that_is_ahead_is_pulled_back(modalities, factors):
    network, (inputs, target) = late(modalities), batch_of(modalities)
    factors = None if factors is None else {name: factors for name in inputs}
    strategy = InfoReg(network, beta=1.5, factors=factors)
    before = at_epoch_2(strategy, network, torch.tensor([[1.0] * modalities, [2.0] * modalities]).tolist())
    expected = joint_gradients(network, inputs, target)
    strength = pulls(true_class_probabilities(network, inputs, target), 1.5)
    assert sorted(value > 0 for value in strength.values()) == [False] + [True] * (modalities - 1)
    weights = dict(network.named_parameters())
    for name in expected:
        for modality, alpha in strength.items():
            if belongs(name, modality):
                expected[name] += (0.5 if factors else 1) * alpha * (weights[name].detach() - before[name])
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-4, atol=1e-6)


def test_summed_scores():
    network, (inputs, target) = late(), batch_of()
    strategy = InfoReg(network, summed_scores=True)
    at_epoch_2(strategy, network)
    scores = true_class_probabilities(network, inputs, target)
    take(strategy, inputs, target)
    expected = pulls({name: 8 * score for name, score in scores.items()}, 0.9)
    assert strategy.statistics()["coefficient"].tolist() == pytest.approx(list(expected.values()), rel=1e-5)


@pytest.mark.parametrize(
    ("traces", "epochs", "open_to"),
    [
        (((1.0, 1.0), (2.0, 2.0)), 2, (True, True)),
        (((1.0, 1.95), (2.0, 2.0)), 2, (True, False)),  # 2.5 % more is below the threshold of 4 %
        (((2.0, 2.0), (1.0, 1.0)), 2, (False, False)),
        (((0.0, 0.0), (2.0, 2.0)), 1, (False, False)),  # only one epoch has been measured
    ],
)
def test_the_window_of_each_encoder(traces, epochs, open_to):
    strategy = InfoReg(late())
    strategy.traces.copy_(torch.tensor(traces, dtype=torch.float64))
    strategy.epochs.fill_(epochs)
    strategy.begin_epoch(5)
    assert tuple(strategy._window.tolist()) == open_to


@pytest.mark.parametrize("resumed", [False, True])
def test_traces_are_means_of_squared_norms(resumed):
    network = late()
    strategy = InfoReg(network)
    expected = []
    for epoch in range(3):
        strategy.begin_epoch(epoch)
        rows = []
        for step in range(2):
            inputs, target = batch_of(seed=10 * epoch + step)
            found = joint_gradients(network, inputs, target)
            rows.append([squared_norm(found, name) for name in inputs])
            take(strategy, inputs, target)
        strategy.end_epoch()
        expected.append([sum(column) / 2 for column in zip(*rows, strict=True)])
        if resumed:
            again = InfoReg(network)
            again.load_state_dict(strategy.state_dict())
            strategy = again
    assert strategy.epochs.item() == 3
    torch.testing.assert_close(strategy.traces, torch.tensor(expected[-2:], dtype=torch.float64), rtol=1e-4, atol=0)


def test_the_unimodal_losses_and_no_pull_before_epoch_2():
    network, (inputs, target) = late(), batch_of()

    def loss() -> torch.Tensor:
        features = {name: network.encoders[name](inputs[name]) for name in inputs}
        terms = network.unimodal_logits(features).values()
        return F.cross_entropy(network.fuse(features), target) + sum(F.cross_entropy(u, target) for u in terms)

    expected = gradients_of(network, loss)
    strategy = InfoReg(network, multi_loss=True)
    strategy.begin_epoch(0)
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-4, atol=1e-6)


def test_a_step_before_the_first_epoch_is_an_error():
    with pytest.raises(RuntimeError, match="begin_epoch"):
        take(InfoReg(late()), *batch_of())


def test_the_released_window_goes_by_one_trace():
    """Twelve epochs of two batches, the trace and its sums followed by hand."""
    network, modality = late(), "audio"
    strategy = InfoReg(
        network, window_of=modality, threshold=0.05, summed_scores=True, factors={"audio": 0.95, "image": 0}
    )
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.05)
    weights = [network.encoders[modality].conv.weight, network.encoders[modality].linear.weight]
    traces, seen = [], []
    for epoch in range(13):
        strategy.begin_epoch(epoch)
        newest, before = sum(traces[-10:]), sum(traces[-11:-1])
        is_open = epoch == 0 or (newest - before) / newest > 0.05
        seen.append(is_open)
        assert strategy._window.tolist() == [is_open, is_open]
        squares = [torch.zeros_like(w) for w in weights]
        for seed in (2 * epoch, 2 * epoch + 1):
            take(strategy, *batch_of(seed=seed))
            squares = [total + w.grad**2 for total, w in zip(squares, weights, strict=True)]
            optimizer.step()
        traces.append(sum(float(square.mean()) for square in squares))
        strategy.end_epoch()
        assert float(strategy.released_traces[-1]) == pytest.approx(traces[-1], rel=1e-5)
    assert set(seen) == {True, False}
    again = InfoReg(late(), window_of=modality)
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.released_traces, strategy.released_traces)
    with pytest.raises(ValueError, match="`window_of` to be one of 'audio', 'image', but got 'text'"):
        InfoReg(network, window_of="text")
