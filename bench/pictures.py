"""Pictures of the results; matplotlib is imported when one is drawn."""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

from bench.rows import Row

NOT_IN_PICTURES = ("compiled", "parameter-scaling")
COLOURS = {
    "joint": "#222222",
    "sequential": "#D55E00",
    "vectorised": "#E69F00",
    "compiled": "#CC79A7",
    "parameter-scaling": "#999999",
    "exact": "#0072B2",
    "exact-one": "#004C74",
    "shared": "#009E73",
    "refreshed": "#004D3A",
    "sampled": "#56B4E9",
    "auto": "#0072B2",
    "reference": "#E69F00",
}
LIMIT = {"color": "#222222", "linestyle": ":", "linewidth": 1.2}
NAMES = {"auto": "agm", "reference": "plain torch"}


def _styled(draw: Callable[[Sequence[Row], Path], None]) -> Callable[[Sequence[Row], Path], None]:
    """In the style of the pictures of training runs."""

    @wraps(draw)
    def drawn(rows: Sequence[Row], path: Path) -> None:
        import matplotlib

        from agm.training.drawing import STYLE

        with matplotlib.rc_context(STYLE):
            draw(rows, path)

    return drawn


@_styled
def scaling_of_head(rows: Sequence[Row], path: Path) -> None:
    """Time of the modulation, forward and backward, over batch, classes and modalities, above the copy bandwidth."""
    figure, panels = _figure(3, "The modulation alone, forward and backward")
    for axes, axis in zip(panels, ("batch", "classes", "modalities"), strict=True):
        own = sorted((row for row in rows if row["op"] != "step" and row["axis"] == axis), key=lambda row: row[axis])
        for variant in dict.fromkeys(row["variant"] for row in own):
            _curve(axes, [row for row in own if row["variant"] == variant], axis, "seconds", 1e6)
        if not own:
            continue
        limits = {row[axis]: 1e6 * row["bytes"] / row["copy_bandwidth"] for row in own}
        axes.plot(limits.keys(), limits.values(), label="bytes over copy bandwidth", **LIMIT)
        if axis == "modalities":
            axes.set_xticks(list(limits))
        else:
            axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(_title(own, axis))
    panels[0].set_ylabel("microseconds")
    panels[0].legend()
    _save(figure, path)


@_styled
def scaling_of_step(rows: Sequence[Row], path: Path) -> None:
    """Time of a step over a joint one, by modalities, and the encoder rows that the mathematics requires."""
    figure, (times, passes) = _figure(2, "A training step, late fusion of small CNNs")
    own = sorted((row for row in rows if row["op"] == "step"), key=lambda row: row["modalities"])
    for variant in dict.fromkeys(row["variant"] for row in own):
        if variant not in NOT_IN_PICTURES:
            mine = [row for row in own if row["variant"] == variant]
            _curve(times, mine, "modalities", "ratio", 1.0)
            _curve(passes, mine, "modalities", "encoder_ratio", 1.0)
    counts = sorted({row["modalities"] for row in own})
    for axes in (times, passes):
        for masked, batches in (("exact", 2), ("shared", 1)):
            limit = [batches + 1 / own[0]["batch"]] * len(counts)
            axes.plot(counts, limit, **LIMIT)
            axes.annotate(f"required, {masked}", (counts[-1], limit[0]), ha="right", va="bottom", fontsize=8)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("modalities")
        axes.set_xticks(counts)
    times.set_title("time over a joint step")
    passes.set_title("encoder rows over those of a joint step")
    times.legend()
    _save(figure, path)


@_styled
def steps(rows: Sequence[Row], path: Path) -> None:
    """Time over a joint step, network by network: median and 20/80 percentiles."""
    labels = list(dict.fromkeys(_case(row) for row in rows))
    figure, (axes,) = _figure(1, "A training step over a joint one", height=0.9 + 0.45 * len(labels), width=8)
    variants = [name for name in dict.fromkeys(row["variant"] for row in rows) if name not in ("joint",)]
    for place, variant in enumerate(variants):
        mine = [row for row in rows if row["variant"] == variant]
        heights = [labels.index(_case(row)) + 0.12 * (place - (len(variants) - 1) / 2) for row in mine]
        middle = [row["ratio"] for row in mine]
        errors = [
            [row["ratio"] - row["ratio_20"] for row in mine],
            [row["ratio_80"] - row["ratio"] for row in mine],
        ]
        axes.errorbar(
            middle, heights, xerr=errors, fmt="o", markersize=4, color=COLOURS.get(variant, "#777777"), label=variant
        )
    axes.axvline(1, **LIMIT)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time over a joint step")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)


def _case(row: Mapping[str, Any]) -> str:
    return f"{row['network']}, {row['fusion']}, M={row['modalities']}, B={row['batch']}"


def _title(rows: Sequence[Row], axis: str) -> str:
    fixed = {name: rows[0][name] for name in ("modalities", "batch", "classes") if name != axis} if rows else {}
    kind = "modalities, additive" if axis == "modalities" else axis
    letters = {"modalities": "M", "batch": "B", "classes": "C"}
    return f"{kind} ({', '.join(f'{letters[name]}={value}' for name, value in fixed.items())})"


def _curve(axes: Any, rows: Sequence[Row], axis: str, value: str, scale: float) -> None:
    if not rows:
        return
    variant = rows[0]["variant"]
    colour = COLOURS.get(variant, "#777777")
    places = [row[axis] for row in rows]
    label = NAMES.get(variant, variant)
    axes.plot(places, [scale * row[value] for row in rows], marker="o", markersize=3, color=colour, label=label)
    if f"{value}_20" in rows[0]:
        low, high = ([scale * row[f"{value}_{end}"] for row in rows] for end in (20, 80))
        axes.fill_between(places, low, high, color=colour, alpha=0.2, linewidth=0)


def _figure(columns: int, title: str, height: float = 3.4, width: float = 0.0) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width or 3.6 * columns, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, columns, squeeze=False)[0].tolist()
    figure.suptitle(title, x=0.008, horizontalalignment="left")
    return figure, panels


def _save(figure: Any, path: Path) -> None:
    # Without the date and the version that matplotlib would write, equal pictures are equal files.
    figure.savefig(path, dpi=150, metadata={"Software": None})
