import pytest
import torch
import torch.nn.functional as F

from agm.strategies import MSLR, Measured

from .networks import Loader, assert_same, batch_of, belongs, gradients, gradients_of, late, take

ACCURACIES = [(0.2, 0.5), (0.3, 0.4), (0.5, 0.4), (0.4, 0.6), (0.8, 0.3)]


def measured(audio: float, image: float) -> Measured:
    return Measured(0.0, 0.0, {"audio": 0.0, "image": 0.0}, {"audio": audio, "image": image})


def naive(initial: float, history: list[float], window: int) -> float:
    before = history[:-1][-window:]
    return initial * (history[-1] / (sum(before) / window) if len(history) > window else 1.0)


@pytest.mark.parametrize("resumed", [False, True])
def test_coefficients_follow_the_accuracies(monkeypatch, resumed):
    strategy = MSLR(late(), initial={"image": 1.3, "audio": 0.7}, window=2)
    rows = []
    for epoch, pair in enumerate(ACCURACIES):
        monkeypatch.setattr(MSLR, "measure", lambda self, batches, pair=pair: measured(*pair))
        strategy.begin_epoch(epoch)
        strategy.end_epoch(validation=Loader())
        if resumed:
            again = MSLR(late(), initial={"image": 1.3, "audio": 0.7}, window=2)
            again.load_state_dict(strategy.state_dict())
            strategy = again
        rows.append(strategy.coefficients.tolist())
    for epoch, row in enumerate(rows):
        seen = ACCURACIES[: epoch + 1]
        assert row == pytest.approx([naive(0.7, [a for a, _ in seen], 2), naive(1.3, [b for _, b in seen], 2)])
    assert rows[0] == pytest.approx([0.7, 1.3])
    assert rows[2] != pytest.approx([0.7, 1.3])


def test_an_accuracy_of_0_divides_nothing(monkeypatch):
    strategy = MSLR(late(), window=1)
    for pair in [(0.0, 0.0), (0.5, 0.0)]:
        monkeypatch.setattr(MSLR, "measure", lambda self, batches, pair=pair: measured(*pair))
        strategy.end_epoch(validation=Loader())
    assert strategy.coefficients.tolist() == [1, 1]


@pytest.mark.parametrize("heads_too", [False, True])
def test_the_gradients_of_encoders_and_if_wanted_of_their_columns(heads_too):
    network, (inputs, target) = late(), batch_of()
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    for name in expected:
        expected[name] *= 0.5 if belongs(name, "audio") else 2.0 if belongs(name, "image") else 1.0
    if heads_too:
        expected["classifier.weight"][:, :5] *= 0.5
        expected["classifier.weight"][:, 5:] *= 2.0
    take(MSLR(network, initial={"audio": 0.5, "image": 2.0}, heads_too=heads_too), inputs, target)
    assert_same(gradients(network), expected)


def test_accuracies_are_those_of_each_modality_alone():
    network, (inputs, target) = late(), batch_of(samples=30)
    strategy = MSLR(network)
    network.train()
    found = strategy.measure(Loader(({m: x[:20] for m, x in inputs.items()}, target[:20]), batch_of(samples=9, seed=1)))
    assert network.training
    more, others = batch_of(samples=9, seed=1)
    both = {m: torch.cat([inputs[m][:20], more[m]]) for m in inputs}
    truth = torch.cat([target[:20], others])
    network.eval()
    features = {m: network.encoders[m](both[m]) for m in both}
    for name, logits in network.unimodal_logits(features).items():
        assert found.accuracies[name] == pytest.approx((logits.argmax(1) == truth).float().mean().item())
        assert found.losses[name] == pytest.approx(F.cross_entropy(logits, truth).item(), rel=1e-5)
    assert found.loss == pytest.approx(F.cross_entropy(network.fuse(features), truth).item(), rel=1e-5)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"`validation`.*MSLR needs the validation split"):
        MSLR(late()).end_epoch()
    with pytest.raises(ValueError, match=r"`initial` to map each of audio, image"):
        MSLR(late(), initial={"audio": 1.0})
    with pytest.raises(ValueError, match="one sample or more"):
        MSLR(late()).end_epoch(validation=Loader())
