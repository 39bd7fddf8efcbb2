"""A page for every public module: its names, from `__all__`, each shown from its docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Page -> modules whose public names it shows. A module that needs an extra is read, not imported.
PAGES: dict[str, tuple[str, ...]] = {
    "agm": ("agm",),
    "strategies": ("agm.strategies",),
    "models": ("agm.models", "agm.models.averformer", "agm.models.har", "agm.models.spiking"),
    "data": ("agm.data", "agm.data.layouts"),
    "modulation": ("agm.modulation.scores",),
    "shapley": ("agm.shapley.weights", "agm.shapley.sampling"),
    "ops": ("agm.ops", "agm.ops.reference"),
    "competition": ("agm.competition",),
    "integrations": (
        "agm.integrations.amp",
        "agm.integrations.lightning",
        "agm.integrations.logs",
        "agm.integrations.published",
        "agm.integrations.torchmetrics",
        "agm.integrations.transformers",
    ),
    "federated": ("agm.federated", "agm.federated.flower"),
    "distributed": ("agm.distributed", "agm.joining"),
    "training": ("agm.training", "agm.training.study"),
}

_ELSEWHERE = {("agm", "competition")}  # rooms among the names, which have pages of their own


def names(module: str) -> list[str]:
    """The public names of a module, in the order of its `__all__`."""
    stem = ROOT.joinpath(*module.split("."))
    path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            listed = [str(name) for name in ast.literal_eval(node.value)]
            return [name for name in listed if (module, name) not in _ELSEWHERE and not _is_row(module, name)]
    raise ValueError(f"Expected {path} to list its public names in `__all__`, but got none.")


def _is_row(module: str, name: str) -> bool:
    """Whether it numbers a row of the state, which says nothing by itself."""
    return module == "agm.ops.reference" and name.isupper()


def pages() -> dict[str, str]:
    """Place in the site -> page."""
    return {f"reference/{page}.md": _page(page, modules) for page, modules in PAGES.items()}


def _page(page: str, modules: tuple[str, ...]) -> str:
    title = "agm" if page == "agm" else f"agm.{page}"
    text = [] if title in modules else [f"# {title}", ""]
    for module in modules:
        level = 1 if module == title else 2
        text += [f"{'#' * level} {module}", "", f"::: {module}", "    options:"]
        text += ["      members: false", "      show_root_heading: false", "      show_root_toc_entry: false", ""]
        for name in names(module):
            text += [f"::: {module}.{name}", "    options:", f"      heading_level: {level + 1}", ""]
    return "\n".join(text)
