"""fused_modulate_additive against fused_modulate on the logits of every subset, built from the same features."""

import copy
import math
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

import agm


def parts(modalities: int, batch: int, classes: int, *, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 1.5

    return {
        "present": random(modalities, batch, classes),
        "absent": random(modalities, classes),
        "target": torch.randint(classes, (batch,), generator=generator),
    }


class Linear:
    """A linear layer on concatenated features of different widths, and what it needs for a step."""

    def __init__(self, modalities: int, *, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

        self.widths = [3 + m for m in range(modalities)]
        self.features = [random(9, width) for width in self.widths]
        self.joint_features = [random(9, width) for width in self.widths]
        self.absent = [random(1, width) for width in self.widths]
        self.weight, self.bias = random(5, sum(self.widths)), random(5)
        self.target = torch.randint(5, (9,), generator=generator)

    def subsets(self, exact: bool) -> Tensor:
        """Masked logits (2**M - 1, B, C) through the layer itself; `exact`: other features in the joint pass."""
        rows = []
        for subset in range(1, 2 ** len(self.widths)):
            chosen = [
                one if subset >> m & 1 else none.expand_as(one)
                for m, (one, none) in enumerate(zip(self.features, self.absent, strict=True))
            ]
            rows.append(F.linear(torch.cat(chosen, 1), self.weight, self.bias))
        if exact:
            rows[-1] = F.linear(torch.cat(self.joint_features, 1), self.weight, self.bias)
        return torch.stack(rows)

    def parts(self, exact: bool) -> dict[str, Any]:
        weights = self.weight.split(self.widths, 1)
        made: dict[str, Any] = {
            "present": [F.linear(h, w) for h, w in zip(self.features, weights, strict=True)],
            "absent": [F.linear(h, w) for h, w in zip(self.absent, weights, strict=True)],
        }
        if exact:
            made["joint_logits"] = F.linear(torch.cat(self.joint_features, 1), self.weight, self.bias)
        else:
            made["bias"] = self.bias
        return made

    def leaves(self, exact: bool) -> list[Tensor]:
        return [self.weight, self.bias, *self.features, *self.absent, *(self.joint_features if exact else [])]


@pytest.mark.parametrize("backend", ["reference", "cpp"])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("modalities", [2, 3, 6])
def test_gradients_of_a_linear_layer(modalities: int, exact: bool, backend: str) -> None:
    layer = Linear(modalities)
    states = agm.ModulationState(modalities), agm.ModulationState(modalities)
    for state in states:
        state.running_scores.copy_(torch.linspace(1, 2, modalities))
        state.step.fill_(3)
    settings: dict[str, Any] = {"alpha": 1.3, "max_gap": 7.0, "backend": backend}
    made = agm.fused_modulate_additive(**layer.parts(exact), target=layer.target, state=states[0], **settings)
    wanted = agm.fused_modulate(layer.subsets(exact), layer.target, states[1], **settings)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-11, atol=1e-12)
    assert torch.equal(states[0].counts, states[1].counts)
    leaves = layer.leaves(exact)
    upstream = torch.randn_like(made)
    own = torch.autograd.grad(made, leaves, upstream)
    for gradient, expected in zip(own, torch.autograd.grad(wanted, leaves, upstream), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(states[0].coefficients, torch.ones(()).double())


@pytest.mark.parametrize("exact", [False, True])
def test_gradients_of_sixteen_modalities(exact: bool) -> None:
    given = parts(16, 7, 4)
    present, absent = given["present"].requires_grad_(), given["absent"].requires_grad_()
    other = torch.randn((7, 4) if exact else (4,), dtype=torch.float64, requires_grad=True)
    state = agm.ModulationState(16)
    named = {"joint_logits" if exact else "bias": other}
    logits = agm.fused_modulate_additive(present, absent, given["target"], state, alpha=2.0, **named)
    torch.testing.assert_close(logits, other if exact else present.sum(0) + other)
    upstream = torch.randn_like(logits)
    logits.backward(upstream)
    kappa = state.coefficients
    mean, total = kappa.mean(), upstream.sum(0)
    torch.testing.assert_close(present.grad, (kappa - mean if exact else kappa)[:, None, None] * upstream)
    torch.testing.assert_close(absent.grad, (mean - kappa)[:, None] * total)
    torch.testing.assert_close(other.grad, mean * (upstream if exact else total))


@pytest.mark.parametrize("exact", [False, True])
def test_alpha_zero_is_joint_training(exact: bool) -> None:
    """There the gradient is the derivative of the result."""
    given = parts(3, 4, 3)
    named = {"joint_logits" if exact else "bias": torch.randn((4, 3) if exact else (3,), dtype=torch.float64)}
    leaves = [tensor.requires_grad_() for tensor in (given["present"], given["absent"], *named.values())]

    def run(present: Tensor, absent: Tensor, other: Tensor) -> Tensor:
        state = agm.ModulationState(3)
        return agm.fused_modulate_additive(
            present, absent, given["target"], state, alpha=0.0, **dict.fromkeys(named, other)
        )

    assert torch.autograd.gradcheck(run, leaves)


def test_forms_of_the_same_parts() -> None:
    given = parts(3, 6, 4)
    present, absent, target = given.values()
    results = []
    for one, none in (
        (present, absent),
        (list(present), absent[:, None]),
        (tuple(present), list(absent)),
        (present, list(absent[:, None])),
        (present.movedim(2, 0).contiguous().movedim(0, 2), absent.t().contiguous().t()),
    ):
        state = agm.ModulationState(3)
        results.append((agm.fused_modulate_additive(one, none, target, state), state.values))
    for logits, values in results[1:]:
        torch.testing.assert_close(logits, results[0][0])
        torch.testing.assert_close(values, results[0][1])


@pytest.mark.parametrize("needing", ["present", "absent", "bias", "joint_logits"])
def test_only_what_needs_a_gradient_gets_one(needing: str) -> None:
    given = parts(2, 6, 4)
    inputs = {"present": given["present"], "absent": given["absent"]}
    inputs |= {"joint_logits": torch.randn(6, 4).double()} if needing == "joint_logits" else {"bias": torch.ones(4)}
    inputs[needing].requires_grad_()
    agm.fused_modulate_additive(**inputs, target=given["target"], state=agm.ModulationState(2)).sum().backward()
    assert [name for name, tensor in inputs.items() if tensor.grad is not None] == [needing]
    assert inputs[needing].grad.shape == inputs[needing].shape


def test_without_a_gradient_there_is_no_graph() -> None:
    given = parts(2, 6, 4)
    assert not agm.fused_modulate_additive(**given, state=agm.ModulationState(2)).requires_grad
    given["present"].requires_grad_()
    with torch.no_grad():
        assert not agm.fused_modulate_additive(**given, state=agm.ModulationState(2)).requires_grad


def test_parts_of_another_dtype_are_cast_and_their_gradients_back() -> None:
    given = parts(2, 6, 4)
    present = given["present"].to(torch.bfloat16).requires_grad_()
    absent = given["absent"].float().requires_grad_()
    bias = torch.randn(4, requires_grad=True)
    logits = agm.fused_modulate_additive(present, absent, given["target"], agm.ModulationState(2), bias=bias)
    assert logits.dtype == torch.bfloat16
    logits.sum().backward()
    assert (present.grad.dtype, absent.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_joint_logits_come_back_as_a_view() -> None:
    """As in fused_modulate: writing to it would change the input behind the graph's back."""
    given = parts(2, 6, 4)
    given["present"].requires_grad_()
    joint = torch.randn(6, 4).double()
    logits = agm.fused_modulate_additive(**given, state=agm.ModulationState(2), joint_logits=joint)
    assert logits.data_ptr() == joint.data_ptr()
    with pytest.raises(RuntimeError, match="view"):
        logits.add_(1)


def test_a_second_derivative_is_refused() -> None:
    given = parts(2, 4, 3)
    given["present"].requires_grad_()
    logits = agm.fused_modulate_additive(**given, state=agm.ModulationState(2))
    (first,) = torch.autograd.grad(logits.square().sum(), given["present"], create_graph=True)
    with pytest.raises(RuntimeError, match="`fused_modulate_additive` not to be differentiated again"):
        first.sum().backward()


def test_update_false_leaves_the_state_alone() -> None:
    state = agm.ModulationState(2)
    agm.fused_modulate_additive(**parts(2, 8, 3), state=state)
    before = copy.deepcopy(state)
    given = parts(2, 8, 3, seed=1)
    present = given["present"].requires_grad_()
    agm.fused_modulate_additive(**given, state=state, alpha=3.0, update=False).sum().backward()
    assert torch.equal(state.values, before.values)
    assert torch.equal(state.counts, before.counts)
    modulated, present.grad = present.grad, None
    agm.fused_modulate_additive(**given, state=state, alpha=3.0).sum().backward()
    assert torch.equal(present.grad, modulated)


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("exact", [False, True])
def test_compiles_in_one_graph_for_two_sizes(exact: bool) -> None:
    torch._dynamo.reset()

    def run(present: Tensor, absent: Tensor, other: Tensor, target: Tensor, state: agm.ModulationState) -> Tensor:
        named = {"joint_logits": other} if exact else {"bias": other}
        return agm.fused_modulate_additive(present, absent, target, state, alpha=2.0, **named).square().sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    eager_state, state = agm.ModulationState(2), agm.ModulationState(2)
    for size in (8, 13):
        given = parts(2, size, 5, seed=size)
        other = torch.randn((size, 5) if exact else (5,), dtype=torch.float64)
        inputs = [given["present"], given["absent"], other]
        eager = [each.clone().requires_grad_() for each in inputs]
        traced = [each.clone().requires_grad_() for each in inputs]
        run(*eager, given["target"], eager_state).backward()
        compiled(*traced, given["target"], state).backward()
        for one, expected in zip(traced, eager, strict=True):
            torch.testing.assert_close(one.grad, expected.grad)
        torch.testing.assert_close(state.values, eager_state.values)
        assert torch.equal(state.counts, eager_state.counts)


GIVEN = parts(2, 6, 3)
PRESENT, ABSENT, TARGET = GIVEN.values()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"present": PRESENT[0]}, ValueError, r"`present` to have shape \(M, batch, classes\), but got \(6, 3\)"),
        ({"present": PRESENT[:1]}, ValueError, "each of the 2 modalities of the state, but got 1"),
        ({"present": [*PRESENT, PRESENT[0]]}, ValueError, "each of the 2 modalities of the state, but got 3"),
        ({"present": PRESENT.long()}, TypeError, "`present` to be float32.* but got torch.int64"),
        ({"present": PRESENT[:, :, :0]}, ValueError, "`present` to have at least one class"),
        ({"present": 1.0}, TypeError, "`present` to be a tensor, or a list or tuple"),
        ({"present": [PRESENT[0], 1.0]}, TypeError, "`present` to be a tensor, or a list or tuple"),
        ({"present": []}, TypeError, "`present` to be a tensor, or a list or tuple"),
        ({"present": [PRESENT[0], PRESENT[1, :5]]}, ValueError, r"`present` .* one shape .* \(5, 3\)"),
        ({"present": [PRESENT[0], PRESENT[1].float()]}, TypeError, "`present` .* one dtype"),
        ({"present": [PRESENT[0], PRESENT[1].to("meta")]}, ValueError, "`present` to be on cpu"),
        ({"absent": ABSENT[:1]}, ValueError, r"`absent` to have shape \(2, 3\)"),
        ({"absent": PRESENT}, ValueError, r"`absent` .* but got \(2, 6, 3\)\. .* same for every sample"),
        ({"absent": list(PRESENT)}, ValueError, "`absent` .* the same for every sample"),
        ({"absent": None}, TypeError, "`absent` to be a tensor, or a list or tuple"),
        ({"absent": ABSENT.long()}, TypeError, "`absent` to be float32"),
        ({"absent": ABSENT.to("meta")}, ValueError, "`absent` to be on cpu"),
        ({"bias": ABSENT}, ValueError, r"`bias` to have shape \(3,\)"),
        ({"bias": [0.0] * 3}, TypeError, "`bias` to be a tensor"),
        ({"bias": ABSENT[0].long()}, TypeError, "`bias` to be float32"),
        ({"bias": ABSENT[0].to("meta")}, ValueError, "`bias` to be on cpu"),
        ({"bias": ABSENT[0], "joint_logits": PRESENT[0]}, ValueError, "`bias` to be None beside `joint_logits`"),
        ({"joint_logits": PRESENT}, ValueError, r"`joint_logits` to have shape \(6, 3\)"),
        ({"joint_logits": PRESENT[0].float()}, TypeError, "`joint_logits` to have the dtype of `present`"),
        ({"joint_logits": PRESENT[0].to("meta")}, ValueError, "`joint_logits` to be on cpu"),
        ({"joint_logits": 0}, TypeError, "`joint_logits` to be a tensor"),
        ({"target": TARGET[:5]}, ValueError, r"`target` to have shape \(6,\)"),
        ({"target": TARGET.float()}, TypeError, "class indices"),
        ({"target": torch.tensor([0, 1, 2, 3, 0, 0])}, ValueError, r"\[0, 3\).* but got 3 at row 3"),
        ({"state": None}, TypeError, "ModulationState"),
        ({"state": agm.ModulationState(2, device="meta")}, ValueError, "`state` to be on cpu"),
        ({"alpha": -1.0}, ValueError, "`alpha`"),
        ({"max_gap": math.nan}, ValueError, "`max_gap`"),
        ({"floor": 1.0}, ValueError, "`floor`"),
        ({"ignore_index": 1.0}, TypeError, "`ignore_index`"),
        ({"backend": "fast"}, ValueError, "'fast'"),
        ({"backend": "cuda"}, RuntimeError, "serves cuda tensors only"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    state = agm.ModulationState(2)
    agm.fused_modulate_additive(**GIVEN, state=state)
    before = copy.deepcopy(state)
    with pytest.raises(error, match=message):
        agm.fused_modulate_additive(**({**GIVEN, "state": state} | changed))
    assert torch.equal(state.values, before.values)
    assert torch.equal(state.counts, before.counts)


@pytest.mark.parametrize("form", ["bias", "no bias", "joint"])
@pytest.mark.parametrize("available", [False, True])
def test_a_class_that_cannot_be_is_not_there(form: str, available: bool) -> None:
    """Parts of -inf, whoever has them: the scores are those without the class, and no gradient is NaN."""
    generator = torch.Generator().manual_seed(0)
    present = torch.randn(3, 12, 7, generator=generator, dtype=torch.float64)
    absent = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(6, (12,), generator=generator)
    options = {
        "bias": {"bias": absent.mean(0)},
        "no bias": {},
        "joint": {"joint_logits": present.sum(0)},
    }[form]
    here = (torch.rand(12, 3, generator=generator) < 0.7) if available else None
    states = agm.ModulationState(3), agm.ModulationState(3)
    for state, classes in zip(states, (7, 6), strict=True):
        parts = [part[..., :classes].clone() for part in (present, absent, *options.values())]
        if classes == 7:
            for part in parts:
                part[..., 6] = -torch.inf
        parts = [part.requires_grad_() for part in parts]
        more = dict(zip(options, parts[2:], strict=True))
        logits = agm.fused_modulate_additive(parts[0], parts[1], target, state, alpha=1.5, available=here, **more)
        torch.nn.functional.cross_entropy(logits, target).backward()
        assert all(part.grad.isfinite().all() for part in parts)
    assert states[0].skipped == 0
    torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-12, atol=1e-12)


def test_a_class_that_cannot_be_beside_samples_that_lack_a_modality() -> None:
    generator = torch.Generator().manual_seed(0)
    masked = torch.randn(7, 12, 7, generator=generator, dtype=torch.float64)
    target = torch.randint(6, (12,), generator=generator)
    here = torch.rand(12, 3, generator=generator) < 0.7
    here[:, 0] = True
    states = agm.ModulationState(3), agm.ModulationState(3)
    agm.fused_modulate(masked[..., :6].contiguous(), target, states[1], present=here)
    masked[..., 6] = -torch.inf
    agm.fused_modulate(masked, target, states[0], present=here)
    assert states[0].skipped == 0
    torch.testing.assert_close(states[0].values, states[1].values, rtol=1e-12, atol=1e-12)
