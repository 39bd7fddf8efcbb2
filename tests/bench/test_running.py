"""`python bench` from end to end on tiny networks, and what keeps a false comparison from being timed."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import agm
from agm.ops import reference
from bench import base, check, cli, compiling, grads, head, profiling, running, scaling, step, worker
from bench.cases import Built, Case, Options
from bench.networks import NETWORKS
from bench.shared import samples, steps
from bench.thresholds import Ratio

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
TINY = ("--network", "tiny", "--fusion", "late", "--modalities", "2", "--device", "cpu", "--rounds", "2")


def test_a_step_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    names = ("sequential", "vectorised", "parameter-scaling", "exact", "exact-one", "shared", "refreshed")
    cli.main(["step", *TINY, "--variants", *names, "--json", str(file)])
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["variant"] for row in rows] == ["joint", *names]
    facts = {"date", "commit", "dirty", "machine", "device", "torch", "triton", "cuda", "op", "shape", "dtype", "over"}
    for row in rows:
        assert facts <= row.keys()
        assert row["seconds_20"] <= row["seconds"] <= row["seconds_80"]
        assert row["peak_bytes"] > 0
    assert {row["variant"]: round(row["encoder_ratio"], 3) for row in rows} == {
        **dict.fromkeys(names, 3.0),
        "joint": 1.0,
        "exact": 2.125,  # (2 * 8 + 1) / 8
        "exact-one": 2.125,
        "shared": 1.125,
        "refreshed": 1.0,  # a step that keeps the absent rows
    }
    assert "step tiny late M=2 B=8 C=3, over joint" in capfd.readouterr().out


def test_as_a_program() -> None:
    """From anywhere, as a process of its own."""
    command = [sys.executable, str(ROOT / "bench"), "head", "--quick", "--op", "modulate_backward", *TINY[-4:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "modulate_backward M=2 B=64 C=309, over reference" in done.stdout
    assert "% of a copy" in done.stdout


def test_percentiles_need_two_rounds() -> None:
    with pytest.raises(SystemExit):
        cli.main(["head", "--rounds", "1"])


def test_ops_get_the_inputs_of_the_tests_but_ignore_nothing() -> None:
    given = head.given_step((2, 8, 5), torch.float32)
    wanted = steps.step(2, 8, 5, torch.float32)
    assert torch.equal(given.masked_logits, wanted.masked_logits)
    assert (wanted.target < 0).any()
    assert (given.target >= 0).all()


@pytest.mark.parametrize("name", ["modulate", "modulate_cross_entropy", "modulate_additive", "modulate_backward"])
def test_an_op_that_computes_something_else_is_not_timed(name: str) -> None:
    class Wrong:
        def op(self, op: str) -> Any:
            def run(*arguments: Any) -> Any:
                changed = [x * 1.01 if isinstance(x, torch.Tensor) and x.dim() > 1 and i == 0 else x
                           for i, x in enumerate(arguments)]  # fmt: skip
                return getattr(reference, op)(*changed)

            return run

    ops = {op.name: op for op in head.modulation_ops((2, 8, 5), torch.float32, CPU)}
    ops[name].check(samples.Room("reference", "cpu"))
    with pytest.raises(AssertionError):
        ops[name].check(samples.Room("wrong", "cpu", Wrong()))


def test_a_step_with_other_coefficients_is_not_timed() -> None:
    options = Options(CPU, variants=("sequential", "vectorised", "exact", "exact-one"))
    made = step.prepare(NETWORKS["tiny"], "early", 3, 8, options)
    before = {name: buffer.clone() for name, buffer in made.network.named_buffers()}
    step.check(made)
    assert all(torch.equal(buffer, before[name]) for name, buffer in made.network.named_buffers())
    right = made.steps["vectorised"].coefficients
    assert right is not None
    made.steps["vectorised"].coefficients = lambda: right() * 1.01
    with pytest.raises(RuntimeError, match="Expected vectorised to compute the coefficients of exact"):
        step.check(made)


def test_gradients_stay_what_they_are() -> None:
    """However often they are rescaled, and by whom."""
    values, groups = grads.gradients("tiny", 2, CPU)
    before = [value.clone() for value in values]
    for call in grads.variants(values, groups, 2, False, Options(CPU)).values():
        call()
    assert all(torch.equal(value, own) for value, own in zip(values, before, strict=True))
    assert set(groups) == {0, 1}


def test_gradients_with_noise_keep_their_size() -> None:
    """A deviation estimated from k numbers errs by 1 / sqrt(2 k): over 60 rounds, by a few percent for 1000 of them."""
    values, groups = grads.gradients("tiny", 2, CPU)
    values.append(samples.logits(40, 100, dtype=torch.float32, device="cpu"))
    groups.append(0)
    before = [value.std(correction=0).item() for value in values]
    calls = grads.variants(values, groups, 2, True, Options(CPU))
    assert {"reference", "loop"} <= calls.keys()
    for _ in range(20):
        for call in calls.values():
            call()
    for value, deviation in zip(values, before, strict=True):
        assert value.isfinite().all()
        if value.numel() >= 1000:
            assert 0.5 < value.std().item() / deviation < 2


@pytest.mark.parametrize("suite", [grads, compiling, scaling], ids=lambda suite: suite.__name__)
def test_suites_build_what_they_announce(suite: Any) -> None:
    networks = () if suite is scaling else ("tiny",) if suite is compiling else ("small",)
    options = Options(CPU, 2, True, networks=networks, fusions=("late",), modalities=(2,), ops=("step",))
    case = next(iter(suite.cases(options)))
    built = case.build()
    assert case.baseline in built.variants
    assert set(case.own) & set(built.variants)
    for call in built.variants.values():
        call()


def test_scaling_leaves_out_what_would_not_fit() -> None:
    few, many = (scaling.fusion_rows(count, "exact", 64) for count in (2, 16))
    assert few <= 3 * 64
    assert many >= few
    (case,) = [case for case in scaling.cases(Options(CPU, ops=("step",))) if case.facts["modalities"] == 16]
    built = "exact" in _built_variants(case)
    assert built == (many <= scaling.MOST_ROWS)


def _built_variants(case: Case) -> list[str]:
    return list(case.build().variants)


def test_profile_finds_the_parts() -> None:
    options = Options(CPU, variants=("exact",))
    made = step.prepare(NETWORKS["tiny"], "early", 2, 8, options)
    plan = str(made.plans["exact"]())
    found = profiling.parts(made, "exact")
    names = {"encoder audio", "encoder image", "fusion", "modulation", "optimizer", "loss"}
    assert names <= found.keys()
    for name in names - {"optimizer"}:
        assert found[name][0] > 0
        assert found[name][1] > 0
    assert sum(found["encoder audio"]) > sum(found["loss"])
    assert str(made.plans["exact"]()) == plan


class _Answers:
    """A worker that needs the same time again and again."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = iter(seconds)
        self.asked: list[str] = []

    def ask(self, **what: str) -> dict[str, float]:
        self.asked.append(what["time"])
        return {"seconds": next(self.seconds)}


