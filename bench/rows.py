"""Results as rows: what stands in each of them, and the files that hold them, one JSON object a line."""

import datetime
import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"

Row = dict[str, Any]

_FACTS = ("op", "network", "fusion", "shape")


def label(row: Mapping[str, Any]) -> str:
    """What was measured, without the variant."""
    dtype = row.get("dtype", "float32")
    return " ".join([*(row[name] for name in _FACTS if row.get(name)), *([dtype] if dtype != "float32" else [])])


def write(path: Path, facts: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends the rows to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**facts, **row}) + "\n" for row in rows)


def read(path: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def environment(device: torch.device) -> Row:
    """Where and with what a figure was measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        **revision(ROOT),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def revision(tree: Path) -> Row:
    """The commit of a working tree, and whether it holds changes beside measured results."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(tree), *words]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        except FileNotFoundError:
            return ""

    changed = git("status", "--porcelain", "--", ".", ":!bench/results", ":!README.md")
    return {"commit": git("rev-parse", "--short", "HEAD") or None, "dirty": bool(changed)}


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    named = (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return file.readlines()
    except OSError:
        return []
