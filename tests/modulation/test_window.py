"""Epochs outside the window, as the authors' code has them: every step is scored, the last coefficients stay."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.modulation.additive import AdditiveLogits
from agm.shapley.sampling import SubsetSample, sample_subsets
from agm.shapley.weights import subset_weights
from agm.strategies import AGM, SmoothedModulator

ALPHA, START, STOP = 1.5, 2, 4  # epochs 3 and 4 of the authors


def data(step: int, modalities: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    masked = torch.randn(2**modalities - 1, 6, 4, generator=draw, dtype=torch.float64)
    return masked, torch.randint(4, (6,), generator=draw)


def published(steps: list[tuple[int, Tensor, Tensor]]) -> tuple[list[Tensor], list[float]]:
    """By the released training loop, on floats: gradients of the masked logits, and the last running scores."""
    scale, running, gradients = [1.0, 1.0], [0.0, 0.0], []
    for iteration, (epoch, masked, target) in enumerate(steps, 1):
        masked = masked.clone().requires_grad_()
        first, second, joint = masked
        responses = [0.5 * (joint - second + first), 0.5 * (joint - first + second)]
        score = [F.cross_entropy(response, target).item() for response in responses]
        ratio = [math.exp(score[1] - score[0]), math.exp(score[0] - score[1])]
        best = [math.exp(running[1] - running[0]), math.exp(running[0] - running[1])]
        if START + 1 <= epoch + 1 <= STOP:
            scale = [math.exp(ALPHA * min(b - r, 10)) for b, r in zip(best, ratio, strict=True)]
        running = [r * (iteration - 1) / iteration + s / iteration for r, s in zip(running, score, strict=True)]
        for response, k in zip(responses, scale, strict=True):
            response.register_hook(lambda grad, k=k: k * grad)
        F.cross_entropy(responses[0] + responses[1], target).backward()
        assert masked.grad is not None
        gradients.append(masked.grad)
    return gradients, running


STEPS = [(epoch, *data(2 * epoch + step)) for epoch in range(6) for step in range(2)]


def run(modulator: agm.Modulator, steps: list[tuple[int, Tensor, Tensor]]) -> list[Tensor]:
    gradients = []
    for modulator.epoch, masked, target in steps:
        masked = masked.clone().requires_grad_()
        F.cross_entropy(modulator(masked, target), target).backward()
        assert masked.grad is not None
        gradients.append(masked.grad)
    return gradients


def test_the_authors_loop() -> None:
    modulator = agm.Modulator(("a", "b"), alpha=ALPHA, start=START, stop=STOP, outside="published")
    gradients, running = published(STEPS)
    for found, expected in zip(run(modulator, STEPS), gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert modulator.state.running_scores.tolist() == pytest.approx(running, rel=1e-12)
    assert modulator.state.step == len(STEPS)
    assert (modulator.state.coefficients - 1).abs().min() > 1e-3


def test_plain_training_outside_by_default() -> None:
    modulator = agm.Modulator(("a", "b"), alpha=ALPHA, start=START, stop=STOP)
    found = run(modulator, STEPS)
    assert [bool(grad[:-1].any()) for grad in found] == [START <= epoch < STOP for epoch, *_ in STEPS]
    assert modulator.state.step == 4


@pytest.mark.parametrize("cut", [2, 5, 9])
def test_a_resumed_run_goes_on_with_the_coefficients(cut: int) -> None:
    def make() -> agm.Modulator:
        return agm.Modulator(("a", "b"), alpha=ALPHA, start=START, stop=STOP, outside="published")

    whole, first, second = make(), make(), make()
    expected = run(whole, STEPS)
    run(first, STEPS[:cut])
    second.load_state_dict(first.state_dict())
    for one, other in zip(run(second, STEPS[cut:]), expected[cut:], strict=True):
        assert torch.equal(one, other)
    assert torch.equal(whole.state.values, second.state.values)
    turned = agm.Modulator(("b", "a"), alpha=ALPHA, outside="published")
    turned.load_state_dict(first.state_dict())
    assert torch.equal(turned.state.coefficients, first.state.coefficients.flip(0))


def test_state_dicts_of_the_two_kinds() -> None:
    joint = agm.Modulator(("a", "b"))
    kept = agm.Modulator(("a", "b"), outside="published")
    assert "state.coefficients" not in joint.state_dict()
    joint.load_state_dict(kept.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*state\.coefficients"):
        kept.load_state_dict(joint.state_dict())


FORMS = ["rows", "sum", "sample", "present", "sum, present", "tokens", "sum, tokens"]


@pytest.mark.parametrize("smoothing", [None, 0.3])
@pytest.mark.parametrize("form", FORMS)
def test_what_stays_scales_every_form(form: str, smoothing: float | None) -> None:
    """After `stop` the gradient is that of fixed coefficients, whatever is given: as a sum over responses has it."""
    draw = torch.Generator().manual_seed(7)
    rest, sample = ((3,) if "tokens" in form else ()), None
    present = torch.rand(5, 3, generator=draw) < 0.6 if "present" in form else None
    target = torch.randint(4, (5, *rest), generator=draw)
    if "sum" in form:
        few = torch.randn(3, 6, *rest, 4, generator=draw, dtype=torch.float64)
        leaves = [few, torch.randn(5, *rest, 4, generator=draw, dtype=torch.float64)]
    else:
        sample = sample_subsets(3, 4, draw) if form == "sample" else None
        count = 7 if sample is None else len(sample.subsets)
        leaves = [torch.randn(count, 5, *rest, 4, generator=draw, dtype=torch.float64)]

    def logits(leaves: list[Tensor]) -> Tensor | AdditiveLogits:
        return AdditiveLogits(leaves[0], leaves[1]) if "sum" in form else leaves[0]

    settings: dict[str, Any] = {"alpha": 2.0, "stop": 1, "outside": "published"}
    names = ("a", "b", "c")
    modulator = (
        agm.Modulator(names, **settings)
        if smoothing is None
        else SmoothedModulator(names, smoothing=smoothing, **settings)
    )
    modulator(logits(leaves), target, present=present, sample=sample)
    held = (modulator.state.coefficients if smoothing is None else modulator.smoothed).clone()
    assert (held - 1).abs().max() > 1e-2

    modulator.epoch = 1
    own = [leaf.clone().requires_grad_() for leaf in leaves]
    result = modulator(logits(own), target, present=present, sample=sample)
    weight = torch.randn(result.shape, generator=draw, dtype=torch.float64)
    (result * weight).sum().backward()

    other = [leaf.clone().requires_grad_() for leaf in leaves]
    given = logits(other)
    rows = given if isinstance(given, Tensor) else given.stacked()
    assert torch.equal(result, rows[-1])
    responses = responses_of(rows, present, sample, "sum" in form)
    (sum(k * response for k, response in zip(held, responses, strict=True)) * weight).sum().backward()
    for one, two in zip(own, other, strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-9, atol=1e-12)
    assert modulator.state.step == 2
    last = modulator.state.coefficients if smoothing is None else modulator.smoothed
    assert torch.equal(last, held)


def responses_of(rows: Tensor, present: Tensor | None, sample: SubsetSample | None, is_sum: bool) -> Tensor:
    """(M, B, ..., C) Shapley values, of each sample's own modalities where it lacks some, by the definition."""
    if sample is not None:
        return torch.tensordot(sample.weights, rows, 1)
    if present is None:
        return torch.tensordot(subset_weights(3), rows, 1)
    columns = []
    for number, has in enumerate(present.tolist()):
        held = sum(1 << m for m in range(3) if has[m])
        game = []
        for subset in range(1, 8):
            own = subset & held
            # Rows are computed with absent inputs where samples lack a modality; parts of a sum stand for all.
            row = rows[-1] if own == held else rows[(own if is_sum else subset) - 1]
            game.append(torch.zeros_like(rows[0, number]) if own == 0 else row[number])
        columns.append(torch.tensordot(subset_weights(3), torch.stack(game), 1))
    return torch.stack(columns, 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p, self.q, self.head = nn.Linear(5, 4), nn.Linear(6, 4), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.p(a), self.q(b)], 1).tanh())


