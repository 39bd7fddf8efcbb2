"""Two revisions of the project compared in one run: a process each, which take turns."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench.cases import Options
from bench.measure import is_noisy, summary
from bench.rows import ROOT, Row, label, revision
from bench.running import duration

# A median ratio within this of 1 is no difference, nor is one whose percentiles lie on both sides of 1.
SAME = 0.02


def compare(name: str, suite: Any, options: Options, base: str) -> list[Row]:
    """Prints and returns the ratio of the working tree's time to that of revision `base`, case by case.

    The benchmarks are those of the working tree in both processes; only `agm` differs.

    Raises:
        SystemExit: no such revision, or one that cannot be installed.
    """
    rows: list[Row] = []
    with ExitStack() as stack:
        folder, commit = stack.enter_context(installed(base))
        old = stack.enter_context(_worker(name, options, folder))
        new = stack.enter_context(_worker(name, options, None))
        print(f"the working tree over {commit}, variants of the project alone:", flush=True)
        number = 0
        while True:
            answers = [worker.ask(case=number) for worker in (old, new)]
            if any(answer.get("variants", {}) is None for answer in answers):
                return rows
            number += 1
            facts = answers[1]["facts"]
            if errors := [answer["error"] for answer in answers if "error" in answer]:
                print(f"{label(facts)}: cannot be compared: {errors[0].splitlines()[0]}", flush=True)
                continue
            for variant in answers[1]["variants"]:
                if variant in answers[0]["variants"]:
                    row = {"suite": name, **facts, "variant": variant, "over": commit}
                    rows.append(row | _measured(old, new, variant, options.rounds))
                    print(_line(rows[-1]), flush=True)


def _measured(old: "_Worker", new: "_Worker", variant: str, rounds: int) -> dict[str, float]:
    seconds: dict[Any, list[float]] = {old: [], new: []}
    for number in range(rounds):
        for worker in (old, new) if number % 2 else (new, old):
            seconds[worker].append(worker.ask(time=variant)["seconds"])
    return summary(seconds[new], seconds[old])


def _line(row: Row) -> str:
    ratio = f"{row['ratio']:.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})"
    if is_noisy(row):
        word = "too noisy to conclude"
    elif abs(row["ratio"] - 1) <= SAME or row["ratio_20"] <= 1 <= row["ratio_80"]:
        word = "no difference"
    else:
        word = "slower" if row["ratio"] > 1 else "faster"
    return f"{label(row):48} {row['variant']:12} {ratio:24} {duration(row['seconds']):>9}  {word}"


@contextmanager
def installed(base: str) -> Iterator[tuple[Path, str]]:
    """A folder that holds the package as of a revision, native library included, and the revision's commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree, site = Path(folder) / "tree", Path(folder) / "site"
        _run("git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(tree), base)
        try:
            commit = revision(tree)["commit"]
            options = ("--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--disable-pip-version-check")
            same = _same_native(commit)
            print(f"installing {commit}{'' if same else ', which is to be compiled'} ...", flush=True)
            building = {"AGM_BUILD": "0"} if same else {}
            _run(sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(tree), **building)
            for library in same:
                shutil.copy(library, site / "agm")
            yield site, commit
        finally:
            _run("git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree))


def _same_native(commit: str) -> list[Path]:
    """The native library that is installed, where a revision would be built from the same sources; else nothing."""
    compared = ["git", "-C", str(ROOT), "diff", "--quiet", commit, "--", "csrc", "setup.py"]
    changed = subprocess.run(compared, check=False).returncode
    native = sys.modules.get("agm._C")
    return [Path(native.__file__)] if native is not None and native.__file__ and not changed else []


def _run(*command: str, **variables: str) -> None:
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


class _Worker:
    """A process that holds one revision."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process

    def ask(self, **what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("A process that measures has ended; what it said stands above.")
        return json.loads(answer)


@contextmanager
def _worker(name: str, options: Options, folder: Path | None) -> Iterator[_Worker]:
    environment = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {})}
    command = [sys.executable, str(ROOT / "bench"), "worker", "--suite", name, *_arguments(options)]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env=environment, **streams)
    try:
        yield _Worker(process)
    finally:
        process.kill()
        process.wait()


def _arguments(options: Options) -> list[str]:
    words = ["--device", str(options.device)]
    several = {
        "--network": options.networks,
        "--fusion": options.fusions,
        "--modalities": options.modalities,
        "--op": options.ops,
        "--variants": options.variants,
    }
    for name, values in several.items():
        words += [name, *map(str, values)] if values else []
    words += ["--quick"] if options.quick else []
    return words + (["--batch", str(options.batch)] if options.batch else [])
