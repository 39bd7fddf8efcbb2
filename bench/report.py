"""Tables, pictures and the README's figures, from the rows in bench/results and from nothing else."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import pictures
from bench.measure import is_noisy
from bench.rows import RESULTS, ROOT, Row, label, read
from bench.running import duration

SUITES = ("step", "head", "grads", "compile", "data", "scaling")
DEVICES = {"cpu": "a CPU", "cuda": "a GPU"}
README = ROOT / "README.md"
TABLES = RESULTS / "README.md"
COST = RESULTS / "cost.md"
BEGIN = "<!-- cost: made by `python bench report` from bench/results, do not edit -->"
END = "<!-- cost: end -->"
NOT_MEASURED = "not measured"
NO_GPU = f"On a GPU: {NOT_MEASURED} yet."
NOTHING = "–"

VARIANTS = {
    "sequential": "published recipe",
    "vectorised": "vectorised",
    "compiled": "compiled",
    "parameter-scaling": "parameter scaling (not AGM)",
    "exact": "`exact`",
    "exact-one": "`exact`, one pass",
    "shared": "`shared`",
    "refreshed": "`shared`, absent rows kept for 16 steps",
    "sampled": "`shared`, drawn subsets",
}
SHOWN_OPS = (
    "fused_modulate",
    "modulate",
    "modulate_backward",
    "modulate_cross_entropy",
    "modulate_cross_entropy_backward",
    "modulate_additive",
)
SHOWN_SHAPES = ("M=2 B=64 C=10", "M=2 B=64 C=309", "M=2 B=4096 C=309")
# What the README shows of the steps: networks with their number of modalities, and variants.
README_CASES = (("small", 2), ("small", 3), ("small", 6), ("av-mnist", 2), ("crema-d", 2), ("ur-funny", 3))
README_VARIANTS = ("sequential", "exact", "shared")
BACKENDS = {"cpu": ("cpp", "reference", "compiled"), "cuda": ("cuda", "triton", "reference", "compiled")}

Table = list[list[str]]


def write_all() -> None:
    """Writes everything again.

    Raises:
        SystemExit: the README has no place for its section.
    """
    for path in draw():
        print(path.relative_to(ROOT))
    for path, text in ((TABLES, tables()), (COST, cost())):
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    README.write_text(with_section(README.read_text(encoding="utf-8")), encoding="utf-8")
    print(README.relative_to(ROOT))


def with_section(readme: str) -> str:
    """The README with its section made again.

    Raises:
        SystemExit: one of the marks is missing.
    """
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"README.md has no place for the figures: two lines, {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{summary()}{END}{after}"


def rows_of(suite: str, device: str) -> list[Row]:
    """The rows of a suite, of each case and variant the last."""
    last: dict[tuple[Any, ...], Row] = {}
    for row in read(RESULTS / f"{suite}-{device}.jsonl"):
        last[row.get("axis"), label(row), row["variant"]] = row
    return list(last.values())


def picture(name: str, device: str) -> Path:
    return RESULTS / f"{name}-{device}.png"


def draw() -> list[Path]:
    made = []
    for device in DEVICES:
        if found := rows_of("step", device):
            pictures.steps(found, picture("step", device))
            made.append(picture("step", device))
        scaling = rows_of("scaling", device)
        parts = {
            "scaling-head": ([row for row in scaling if row["op"] != "step"], pictures.scaling_of_head),
            "scaling-step": ([row for row in scaling if row["op"] == "step"], pictures.scaling_of_step),
        }
        for name, (own, function) in parts.items():
            if own:
                function(own, picture(name, device))
                made.append(picture(name, device))
    return made


def summary() -> str:
    """What stands between the README's marks: whole steps on a CPU with late fusion."""
    rows = [
        row
        for row in rows_of("step", "cpu")
        if row["fusion"] == "late"
        and (row["network"], row["modalities"]) in README_CASES
        and row["variant"] in README_VARIANTS
    ]
    if not rows:
        return f"On a CPU: {NOT_MEASURED} yet; `bench/cpu.sh` measures.\n"
    return "\n".join(
        [*markdown(step_times(rows)), "", *wrapped(f"{where(rows)}. {NO_GPU if not _on_gpu() else ''}"), ""]
    )


