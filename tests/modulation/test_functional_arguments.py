"""What fused_modulate takes, and what it refuses by name."""

import copy
import math

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F

import agm

from .batches import batch

MASKED, TARGET = batch(2, 6, 3)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"masked_logits": MASKED[0]}, ValueError, r"`masked_logits` to have shape .* but got \(6, 3\)"),
        ({"masked_logits": MASKED[:2]}, ValueError, r"2\*\*M - 1 rows"),
        ({"masked_logits": torch.randn(7, 6, 3)}, ValueError, "3 rows for the 2 modalities"),
        ({"masked_logits": torch.ones(3, 6, 3, dtype=torch.int64)}, TypeError, "floating dtype, but got torch.int64"),
        ({"masked_logits": [1.0]}, TypeError, "`masked_logits` to be a tensor"),
        ({"masked_logits": torch.randn(3, 6, 0)}, ValueError, "at least one class"),
        ({"target": TARGET[:5]}, ValueError, r"`target` to have shape \(6,\)"),
        ({"target": F.one_hot(TARGET, 3)}, ValueError, r"`target` to have shape .* pass target.argmax\(-1\)\."),
        ({"target": TARGET.float()}, TypeError, "class indices"),
        ({"target": TARGET > 0}, TypeError, "class indices"),
        ({"target": TARGET.tolist()}, TypeError, "`target` to be a tensor"),
        ({"target": TARGET.to("meta")}, ValueError, "`target` to be on cpu"),
        ({"target": torch.tensor([0, 1, 2, 3, 0, 0])}, ValueError, r"\[0, 3\).* but got 3 at row 3"),
        ({"target": torch.tensor([0, 1, -1, 2, 0, 0])}, ValueError, r"but got -1 at row 2"),
        ({"state": None}, TypeError, "ModulationState"),
        ({"state": agm.ModulationState(2, device="meta")}, ValueError, "`state` to be on cpu"),
        ({"alpha": -1.0}, ValueError, "`alpha`"),
        ({"alpha": math.nan}, ValueError, "`alpha`"),
        ({"alpha": math.inf}, ValueError, "`alpha`"),
        ({"alpha": "1"}, ValueError, "`alpha`"),
        ({"max_gap": -1.0}, ValueError, "`max_gap`"),
        ({"max_gap": math.nan}, ValueError, "`max_gap`"),
        ({"floor": 1.0}, ValueError, "`floor`"),
        ({"floor": -0.1}, ValueError, "`floor`"),
        ({"backend": "fast"}, ValueError, "'fast'"),
        ({"backend": "cuda"}, RuntimeError, "serves cuda tensors only"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(
    changed: dict[str, object], error: type[Exception], message: str
) -> None:
    state = agm.ModulationState(2)
    agm.fused_modulate(MASKED, TARGET, state)
    before = copy.deepcopy(state)
    arguments = {"masked_logits": MASKED, "target": TARGET, "state": state} | changed
    with pytest.raises(error, match=message):
        agm.fused_modulate(**arguments)  # type: ignore[arg-type]
    assert torch.equal(state.values, before.values)
    assert torch.equal(state.counts, before.counts)


def test_integer_targets_of_any_width() -> None:
    expected, state = agm.ModulationState(2), agm.ModulationState(2)
    agm.fused_modulate(MASKED, TARGET, expected)
    agm.fused_modulate(MASKED, TARGET.to(torch.int32), state)
    assert torch.equal(state.values, expected.values)


@pytest.mark.parametrize(("dtype", "target", "classes"), [(torch.uint8, [100, 200], 300), (torch.int8, [5, 100], 200)])
def test_narrow_targets_are_compared_as_the_numbers_they_are(
    dtype: torch.dtype, target: list[int], classes: int
) -> None:
    masked, _ = batch(2, 2, classes)
    state, wide = agm.ModulationState(2), agm.ModulationState(2)
    agm.fused_modulate(masked, torch.tensor(target, dtype=dtype), state)
    agm.fused_modulate(masked, torch.tensor(target), wide)
    assert torch.equal(state.values, wide.values)
    assert state.skipped.item() == 0


def test_a_narrow_target_is_not_taken_for_ignored() -> None:
    masked, _ = batch(2, 2, 10)
    with pytest.raises(ValueError, match="got 156"):  # -100 modulo 256
        agm.fused_modulate(masked, torch.tensor([156, 1], dtype=torch.uint8), agm.ModulationState(2))


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_autocast_changes_no_score(backend: str) -> None:
    masked, target = batch(2, 512, 100)
    masked = masked.float()
    inside, outside = agm.ModulationState(2), agm.ModulationState(2)
    agm.fused_modulate(masked, target, outside, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        agm.fused_modulate(masked, target, inside, backend=backend)
    assert torch.equal(inside.values, outside.values)
    assert torch.equal(inside.counts, outside.counts)


def test_an_index_that_escaped_the_check_skips_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the range of the indices is not read: the step must leave memory and running scores alone."""
    monkeypatch.setattr("agm.ops._checks.check_classes", lambda *_: None)
    for wrong in (3, -1, 2**40):
        state = agm.ModulationState(2)
        target = TARGET.clone()
        target[2] = wrong
        agm.fused_modulate(MASKED, target, state)
        assert state.skipped.item() == 1
        assert state.step.item() == 0
        assert not state.running_scores.any()


def test_environment_forces_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGM_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="'cuda' was asked for by name"):
        agm.fused_modulate(MASKED, TARGET, agm.ModulationState(2))
    agm.fused_modulate(MASKED, TARGET, agm.ModulationState(2), backend="reference")
