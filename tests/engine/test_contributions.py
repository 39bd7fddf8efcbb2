"""Contributions against the formulas written out over all orders of the modalities."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm.models import build

NAMES = ("audio", "image", "text", "touch")


def shapley_by_orders(worth: Callable[[frozenset[int]], float], modalities: int) -> list[float]:
    """The mean of what each adds to those before it, over all orders."""
    orders = list(itertools.permutations(range(modalities)))
    added = [0.0] * modalities
    for order in orders:
        for place, m in enumerate(order):
            before = frozenset(order[:place])
            added[m] += worth(before | {m}) - worth(before)
    return [total / len(orders) for total in added]


def row(subset: frozenset[int]) -> int:
    return sum(1 << m for m in subset) - 1


def guesses(modalities: int, batch: int = 23, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Masked logits that are the better the more modalities are present, and the target."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch,), generator=random)
    masked = torch.randn(2**modalities - 1, batch, classes, generator=random)
    for s in range(1, 2**modalities):
        masked[s - 1] += s.bit_count() * torch.eye(classes)[target]
    return masked, target


def accuracy_of_subset(masked: Tensor, target: Tensor, empty: float) -> Callable[[frozenset[int]], float]:
    return lambda s: (
        sum(int(logits.argmax()) == int(y) for logits, y in zip(masked[row(s)], target, strict=True)) / len(target)
        if s
        else empty
    )


def metered(masked: Tensor, target: Tensor, **options: Any) -> agm.Contributions:
    modalities = (len(masked) + 1).bit_length() - 1
    meter = agm.ContributionMeter(NAMES[:modalities])
    meter.update(masked, target)
    return meter.report(**options)


class TestFormulas:
    @pytest.mark.parametrize("modalities", [2, 3, 4])
    @pytest.mark.parametrize("empty", ["majority", "chance", 0.25])
    def test_shapley_values_of_the_accuracy(self, modalities: int, empty: Any) -> None:
        masked, target = guesses(modalities)
        nothing = {"majority": max(torch.bincount(target).tolist()) / 23, "chance": 1 / 3}.get(empty, 0.25)
        v = accuracy_of_subset(masked, target, nothing)
        report = metered(masked, target, empty=empty)
        everything = frozenset(range(modalities))
        assert report.empty == nothing
        assert report.accuracy == v(everything)
        assert list(report.contributions) == list(NAMES[:modalities])
        assert list(report.contributions.values()) == pytest.approx(shapley_by_orders(v, modalities), abs=1e-12)
        assert math.fsum(report.contributions.values()) == pytest.approx(v(everything) - nothing, abs=1e-12)
        apart = sum(v(frozenset({m})) - nothing for m in everything)
        assert report.cooperation == pytest.approx(v(everything) - nothing - apart, abs=1e-12)
        assert list(report.alone.values()) == [v(frozenset({m})) for m in range(modalities)]
        for size in range(modalities + 1):
            for group in itertools.combinations(range(modalities), size):
                assert report.accuracy_of(*(NAMES[m] for m in group)) == v(frozenset(group))

    @pytest.mark.parametrize("modalities", [2, 3, 4])
    def test_values_of_the_samples(self, modalities: int) -> None:
        masked, target = guesses(modalities)
        values = agm.modality_values(masked, target)
        assert values.dtype == torch.float64
        for i, y in enumerate(target.tolist()):

            def worth(s: frozenset[int], i: int = i, y: int = y) -> float:
                return float(len(s)) if s and int(masked[row(s), i].argmax()) == y else 0.0

            assert values[i].tolist() == pytest.approx(shapley_by_orders(worth, modalities), abs=1e-12)
            right = int(masked[-1, i].argmax()) == y
            assert values[i].sum().item() == pytest.approx(modalities * right, abs=1e-12)
        report = metered(masked, target)
        assert report.sample_values is not None
        assert torch.equal(report.sample_values, values)
        assert list(report.values.values()) == pytest.approx(values.mean(0).tolist(), abs=1e-12)

    def test_two_modalities_take_the_five_values_of_the_paper(self) -> None:
        right, wrong = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
        cases = {(a, v, j): None for a in (0, 1) for v in (0, 1) for j in (0, 1)}
        masked = torch.stack([torch.stack([right if bit else wrong for bit in bits]) for bits in cases], dim=1)
        values = agm.modality_values(masked, torch.zeros(8, dtype=torch.long))
        expected = [[(a + 2 * j - v) / 2, (v + 2 * j - a) / 2] for a, v, j in cases]
        assert values.tolist() == expected
        assert set(values.flatten().tolist()) == {-0.5, 0.0, 0.5, 1.0, 1.5}

    def test_responses_are_those_of_the_modulation(self) -> None:
        masked, target = guesses(3)
        state = agm.ModulationState(3)
        agm.fused_modulate(masked.requires_grad_(), target, state, alpha=1.0)
        report = metered(masked, target)
        assert list(report.responses.values()) == (state.mono_correct.double() / 23).tolist()
        assert report.accuracy == int(state.joint_correct) / 23

    @pytest.mark.parametrize("modalities", [5, 12, 16])
    def test_many_modalities_still_sum_to_the_whole(self, modalities: int) -> None:
        masked, target = guesses(modalities, batch=3)
        names = [f"m{m}" for m in range(modalities)]
        meter = agm.ContributionMeter(names)
        meter.update(masked, target)
        report = meter.report()
        assert math.fsum(report.contributions.values()) == pytest.approx(report.accuracy - report.empty, abs=1e-9)
        assert report.sample_values is not None
        assert report.sample_values.sum(1).tolist() == pytest.approx(
            (modalities * (masked[-1].argmax(-1) == target)).tolist(), abs=1e-6
        )

    def test_a_dictator_gets_everything_and_twins_share_it(self) -> None:
        target = torch.arange(4).repeat(5)
        known, unknown = torch.eye(4)[target], torch.eye(4)[torch.zeros_like(target)]
        # Bit 0 alone decides; without it class 0 is named, which is right as often as chance.
        dictated = torch.stack([known if s & 1 else unknown for s in range(1, 8)])
        report = metered(dictated, target)
        assert report.contributions == pytest.approx({"audio": 0.75, "image": 0.0, "text": 0.0}, abs=1e-12)
        assert report.cooperation == pytest.approx(0.0, abs=1e-12)
        # Either of two is enough: they know the same.
        shared = metered(torch.stack([known, known, known]), target)
        assert shared.contributions == pytest.approx({"audio": 0.375, "image": 0.375})
        assert shared.cooperation == pytest.approx(-0.75)
        # Neither is of use alone: they cooperate.
        together = metered(torch.stack([unknown, unknown, known]), target)
        assert together.contributions == pytest.approx({"audio": 0.375, "image": 0.375})
        assert together.cooperation == pytest.approx(0.75)


class TestCounting:
    def test_batches_of_any_size_give_the_same(self) -> None:
        masked, target = guesses(3)
        whole = metered(masked, target)
        meter = agm.ContributionMeter(NAMES[:3])
        for begin, end in ((0, 10), (10, 10), (10, 11), (11, 23)):
            meter.update(masked[:, begin:end], target[begin:end])
        parts = meter.report()
        assert parts.subsets == whole.subsets
        assert parts.responses == whole.responses
        assert parts.contributions == whole.contributions
        assert parts.samples == 23
        assert parts.sample_values is not None
        # A product of matrices may round otherwise for another number of columns.
        torch.testing.assert_close(parts.sample_values, agm.modality_values(masked, target), rtol=0, atol=1e-15)

    def test_ignored_samples_do_not_count(self) -> None:
        masked, target = guesses(2)
        ignored = target.clone()
        ignored[[3, 7]] = -100
        kept = ignored != -100
        report, expected = metered(masked, ignored), metered(masked[:, kept], target[kept])
        assert (report.samples, report.subsets, report.empty) == (21, expected.subsets, expected.empty)
        assert report.values == expected.values
        assert report.sample_values is not None
        assert report.sample_values.isnan().all(1).nonzero().flatten().tolist() == [3, 7]
        assert not report.sample_values[kept].isnan().any()

    def test_logits_that_are_no_numbers_are_wrong(self) -> None:
        masked = torch.full((3, 4, 2), torch.nan)
        report = metered(masked, torch.zeros(4, dtype=torch.long))  # argmax gives class 0 for them
        assert report.accuracy == 0.0
        assert set(report.responses.values()) == {0.0}

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_dtypes(self, dtype: torch.dtype) -> None:
        masked, target = guesses(2)
        masked = masked.to(dtype)
        assert metered(masked, target.int()).subsets == metered(masked.double(), target).subsets

    def test_values_of_samples_can_be_left_out(self) -> None:
        masked, target = guesses(2)
        meter = agm.ContributionMeter(NAMES[:2], sample_values=False)
        meter.update(masked, target)
        assert meter.report().sample_values is None

    def test_it_prints_its_figures(self) -> None:
        masked, target = guesses(2)
        report = metered(masked, target)
        lines = str(report).splitlines()
        assert f"{100 * report.accuracy:.1f} % are right with all modalities" in lines[0]
        assert f"{100 * report.empty:.1f} % with none" in lines[0]
        for line, name in zip(lines[2:4], NAMES, strict=False):
            figures = (report.responses[name], report.alone[name], report.contributions[name])
            assert line.split() == [
                name,
                *(f"{100 * figure:{sign}.1f}" for figure, sign in zip(figures, ("", "", "+"), strict=True)),
                f"{report.values[name]:+.2f}",
            ]
        assert lines[4].split() == ["cooperation", f"{100 * report.cooperation:+.1f}"]

    def test_what_is_refused(self) -> None:
        masked, target = guesses(2)
        meter = agm.ContributionMeter(NAMES[:2])
        with pytest.raises(ValueError, match="one sample or more that is not ignored, but got none"):
            meter.report()
        with pytest.raises(ValueError, match=r"class indices in \[0, 3\).* but got 3 at row 0"):
            meter.update(masked, target.clone().fill_(3))
        with pytest.raises(ValueError, match="to have 3 rows for the 2 modalities"):
            meter.update(guesses(3)[0], target)
        with pytest.raises(ValueError, match=r"`target` to have shape \(23,\)"):
            meter.update(masked, target[:5])
        meter.update(masked, target)
        with pytest.raises(ValueError, match="to have 3 classes on cpu as in the batches before, but got 2 on cpu"):
            meter.update(masked[..., :2], target.clamp(max=1))
        assert meter.report().samples == 23  # what was refused is not counted
        for empty in ("none", 1.5, -0.1, math.nan, True, None):
            with pytest.raises(ValueError, match="`empty` to be 'majority', 'chance' or an accuracy from 0 to 1"):
                meter.report(empty=empty)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="names of the modalities"):
            meter.report().accuracy_of("audio", "smell")

    def test_a_wrong_class_that_is_not_seen_at_once_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # On a GPU the indices are not read while counting.
        monkeypatch.setattr("agm.contribution.check_classes", lambda *_: None)
        masked, target = guesses(2)
        target[4] = 9
        with pytest.raises(ValueError, match=r"to be in \[0, 3\).* but got 1 others"):
            metered(masked, target)


SHAPES = {"audio": (6,), "image": (1, 4, 4), "text": (5, 3)}


def network_and_inputs(fusion: str = "early") -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    torch.manual_seed(0)
    network = build(fusion, SHAPES, 4, width=8)
    inputs = {name: torch.randn(30, *shape) for name, shape in SHAPES.items()}
    with torch.no_grad():
        network(**inputs)  # running statistics other than their initial ones
    return network, inputs, torch.randint(4, (30,))


def batches_of(inputs: Mapping[str, Tensor], target: Tensor, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    for begin in range(0, len(target), size):
        yield {name: x[begin : begin + size] for name, x in inputs.items()}, target[begin : begin + size]


def by_hand(network: nn.Module, inputs: Mapping[str, Tensor], target: Tensor) -> list[float]:
    """Accuracy of every subset, one pass each with the other inputs put to zero, in eval mode."""
    network.eval()
    accuracies = []
    for s in range(1, 8):
        given = {n: x if s >> m & 1 else torch.zeros_like(x) for m, (n, x) in enumerate(inputs.items())}
        with torch.no_grad():
            accuracies.append((network(**given).argmax(-1) == target).double().mean().item())
    return accuracies


class TestNetworks:
    @pytest.mark.parametrize("encoders", [None, {"audio": "encoders.audio", "image": "encoders.image"}])
    def test_against_separate_passes(self, encoders: Mapping[str, str] | None) -> None:
        network, inputs, target = network_and_inputs()
        report = agm.contributions(network, batches_of(inputs, target, 7), tuple(SHAPES), encoders=encoders)
        assert list(report.subsets) == pytest.approx(by_hand(network, inputs, target), abs=1e-12)
        assert report.sample_values is not None
        assert report.sample_values.shape == (30, 3)

    def test_the_network_stays_as_it_was(self) -> None:
        network, inputs, target = network_and_inputs()
        network.train()
        network.get_submodule("encoders.image").eval()
        modes = [module.training for module in network.modules()]
        before = {name: value.clone() for name, value in network.state_dict().items()}
        seen = []

        def batches() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
            for batch in batches_of(inputs, target, 10):
                seen.append(network.training and torch.is_grad_enabled())
                yield batch

        agm.contributions(network, batches())
        assert seen == [True] * 3  # whoever makes the batches finds the modes as they were
        assert [module.training for module in network.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_an_agm_brings_its_absent_inputs_as_they_are_now(self) -> None:
        network, inputs, target = network_and_inputs("late")
        learnt = nn.Parameter(torch.zeros(6))
        model = agm.AGM(network, alpha=1.0, absent={"audio": learnt})
        zeros = agm.contributions(network, [(inputs, target)])
        assert agm.contributions(model, [(inputs, target)]).subsets == zeros.subsets
        filled = {name: value.clone() for name, value in model.state_dict().items()}
        filled["absent.audio"] = torch.full((6,), 3.0)
        model.load_state_dict(filled, assign=True)
        changed = agm.contributions(model, [(inputs, target)])
        expected = agm.contributions(network, [(inputs, target)], absent={"audio": torch.full((6,), 3.0)})
        assert changed.subsets == expected.subsets != zeros.subsets
        assert int(model.modulator.state.step) == 0

    def test_other_arguments_of_forward_come_with_the_inputs(self) -> None:
        class Scaled(nn.Module):
            def forward(self, audio: Tensor, image: Tensor, sign: Tensor) -> Tensor:
                return sign.unsqueeze(1) * (audio + image)

        random = torch.Generator().manual_seed(0)
        audio, image = torch.randn(2, 12, 3, generator=random)
        target = (audio + image).argmax(-1)
        given = {"audio": audio, "image": image, "sign": torch.ones(12)}
        assert agm.contributions(Scaled(), [(given, target)], ("audio", "image")).accuracy == 1.0
        given["sign"] = -torch.ones(12)
        assert agm.contributions(Scaled(), [(given, target)], ("audio", "image")).accuracy == 0.0

    def test_what_is_refused(self) -> None:
        network, inputs, target = network_and_inputs()
        with pytest.raises(ValueError, match="one sample or more"):
            agm.contributions(network, [])
        with pytest.raises(TypeError, match="pairs of a mapping of inputs and a target, but batch 0 is tuple of 4"):
            agm.contributions(network, [(*inputs.values(), target)])  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"without modalities, max_rows, which it has of its own"):
            agm.contributions(agm.AGM(network), [(inputs, target)], tuple(SHAPES), max_rows=5)

        def never() -> Iterator[Any]:
            raise AssertionError("a mistake must show before the first batch")
            yield

        with pytest.raises(ValueError, match="`empty` to be"):
            agm.contributions(network, never(), empty="nothing")  # type: ignore[arg-type]
