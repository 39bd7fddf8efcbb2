"""What fused_modulate takes, and what it refuses by name."""

import copy
import math
from collections.abc import Callable

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
        ({"masked_logits": torch.ones(3, 6, 3, dtype=torch.int64)}, TypeError, "float32.* but got torch.int64"),
        (
            {"masked_logits": MASKED.to(torch.float8_e4m3fn)},
            TypeError,
            "to be float32.* got torch.float8_e4m3fn",
        ),
        ({"masked_logits": MASKED.to_sparse()}, TypeError, "`masked_logits` to be dense, .* torch.sparse_coo"),
        ({"masked_logits": [1.0]}, TypeError, "`masked_logits` to be a tensor"),
        ({"masked_logits": torch.randn(3, 6, 0)}, ValueError, "at least one class"),
        ({"target": TARGET[:5]}, ValueError, r"`target` to have shape \(6,\)"),
        ({"target": F.one_hot(TARGET, 3)}, ValueError, r"`target` to have shape .* pass target.argmax\(-1\)\."),
        ({"target": TARGET.float()}, TypeError, "class indices"),
        ({"target": TARGET > 0}, TypeError, "class indices"),
        ({"target": TARGET.tolist()}, TypeError, "`target` to be a tensor"),
        ({"target": TARGET.to_sparse()}, TypeError, "`target` to be dense"),
        ({"target": TARGET.to("meta")}, ValueError, "`target` to be on cpu"),
        ({"target": torch.tensor([0, 1, 2, 3, 0, 0])}, ValueError, r"\[0, 3\).* but got 3 at row 3"),
        ({"target": torch.tensor([0, 1, -1, 2, 0, 0])}, ValueError, r"but got -1 at row 2"),
        ({"state": None}, TypeError, "ModulationState"),
        ({"state": agm.ModulationState(2, device="meta")}, ValueError, "`state` to be on cpu"),
        ({"alpha": -1.0}, ValueError, "`alpha`"),
        ({"alpha": math.nan}, ValueError, "`alpha`"),
        ({"alpha": math.inf}, ValueError, "`alpha`"),
        ({"alpha": "1"}, ValueError, "`alpha`"),
        ({"alpha": 10**400}, ValueError, "`alpha`"),
        ({"max_gap": 10**400}, ValueError, "`max_gap`"),
        ({"ignore_index": 2**70}, TypeError, "`ignore_index` to be an integer of 64 bits"),
        ({"update": "no"}, TypeError, "`update` to be True or False, but got 'no'"),
        ({"present": torch.ones(6, 2).bool().to_sparse()}, TypeError, "`present` to be dense"),
        ({"present": torch.ones(6, 2).bool().to("meta")}, ValueError, "`present` to be on cpu"),
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


def made_in_inference_mode(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return tensor.clone()


HIDDEN, HEAD = torch.randn(3, 6, 4), torch.randn(3, 4)
WRONG_LOSSES: dict[str, tuple[Callable[[agm.ModulationState], object], type[Exception], str]] = {
    "sparse class weight": (
        lambda state: agm.fused_modulate_cross_entropy(MASKED, TARGET, state, weight=torch.ones(3).to_sparse()),
        TypeError,
        "`weight` to be dense",
    ),
    "class weight in 8 bits": (
        lambda state: agm.fused_modulate_cross_entropy(
            MASKED, TARGET, state, weight=torch.ones(3).to(torch.float8_e4m3fn)
        ),
        TypeError,
        "`weight` to be float32",
    ),
    "class weight elsewhere": (
        lambda state: agm.fused_modulate_cross_entropy(MASKED, TARGET, state, weight=torch.ones(3, device="meta")),
        ValueError,
        "`weight` to be on cpu",
    ),
    "class weight that autograd keeps not": (
        lambda state: agm.fused_modulate_cross_entropy(
            MASKED.clone().requires_grad_(), TARGET, state, weight=made_in_inference_mode(torch.ones(3))
        ),
        ValueError,
        "`weight` .*inference_mode",
    ),
    "target that autograd keeps not": (
        lambda state: agm.fused_modulate_cross_entropy(
            MASKED.clone().requires_grad_(), made_in_inference_mode(TARGET), state
        ),
        ValueError,
        "`target` .*inference_mode",
    ),
    "hidden that autograd keeps not": (
        lambda state: agm.fused_modulate_linear_cross_entropy(
            made_in_inference_mode(HIDDEN), HEAD.clone().requires_grad_(), TARGET, state
        ),
        ValueError,
        "`hidden` .*inference_mode",
    ),
    "sparse head": (
        lambda state: agm.fused_modulate_linear_cross_entropy(HIDDEN, HEAD.to_sparse(), TARGET, state),
        TypeError,
        "`weight` to be dense",
    ),
    "chunks beyond 64 bits": (
        lambda state: agm.fused_modulate_linear_cross_entropy(HIDDEN, HEAD, TARGET, state, chunk_rows=2**70),
        ValueError,
        "`chunk_rows`",
    ),
    "sparse part of a sum": (
        lambda state: agm.fused_modulate_additive(MASKED[:2].to_sparse(), MASKED[:2, 0], TARGET, state),
        TypeError,
        "`present` to be dense",
    ),
    "absent part in 8 bits": (
        lambda state: agm.fused_modulate_additive(MASKED[:2], MASKED[:2, 0].to(torch.float8_e4m3fn), TARGET, state),
        TypeError,
        "`absent` to be float32",
    ),
}


@pytest.mark.parametrize("name", WRONG_LOSSES)
def test_bad_arguments_of_the_other_functions_change_nothing(name: str) -> None:
    """Each of these was found out only after the step had been taken, or not at all."""
    call, error, message = WRONG_LOSSES[name]
    state = agm.ModulationState(2)
    with pytest.raises(error, match=message):
        call(state)
    assert (state.step.item(), state.skipped.item()) == (0, 0)


def test_what_was_made_in_inference_mode_serves_where_nothing_is_kept() -> None:
    target, weight = made_in_inference_mode(TARGET), made_in_inference_mode(torch.ones(3))
    agm.fused_modulate(MASKED.clone().requires_grad_(), target, agm.ModulationState(2))
    agm.fused_modulate_cross_entropy(MASKED, target, agm.ModulationState(2), weight=weight)


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
