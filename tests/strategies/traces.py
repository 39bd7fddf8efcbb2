"""Recorded training steps of the authors' released code and of the papers' formulas, and the networks they ran on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agm.strategies import Strategy

Features = dict[str, Tensor]


class Trace:
    """The arrays of one file, by name; those of a step by its number."""

    folder = Path(__file__).parents[1] / "golden" / "strategies"

    def __init__(self, name: str) -> None:
        with np.load(self.folder / f"{name}.npz") as arrays:
            self.arrays = {key: value for key, value in arrays.items() if key != "settings"}
            self.settings = json.loads(str(arrays["settings"]))
        self.modalities = self.settings["modalities"]
        self.steps = self.settings.get("steps", 0)

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def inputs(self, step: int) -> Features:
        return {name: self[name][step].double() for name in self.modalities}

    def state(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.arrays if key.startswith(prefix)}

    def sgd(self, parameters: Any) -> torch.optim.SGD:
        s = self.settings
        return torch.optim.SGD(parameters, lr=s["lr"], momentum=s["momentum"], weight_decay=s["weight_decay"])


class Chain(nn.Module):
    """Layers by number, each followed by tanh."""

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = torch.tanh(child(x))
        return x


class Recorded(nn.Module):
    """The recorded network under the names of its parameters: encoders are chains, `fuse` is the rest of forward."""

    def __init__(
        self,
        trace: Trace,
        encoders: dict[str, str],
        fuse: Callable[[Any, Features], Tensor],
        alone: Callable[[Any, Features], Features] | None = None,
        start: str = "init/",
    ) -> None:
        super().__init__()
        state = trace.state(start)
        for path in dict.fromkeys(name.rpartition(".")[0] for name in state):
            weight = state.get(f"{path}.weight")
            if weight is None:  # the network's own
                continue
            *parents, last = path.split(".")
            place: nn.Module = self
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, Chain())
                place = getattr(place, parent)
            place.add_module(last, _layer(weight, f"{path}.bias" in state))
        for name, value in state.items():
            if "." not in name:
                self.register_parameter(name, nn.Parameter(value.clone()))
        self.double().load_state_dict(state)
        self.paths, self._fuse = encoders, fuse
        if alone is not None:
            self.unimodal_logits = lambda features: alone(self, features)

    def forward(self, **inputs: Tensor) -> Tensor:
        return self._fuse(self, {name: self.get_submodule(path)(inputs[name]) for name, path in self.paths.items()})


def _layer(weight: Tensor, bias: bool) -> nn.Module:
    if weight.dim() == 2:
        return nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    return nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=weight.shape[2] // 2, bias=bias)


def close(actual: Any, expected: Tensor, what: str, rtol: float = 1e-9) -> None:
    actual = torch.as_tensor(actual, dtype=expected.dtype)
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=1e-12, msg=lambda text: f"{what}: {text}")


def close_parameters(network: nn.Module, trace: Trace, kind: str, step: int | tuple[int, ...]) -> None:
    """Gradients ("grad/") or weights ("weight/") of all parameters; one without a gradient was recorded as zeros."""
    for name, parameter in network.named_parameters():
        value = parameter.grad if kind.startswith("grad") else parameter.detach()
        expected = trace[f"{kind}{name}"][step]
        close(torch.zeros_like(expected) if value is None else value, expected, f"{kind}{name} of step {step}")


def replay(
    trace: Trace, strategy: Strategy, optimizer: torch.optim.Optimizer, steps: range | None = None
) -> Iterator[tuple[int, Any]]:
    """Takes the recorded steps, one update each, and compares gradients and weights; yields step and outcome."""
    for step in range(trace.steps) if steps is None else steps:
        (outcome,) = _updates(trace, strategy, optimizer, step)
        close_parameters(strategy.network, trace, "weight/", step)
        yield step, outcome


def _updates(trace: Trace, strategy: Strategy, optimizer: torch.optim.Optimizer, step: int) -> Iterator[Any]:
    for outcome in strategy.steps(trace.inputs(step), trace["target"][step]):
        close_parameters(strategy.network, trace, "grad/", step)
        optimizer.step()
        yield outcome
