"""A network that somebody uses, in one line of `agm.AGM`, and what is measured of it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import agm

BATCH = 4
CLASSES = 5


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normal(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape, generator=generator())


@dataclass(frozen=True)
class Client:
    """A network and how it is wrapped.

    Args:
        make: the network.
        modalities, encoders, absent: as of `agm.AGM`; `more` are its further settings.
        inputs: the arguments of forward.
        target: of the batch.
        refused: words with which it is refused; None for one that works.
        inside: what the network itself must be written with.
        cheap: whether a test has the time for it.
    """

    make: Callable[[], nn.Module]
    modalities: Any
    encoders: dict[str, str] | None
    inputs: Callable[[], dict[str, Any]]
    absent: dict[str, Any] | None = None
    target: Callable[[], Tensor] = lambda: torch.arange(BATCH)
    more: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    inside: str = ""
    cheap: bool = True

    @property
    def written(self) -> str:
        """What else a user writes, beside modalities and encoders; of long values the name alone."""
        settings = {"absent": self.absent, **self.more} if self.absent is not None else self.more
        shown = {name: f'"{value}"' if isinstance(value, str) else str(value) for name, value in settings.items()}
        words = [f"{name}={text}" if len(text) < 20 else f"{name}=" for name, text in shown.items()]
        return ", ".join(f"`{word}`" for word in [*words, *([self.inside] if self.inside else [])])

    def wrapped(self, masked: str) -> agm.AGM:
        """It as a user has it."""
        torch.manual_seed(0)
        options = {"encoders": self.encoders, "masked": masked, "absent": self.absent}
        return agm.AGM(self.make(), self.modalities, **options, **self.more)

    def loss(self, output: Any, target: Tensor) -> Tensor:
        """Of what forward returned."""
        logits = output if isinstance(output, Tensor) else self.logits(output)
        if target.is_floating_point():
            return F.mse_loss(logits, target)
        classes = self.more.get("class_dim", -1)
        return F.cross_entropy(logits.movedim(classes, -1).flatten(0, -2), target.flatten())

    def logits(self, output: Any) -> Tensor:
        """Where a user finds them: under the name that `output=` gives, or as `.logits`."""
        place = self.more.get("output")
        if place is None:
            return output.logits
        return output[place] if isinstance(output, (tuple, list, dict)) else getattr(output, place)


@dataclass(frozen=True)
class Measured:
    """What is found.

    Args:
        ok: whether the step is that of the definition, in float64.
        worst: its largest error.
        rows: modality -> rows through its encoder, over the batch, in a step.
        finite: whether everything is finite after two updates.
        report: of `agm.verify`.
    """

    ok: bool
    worst: float
    rows: dict[str, float]
    finite: bool
    report: str


def measured(client: Client, masked: str) -> Measured:
    """Verify a step in float64, and take two with an optimiser."""
    model = client.wrapped(masked)
    given, target = client.inputs(), client.target()
    targets = {client.more.get("target", "target"): target}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # absent rows that amplify, of which `finite` tells here
        found = agm.verify(model, given, target, double=True)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            loss = client.loss(model(**given, **targets), target)
            loss.backward()
            optimizer.step()
    rows = _rows(client, model, targets)
    finite = bool(loss.isfinite()) and all(bool(p.isfinite().all()) for p in model.parameters())
    return Measured(found.ok, found.worst, rows, finite, str(found))


def _rows(client: Client, model: agm.AGM, targets: dict[str, Tensor]) -> dict[str, float]:
    """Modality -> rows through its encoder in a step, over those in a pass of the network by itself, counted.

    Those of a method, or of a tower of several modalities, no weight tells: of these the plan's.
    """
    model(**client.inputs(), **targets)  # the last one that may look for absent rows that amplify
    rows, paths = {}, list((client.encoders or {}).values())
    modules = dict(model.module.named_modules())
    for name, path in (client.encoders or {}).items():
        weights = list(modules[path].parameters()) if path in modules and paths.count(path) == 1 else []
        with Used(weights) as alone, torch.no_grad():
            model.module(**client.inputs())
        if not any(alone.elements):
            rows[name] = model.plan().count(f"encoder `{name}`", BATCH) / BATCH
            continue
        with Used(weights) as together:
            model(**client.inputs(), **targets)
        # Of most weights: some are used in training mode alone, or computed from others, whatever rows there are.
        rows[name] = median(a / b for a, b in zip(together.elements, alone.elements, strict=True) if b)
    return rows


class Used(TorchDispatchMode):
    """Counts the elements that come out of operations on each of some weights and another tensor."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__()
        self.places = {weight.untyped_storage().data_ptr(): place for place, weight in enumerate(weights)}
        self.elements = [0] * len(weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        first = next((x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)), None)
        for tensor in tensors if first is not None and len(tensors) > 1 else ():
            place = self.places.get(tensor.untyped_storage().data_ptr())
            if place is not None:
                self.elements[place] += first.numel()
        return result