@pytest.mark.parametrize("encoders", [None, {"a": "p", "b": "q"}])
def test_the_engine_and_the_strategy(encoders: dict[str, str] | None) -> None:
    torch.manual_seed(0)
    network = Net()
    x, y = {"a": torch.randn(8, 5), "b": torch.randn(8, 6)}, torch.arange(8) % 3
    settings: dict[str, Any] = {"alpha": ALPHA, "start": 1, "stop": 2, "outside": "published"}
    model = agm.AGM(copy.deepcopy(network), ("a", "b"), encoders=encoders, **settings)
    strategy = AGM(copy.deepcopy(network), encoders={"a": "p", "b": "q"}, **settings)
    applied = []
    for epoch in range(4):
        model.epoch = epoch
        strategy.begin_epoch(epoch)
        model.zero_grad()
        F.cross_entropy(model(**x, target=y), y).backward()
        for _ in strategy.steps(x, y):
            pass
        applied.append(model.modulator.state.coefficients.clone())
        assert torch.equal(strategy.statistics()["coefficient"], strategy.module.modulator.state.coefficients)
        for one, other in zip(model.parameters(), strategy.module.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-7)
        with torch.no_grad():
            for network_of in (model.module, strategy.network):
                for parameter in network_of.parameters():
                    parameter -= 0.5 * parameter.grad
    assert applied[0].tolist() == [1.0, 1.0]
    assert torch.equal(applied[1], applied[2])
    assert torch.equal(applied[1], applied[3])
    assert (applied[1] - 1).abs().max() > 1e-3
    assert model.modulator.state.step == 4
    assert "Only in epochs" not in str(model.plan())


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="`outside` to be 'joint' or 'published', but got 'none'"):
        agm.Modulator(("a", "b"), outside="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epoch", "x", "`epoch` to be the number of an epoch, from 0, but got 'x'"),
        ("epoch", None, "`epoch`"),
        ("epoch", float("nan"), "`epoch`"),
        ("start", -1, "whole epochs 0 <= `start` <= `stop`, but got start=-1, stop=4"),
        ("start", 5, "but got start=5, stop=4"),
        ("start", "1", "whole epochs"),
        ("stop", 1, "but got start=2, stop=1"),
        ("stop", 2.5, "whole epochs"),
    ],
)
def test_what_cannot_be_set_leaves_the_window_as_it_was(name: str, value: object, message: str) -> None:
    modulator = agm.Modulator(("a", "b"), start=2, stop=4)
    modulator.epoch = 3
    with pytest.raises(ValueError, match=message):
        setattr(modulator, name, value)
    assert (modulator.start, modulator.stop, modulator.epoch, modulator.alpha_now) == (2, 4, 3, 1.0)
