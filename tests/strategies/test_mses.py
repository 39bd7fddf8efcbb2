import pytest
import torch

from agm.strategies import MSES, Measured

from .networks import Loader, batch_of, gradients, late, take

# Smoothed by halves: audio 1.0, 0.9, 0.85, 0.9, 0.95: best at epoch 2. Image falls until epoch 4, then stays.
LOSSES = [(1.0, 1.0), (0.8, 0.9), (0.9, 0.8), (0.9, 0.7), (1.0, 0.6), (1.0, 0.6), (1.0, 0.8), (1.0, 0.9), (1.0, 0.9)]
PATIENCE = 1


def measured(pair):
    return Measured(0.0, 0.0, dict(zip(("audio", "image"), pair, strict=True)), {"audio": 0.0, "image": 0.0})


def naive(losses: list[float]) -> tuple[int, int]:
    """(epoch after which it stops, best epoch) by the rule, smoothing 0.5."""
    best, when, before = float("inf"), -1, None
    for epoch, loss in enumerate(losses):
        smooth = 0.5 * (loss if before is None else before) + 0.5 * loss
        before = loss
        if smooth < best:
            best, when = smooth, epoch
        elif epoch - when > PATIENCE:
            return epoch, when
    raise AssertionError("never stops")


def train(monkeypatch, resume_at: int | None = None, restore: bool = True):
    """One step an epoch; returns the strategy, and the weights after each epoch before and after `end_epoch`."""
    torch.manual_seed(1)
    network = late()
    strategy = MSES(network, patience=PATIENCE, smoothing=0.5, restore=restore)
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, momentum=0.9)
    strategy.optimizer = optimizer
    before, after, coefficients = [], [], []
    for epoch, pair in enumerate(LOSSES):
        if epoch == resume_at:
            state = {"model": strategy.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, (file := __import__("io").BytesIO()))
            file.seek(0)
            state = torch.load(file, weights_only=True)
            network = late()
            strategy = MSES(network, patience=PATIENCE, smoothing=0.5, restore=restore)
            strategy.load_state_dict(state["model"])
            optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, momentum=0.9)
            optimizer.load_state_dict(state["optimizer"])
            strategy.optimizer = optimizer
        monkeypatch.setattr(MSES, "measure", lambda self, batches, pair=pair: measured(pair))
        strategy.begin_epoch(epoch)
        take(strategy, *batch_of(seed=epoch))
        optimizer.step()
        before.append({name: value.clone() for name, value in network.state_dict().items()})
        strategy.end_epoch(validation=Loader())
        after.append({name: value.clone() for name, value in network.state_dict().items()})
        coefficients.append(strategy.coefficients.tolist())
    return strategy, before, after, coefficients


def equal(left, right) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_modality_stops_and_the_network_goes_back(monkeypatch):
    strategy, before, after, coefficients = train(monkeypatch)
    audio, image = naive([a for a, _ in LOSSES]), naive([b for _, b in LOSSES])
    assert strategy.stopped == {"audio": audio[0], "image": image[0]}
    assert audio[0] < image[0] == len(LOSSES) - 2
    for epoch, row in enumerate(coefficients):
        assert row == [float(epoch < audio[0]), float(epoch < image[0])]
    for epoch, (old, new) in enumerate(zip(before, after, strict=True)):
        if epoch == audio[0]:
            assert equal(new, before[audio[1]])
            assert not equal(new, old)
        elif epoch == image[0]:
            assert equal(new, after[image[1]])
        else:
            assert equal(new, old)
    assert strategy.finished


def test_a_stopped_modality_gets_no_gradient(monkeypatch):
    strategy, *_ = train(monkeypatch)
    strategy.coefficients[1] = 1.0  # as if only the audio had stopped
    take(strategy, *batch_of())
    found = gradients(strategy.network)
    assert all(not value.any() for name, value in found.items() if name.startswith("encoders.audio"))
    assert not found["classifier.weight"][:, :5].any()
    assert found["classifier.weight"][:, 5:].any()
    assert all(value.any() for name, value in found.items() if name.startswith("encoders.image.linear"))


@pytest.mark.parametrize("resume_at", [2, 5])
def test_a_resumed_run_is_the_same(monkeypatch, resume_at):
    _, _, whole, _ = train(monkeypatch)
    strategy, _, parts, _ = train(monkeypatch, resume_at)
    assert all(equal(left, right) for left, right in zip(whole, parts, strict=True))
    assert strategy.finished


def test_without_restore_nothing_goes_back(monkeypatch):
    strategy, before, after, _ = train(monkeypatch, restore=False)
    assert all(equal(old, new) for old, new in zip(before, after, strict=True))
    assert len(strategy.stopped) == 2
    assert not strategy.get_extra_state()["snapshots"]


def test_the_state_of_the_optimizer_goes_back_too(monkeypatch):
    strategy, *_ = train(monkeypatch)
    best = naive([b for _, b in LOSSES])[1]
    # One more epoch ran behind the last stop, with a gradient of 0 for both encoders: momentum alone.
    assert best < strategy.stopped["image"]
    steps = strategy.optimizer.state_dict()["state"]
    assert all(slot["momentum_buffer"].isfinite().all() for slot in steps.values())


@pytest.mark.parametrize(("patience", "epochs"), [("av-mnist", 10), ("ur-funny", 30), ("crema-d", 80), (3, 3)])
def test_patience_of_the_baselines(monkeypatch, patience, epochs):
    """`epoch - best > patience` in their scripts, the first epoch the best."""
    strategy = MSES(late(), patience=patience, restore=False)
    for epoch in range(epochs + 2):
        assert not strategy.stopped
        loss = 1.0 + epoch
        monkeypatch.setattr(MSES, "measure", lambda self, batches, pair=(loss, 1 / loss): measured(pair))
        strategy.begin_epoch(epoch)
        strategy.end_epoch(validation=Loader())
    assert strategy.stopped == {"audio": epochs + 1}
    assert MSES(late()).patience == 80
    with pytest.raises(ValueError, match=r"`patience` to be one of 'av-mnist', .*, but got 'ave'"):
        MSES(late(), patience="ave")
