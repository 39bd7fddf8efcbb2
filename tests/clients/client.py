"""A network that somebody uses, in one line of `agm.AGM`, and what is measured of it."""

import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

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

    Those of a tower of several modalities, or of a compiled encoder, no call tells: of these the plan's.
    """
    model(**client.inputs(), **targets)  # the last one that may look for absent rows that amplify
    rows, paths = {}, list((client.encoders or {}).values())
    for name, path in (client.encoders or {}).items():
        alone, together = Given(model.module, path), Given(model.module, path)
        with alone, torch.no_grad():
            model.module(**client.inputs())
        with together:
            model(**client.inputs(), **targets)
        if paths.count(path) == 1 and alone.elements:
            rows[name] = together.elements / alone.elements
        else:
            rows[name] = model.plan().count(f"encoder `{name}`", BATCH) / BATCH
    return rows


class Given:
    """Counts the elements that an encoder is given inside: of the first tensor in each of its calls.

    What it is given, not what comes of it: layers may be dropped at random, and a pass of packed sequences has no more
    than their tokens. Calls are looked at from outside (as a profiler does), so that the network is as a user has it.

    Args:
        network: of which it is a part.
        path: of the encoder, a module or a method.
    """

    def __init__(self, network: nn.Module, path: str) -> None:
        modules = dict(network.named_modules())
        owner, _, method = (path, "", "forward") if path in modules else path.rpartition(".")
        self.owner = modules[owner]
        self.code = inspect.unwrap(getattr(type(self.owner), method)).__code__  # decorators share theirs
        self.elements = 0

    def __enter__(self) -> "Given":
        self._before = sys.getprofile()
        sys.setprofile(self._look)
        return self

    def __exit__(self, *error: object) -> None:
        sys.setprofile(self._before)

    def _look(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code is not self.code:
            return
        given = [frame.f_locals[name] for name in self.code.co_varnames if name in frame.f_locals]
        owner, *inputs = [leaf for value in given for leaf in (value if isinstance(value, tuple) else (value,))]
        if owner is not self.owner:
            return
        with torch._C.DisableTorchFunction():  # who watches the network sees nothing of this
            self.elements += next(x.numel() for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor))