def _on_gpu() -> bool:
    return any(rows_of(suite, "cuda") for suite in SUITES)


def cost() -> str:
    """What a step costs, for bench/results/cost.md."""
    text = ["# What modulation costs", ""]
    for device, name in DEVICES.items():
        if not any(rows_of(suite, device) for suite in SUITES):
            how = "`bench/gpu.sh` builds, tests and measures there" if device == "cuda" else "`bench/cpu.sh` measures"
            text += [f"On {name}: {NOT_MEASURED} yet; {how}.", ""]
            continue
        text += [*_section_of_steps(device), *_section_of_ops(device)]
    text += ["How to read and reproduce this: [bench](../README.md). All figures: [results](README.md).", ""]
    return "\n".join(text)


def _section_of_steps(device: str) -> list[str]:
    rows = rows_of("step", device)
    if not rows:
        return [f"A training step on {DEVICES[device]}: {NOT_MEASURED}.", ""]
    prose = (
        f"A whole training step over a joint one: forward, cross-entropy, backward, SGD ({where(rows)}; variants "
        "taking turns, median of the rounds with 20/80 percentiles). The published recipe makes 2<sup>M</sup> - 1 "
        "passes one after another and loops over samples; the vectorised one makes the same passes and computes the "
        "scores as tensors; in the compiled one they are under `torch.compile`:"
    )
    text = [*wrapped(prose), "", *markdown(step_times(rows)), ""]
    if counts := step_counts(rows):
        text += ["Peak memory, and rows through the encoders, over those of a joint step:", "", *markdown(counts), ""]
    text += _pictures(device, ("step", "scaling-step"))
    return text


def _section_of_ops(device: str) -> list[str]:
    rows = [row for row in rows_of("head", device) if row["op"] in SHOWN_OPS and row["shape"] in SHOWN_SHAPES]
    if not rows:
        return [f"The operations alone on {DEVICES[device]}: {NOT_MEASURED}.", ""]
    rows.sort(key=lambda row: (SHOWN_OPS.index(row["op"]), SHOWN_SHAPES.index(row["shape"])))
    prose = f"The operations alone, time over the reference in plain torch, and time ({where(rows)}):"
    return [*wrapped(prose), "", *markdown(op_times(rows, device)), "", *_pictures(device, ("scaling-head",))]


def _pictures(device: str, names: Iterable[str]) -> list[str]:
    alt = {
        "step": "Time of a training step over a joint one, by network",
        "scaling-step": "Time and encoder rows of a step over a joint one, by the number of modalities",
        "scaling-head": "Time of the modulation over batch, classes and modalities, above what a copy would take",
    }
    text = []
    for name in names:
        path = picture(name, device)
        source = "scaling" if name.startswith("scaling") else name
        if rows_of(source, device):
            text += [f"![{alt[name]}]({path.name})", ""]
    return text


def tables() -> str:
    """All results, for bench/results/README.md."""
    prose = (
        "Made by `python bench report` from the rows beside this file. Ratios are medians of the rounds' ratios, with "
        "the 20 and 80 percentiles in brackets; where these are too far apart to conclude from, it says so. Memory and "
        "encoder rows are over those of the baseline."
    )
    text = ["# Results", "", *wrapped(prose), ""]
    for device, name in DEVICES.items():
        for suite in SUITES:
            rows = rows_of(suite, device)
            text += [f"## {suite} on {name}", ""]
            text += [f"{where(rows)}.", "", *markdown(everything(rows)), ""] if rows else [f"{NOT_MEASURED}.", ""]
    return "\n".join(text)


def wrapped(prose: str) -> list[str]:
    return textwrap.wrap(prose, 120, break_long_words=False, break_on_hyphens=False)


