"""What is refused of scores and their targets, and what is reported."""

import math
from typing import Any

import pytest
import torch
import torch._dynamo

import agm

from .scores_oracle import LONG, MASKED, B, numbers


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"score": "hinge"}, ValueError, "`score` to be one of .*'absolute_error'.* but got 'hinge'"),
        ({"score": None}, TypeError, "`score` to be a name or a function"),
        ({"backend": "cpp"}, RuntimeError, "cannot serve `score`"),
        ({"target": LONG}, ValueError, r"shape \(7, 3\), a number an output, but got \(7,\)"),
        ({"target": torch.zeros(3, 7)}, ValueError, "a row for each of the 7 samples"),
        ({"target": torch.zeros(7, 3).to("meta")}, ValueError, "`target` to be on cpu"),
        ({"target": torch.zeros(7, 3, dtype=torch.complex64)}, TypeError, "real numbers"),
        ({"target": [0.0] * 7}, TypeError, "`target` to be a tensor"),
        ({"score": "ordinal", "target": LONG + 4}, ValueError, r"\[0, 4\).* but got 4 at row 0"),
        ({"score": "ordinal", "target": LONG.float()}, TypeError, "class indices"),
        ({"score": "soft_cross_entropy", "target": LONG}, TypeError, "probabilities of the classes"),
        ({"score": "soft_cross_entropy", "target": torch.ones(7, 3)}, ValueError, "sum to 1, but got 3.0 at"),
        (
            {"score": "soft_cross_entropy", "target": torch.tensor([[2.0, -1, 0]] * 7)},
            ValueError,
            r"none of them negative, but got -1.0 at \[0, 1\]",
        ),
        ({"score": "soft_cross_entropy", "target": torch.ones(7, 1)}, ValueError, r"shape \(7, 3\)"),
        ({"score": "binary_cross_entropy", "target": torch.full((7, 3), 2)}, ValueError, r"\[0, 1\].* but got 2 at"),
        ({"score": "binary_cross_entropy", "target": torch.full((7, 3), -1.0)}, ValueError, r"NaN where there is none"),
        ({"score": "cross_entropy", "target": torch.zeros(7, 1, dtype=torch.int64)}, ValueError, r"shape \(7,\)"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    for function, rows in ((agm.fused_modulate, (MASKED,)), (agm.fused_modulate_additive, (MASKED[:2], MASKED[:2, 0]))):
        state = agm.ModulationState(2)
        arguments = {"target": torch.zeros(7, 3), "score": "squared_error"} | changed
        with pytest.raises(error, match=message):
            function(*rows, arguments.pop("target"), state, **arguments)
        fresh = agm.ModulationState(2)
        assert torch.equal(state.values, fresh.values)
        assert torch.equal(state.counts, fresh.counts)


def test_a_wrong_class_among_tokens_is_pointed_at() -> None:
    target = torch.zeros(4, 6, dtype=torch.int64)
    target[1, 4] = 9
    with pytest.raises(ValueError, match=r"got 9 at row \[1, 4\]"):
        agm.fused_modulate(numbers(3, 4, 6, 5), target, agm.ModulationState(2))


def test_kernels_do_not_serve_sums_of_tokens() -> None:
    parts, target = numbers(2, 4, 6, 5), torch.zeros(4, 6, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"cannot serve `\(M, B, \.\.\., C\)`"):
        agm.fused_modulate_additive(parts, parts[:, 0], target, agm.ModulationState(2), backend="cpp")


def test_a_modulator_refuses_early() -> None:
    with pytest.raises(RuntimeError, match="cannot serve `score`"):
        agm.Modulator(("a", "b"), score="ordinal", backend="cpp")
    with pytest.raises(ValueError, match="'hinge'"):
        agm.Modulator(("a", "b"), score="hinge")


def test_what_is_right_is_reported_where_it_can_be_said() -> None:
    masked, target = numbers(3, B, 3).requires_grad_(), torch.zeros(B, 3)
    for score, is_said in (("binary_cross_entropy", True), ("squared_error", False)):
        modulator = agm.Modulator(("a", "b"), score=score)
        modulator(masked, target)
        accuracy = [row["accuracy"] for row in modulator.report().values()]
        assert [not math.isnan(one) for one in accuracy] == [is_said] * 2
        assert score in repr(modulator)
