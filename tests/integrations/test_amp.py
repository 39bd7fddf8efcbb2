"""Mixed precision: coefficients beside those of float32, and steps whose gradients overflow."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import agm
from agm.integrations.amp import GradScaler

from .networks import PATHS, Factorised, Net, batch, engine

# Largest difference of a coefficient from float32, over it, after 20 steps on the same weights: some ten times what
# rounding the logits (of size 2) to 8 or 11 bits does to a mean score.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 1e-3}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("kind", "settings"), [(Net, {}), (Net, {"encoders": PATHS}), (Factorised, {})])
def test_coefficients_agree_with_float32(dtype: torch.dtype, kind: type[Net], settings: dict[str, object]) -> None:
    model = engine(kind, **settings)
    narrow = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(20):
        inputs, target = batch(seed)
        narrow.module.load_state_dict(model.module.state_dict())
        with torch.autocast("cpu", dtype):
            logits = narrow(**inputs, target=target)
        assert logits.dtype == dtype
        optimizer.zero_grad()
        F.cross_entropy(model(**inputs, target=target), target).backward()
        optimizer.step()
        found, expected = (x.modulator.state.coefficients for x in (narrow, model))
        torch.testing.assert_close(found, expected, rtol=TOLERANCES[dtype], atol=0)
        F.cross_entropy(logits.float(), target).backward()
        assert all(p.grad is not None for p in narrow.parameters())
    assert (expected - 1).abs().max() > 0.1


def one_step(model: agm.AGM, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, seed: int) -> None:
    inputs, target = batch(seed)
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model(**inputs, target=target), target)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def test_an_overflow_of_gradients_takes_the_scores_back() -> None:
    model = engine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(model, init_scale=2.0**10)
    state = model.modulator.state
    one_step(model, optimizer, scaler, 0)
    before = copy.deepcopy(model.state_dict())
    scaler.update(2.0**60)  # float32 holds the scale; the gradients of float16 layers do not
    one_step(model, optimizer, scaler, 1)
    after = model.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items() if "running_" in name and "modulator" in name)
    assert torch.equal(after["module.head.weight"], before["module.head.weight"])
    assert (state.step.item(), state.skipped.item()) == (1, 1)
    assert (state.coefficients != 1).all()  # the scores of that batch were finite: nothing else would have noticed
    scaler.update(2.0**10)
    one_step(model, optimizer, scaler, 2)
    assert (state.step.item(), state.skipped.item()) == (2, 1)


def test_the_scores_are_those_of_the_other_batches() -> None:
    """A run with an overflowing batch in it equals one without it."""
    models = [engine(), engine()]
    for model, seeds in zip(models, [(0, 9, 1), (0, 1)], strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = GradScaler(model, init_scale=2.0**10)
        for seed in seeds:
            statistics = {n: b.clone() for n, b in model.module.named_buffers()}
            one_step(model, optimizer, scaler, seed)
            if seed == 9:  # batch norm has seen the batch, as in every network
                model.module.load_state_dict(statistics, strict=False)
            scaler.update(2.0**60 if seeds == (0, 9, 1) and seed == 0 else 2.0**10)
    left, right = (model.modulator.state for model in models)
    assert torch.equal(left.running_scores, right.running_scores)
    assert torch.equal(left.step, right.step)


def test_an_overflow_takes_back_all_forwards_since_the_last_step() -> None:
    model = engine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(model, init_scale=2.0**60)
    for seed in range(3):
        inputs, target = batch(seed)
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(**inputs, target=target), target)
        scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    state = model.modulator.state
    assert (state.step.item(), state.skipped.item()) == (0, 3)
    assert state.running_scores.tolist() == [0.0, 0.0]


def test_scores_that_are_not_finite_skip_the_step_by_themselves() -> None:
    model = engine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(model)
    with torch.no_grad():
        model.module.head.bias.fill_(1e5)  # infinite in float16
    one_step(model, optimizer, scaler, 0)
    state = model.modulator.state
    assert (state.step.item(), state.skipped.item()) == (0, 1)
    assert state.running_scores.tolist() == [0.0, 0.0]


def test_a_loaded_state_is_what_an_overflow_goes_back_to() -> None:
    trained = engine()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    for seed in range(3):
        one_step(trained, optimizer, GradScaler(trained, init_scale=2.0**10), seed)
    model = engine()
    scaler = GradScaler(model, init_scale=2.0**60)
    model.load_state_dict(trained.state_dict())
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler, 3)
    assert model.modulator.state.step.item() == 3
    assert torch.equal(model.modulator.state.running_scores, trained.modulator.state.running_scores)


def test_a_scaler_that_is_off_changes_nothing() -> None:
    model = engine()
    scaler = GradScaler(model, enabled=False)
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler, 0)
    assert model.modulator.state.step.item() == 1
    with pytest.raises(ValueError, match=r"hold an agm\.AGM"):
        GradScaler(torch.nn.Linear(2, 2))


def test_nothing_is_read_from_the_device(no_reads: TorchDispatchMode, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's scaler itself reads `found_inf` in `step`; `update` reads nothing."""
    model = engine()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = GradScaler(model)
    inputs, target = batch()
    scaler.scale(F.cross_entropy(model(**inputs, target=target), target)).backward()
    scaler.step(optimizer)
    with no_reads:
        scaler.update()