def where(rows: Sequence[Row]) -> str:
    """Machine, versions and commit of some rows, each that occurs."""
    found = []
    for row in rows:
        gpu = f", CUDA {row['cuda']}" if row.get("cuda") else f", {row['threads']} threads"
        dirty = " with changes" if row["dirty"] else ""
        found.append(f"{row['device']}{gpu}, torch {row['torch']}, commit {row['commit']}{dirty}, {row['date']}")
    return "; ".join(dict.fromkeys(found))


def step_times(rows: Sequence[Row]) -> Table:
    """A line a case, a column a variant."""
    return [[*heads, *cells] for heads, cells in _by_variant(rows, ratio)]


def step_counts(rows: Sequence[Row]) -> Table:
    """The same of memory and encoder rows; empty where none have them."""
    rows = [row for row in rows if "memory_ratio" in row]
    if not rows:
        return []
    return [
        [*heads, *cells]
        for heads, cells in _by_variant(rows, lambda row: f"{row['memory_ratio']:.2f}, {row['encoder_ratio']:.2f}")
    ]


def _by_variant(rows: Sequence[Row], cell: Any) -> list[tuple[list[str], list[str]]]:
    present = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    table = [(["network", "fusion", "M", "B"], [VARIANTS[name] for name in present])]
    cases: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in ("network", "fusion", "modalities", "batch")), {})[
            row["variant"]
        ] = row
    for case, own in cases.items():
        table.append(([str(fact) for fact in case], [cell(own[n]) if n in own else NOTHING for n in present]))
    return table


def op_times(rows: Sequence[Row], device: str) -> Table:
    """A line an op and shape: ratios of the native backends and the compiled reference, then times."""
    present = [name for name in BACKENDS[device] if any(row["variant"] == name for row in rows)]
    heads = [f"{_backend(name)} / reference" for name in present if name != "reference"]
    table = [["", "M, B, C", *heads, *(_backend(name) for name in present)]]
    cases: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row["op"], row["shape"]), {})[row["variant"]] = row
    for (op, shape), own in cases.items():
        ratios = [ratio(own[name]) if name in own else NOTHING for name in present if name != "reference"]
        times = [duration(own[name]["seconds"]) if name in own else NOTHING for name in present]
        numbers = ", ".join(part.partition("=")[2] for part in shape.split())
        table.append([f"`{op}`", numbers, *ratios, *times])
    return table


def _backend(name: str) -> str:
    return {"cpp": "C++", "cuda": "CUDA", "triton": "Triton"}.get(name, name)


def everything(rows: Sequence[Row]) -> Table:
    """A line a row."""
    further = {
        "memory": lambda row: f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else NOTHING,
        "encoder rows": lambda row: f"{row['encoder_ratio']:.2f}" if "encoder_ratio" in row else NOTHING,
        "launches": lambda row: str(row["launches"]) if "launches" in row else NOTHING,
        "GB/s": lambda row: f"{row['bytes'] / row['seconds'] / 1e9:.1f}" if "bytes" in row else NOTHING,
        "of a copy": _share,
        "examples/s": lambda row: f"{row['examples'] / row['seconds']:,.0f}" if "examples" in row else NOTHING,
    }
    columns = {name: [cell(row) for row in rows] for name, cell in further.items()}
    columns = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    table = [["", "variant", "over", "ratio", "time", *columns]]
    for place, row in enumerate(rows):
        over = row.get("over", NOTHING)
        cells = [label(row), row["variant"], over, ratio(row), duration(row["seconds"])]
        table.append([*cells, *(column[place] for column in columns.values())])
    return table


def _share(row: Mapping[str, Any]) -> str:
    if "copy_bandwidth" not in row:
        return NOTHING
    return f"{100 * row['bytes'] / row['seconds'] / row['copy_bandwidth']:.0f} %"


def ratio(row: Mapping[str, Any]) -> str:
    ends = f"({_digits(row['ratio_20'])} - {_digits(row['ratio_80'])})"
    if row["ratio_20"] == row["ratio_80"] == 1:
        return "1"
    return f"too noisy {ends}" if is_noisy(row) else f"{_digits(row['ratio'])} {ends}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def markdown(table: Table) -> list[str]:
    head, *body = table
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *body)]