def test_revisions_take_turns() -> None:
    old, new = _Answers([1.0, 2.0, 1.0]), _Answers([1.5, 3.0, 1.5])
    row = base._measured(old, new, "exact", 3)  # type: ignore[arg-type]
    assert row["ratio"] == 1.5
    assert old.asked == new.asked == ["exact"] * 3
    assert "slower" in base._line({"op": "step", "variant": "exact", **row})
    same = base._measured(_Answers([1.0] * 3), _Answers([0.9, 1.0, 1.04]), "exact", 3)  # type: ignore[arg-type]
    assert "no difference" in base._line({"op": "step", "variant": "exact", **same})


def test_a_worker_times_the_variants_of_the_project_only() -> None:
    calls = {"joint": lambda: None, "exact": lambda: None}
    case = Case({"op": "x"}, "joint", ("exact",), lambda: Built(calls))

    def refuse() -> Built:
        raise TypeError("another interface")

    cases = [case, Case({"op": "y"}, "joint", ("exact",), refuse)]
    begin = partial(worker._begin, cases, options=Options(CPU))
    answer, built, _ = begin(number=0)
    assert list(answer["variants"]) == list(built.variants) == ["exact"]
    assert "another interface" in begin(number=1)[0]["error"]
    assert begin(number=2)[0] == {"variants": None}


def test_bounds_are_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bound that nothing could break holds, one that nothing could hold is broken and fails the command."""
    what = {"suite": "step", "network": "tiny", "fusion": "late", "modalities": 2, "over": "joint"}
    bounds = [Ratio(variant="shared", most=1000.0, **what), Ratio(variant="exact", most=0.001, **what)]
    monkeypatch.setattr(check, "ratios", lambda device: bounds[:1])
    assert check.main(Options(CPU, rounds=2)) == 0
    assert "1 bounds: 1 hold, 0 broken, 0 not concluded" in capsys.readouterr().out
    monkeypatch.setattr(check, "ratios", lambda device: bounds)
    assert check.main(Options(CPU, rounds=2)) == 1
    monkeypatch.setattr(check, "verdict", lambda row, most: "too noisy")
    assert check.main(Options(CPU, rounds=2)) == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.25, "250 ms"), (1.5e-5, "15 us"), (1e-8, "0.01 us"), (5000.0, "5000 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert running.duration(seconds) == text


def test_what_a_network_of_more_modalities_is() -> None:
    names = list(NETWORKS["av-mnist"].modalities(6))
    assert names == ["audio", "image", "audio2", "image2", "audio3", "image3"]
    network = NETWORKS["tiny"].build("late", 6)
    inputs, target = NETWORKS["tiny"].inputs(6, 4, CPU)
    assert network(**inputs).shape == (4, 3)
    assert len(target) == 4
    assert agm.AGM(network).modalities == tuple(inputs)
