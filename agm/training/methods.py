"""How a network is trained: a strategy over a new network, found by the name that a configuration gives."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from agm import models
from agm.models.factorised import FactorisedNetwork
from agm.strategies import AGM, Joint, Strategy, linear_heads, options_of, strategies
from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.problem import Problem
from agm.training.single_modality import SingleModality

__all__ = ["METHODS", "OF_ONE", "Method", "build_method", "check_method", "own_options"]

Shapes = Mapping[str, tuple[int, ...]]  # modality -> shape of one sample

# Joint training on one modality: of a network that has its encoder alone, or of the whole one with the others absent.
OF_ONE = ("unimodal", "alone")
METHODS = (*strategies, *(f"{kind}:NAME" for kind in OF_ONE))

# Options that are settings of a run already, or that the trainer fills in.
_SETTINGS = {"agm": ("alpha", "max_gap", "masked")}
_FILLED_IN = ("score", "make_optimizer", "teachers", "cluster", "conditional", "widths", "num_classes")


@dataclass(frozen=True)
class Method:
    """What the trainer works with.

    Args:
        strategy: the network under a strategy.
        model: everything that training changes; its state_dict goes into the checkpoint.
    """

    strategy: Strategy
    model: nn.Module

    @property
    def network(self) -> nn.Module:
        """What is evaluated: the plain network, or what the strategy predicts with."""
        return self.strategy.predictor

    @property
    def modalities(self) -> tuple[str, ...]:
        """Those that the network takes."""
        return self.strategy.modalities


def check_method(name: str) -> tuple[str, str]:
    """The strategy (or one of `OF_ONE`) that `name` asks for, and what follows its colon.

    Raises:
        UserError: there is none.
    """
    kind, colon, argument = name.partition(":")
    if bool(colon) != (kind in OF_ONE) or kind not in (*strategies, *OF_ONE):
        near = difflib.get_close_matches(name, METHODS, n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        if "," in name:
            hint = "Several are for agm compare --methods. "
        raise UserError(
            f"Expected setting `method` to be one of {', '.join(METHODS)}, but got {name!r}. "
            f"{hint}Set it with --method."
        )
    return kind, argument


def own_options(kind: str) -> dict[str, Any]:
    """The options of a method, with their defaults."""
    if kind in OF_ONE:
        return {}
    hidden = (*_SETTINGS.get(kind, ()), *_FILLED_IN)
    return {name: default for name, default in options_of(kind).items() if name not in hidden}


def build_method(config: Config, shapes: Shapes, num_classes: int, problem: Problem | None = None) -> Method:
    """The method that `config` names, over a new network with weights from torch's generator.

    Args:
        config: the settings.
        shapes: modality -> shape of one sample.
        num_classes: of classes, labels or numbers.
        problem: what is to be learnt; one class of each sample, from quantities, by default.

    Raises:
        UserError: no such method, fusion or option, or data that the method cannot take.
    """
    problem = Problem() if problem is None else problem
    kind, argument = check_method(config.method)
    _check_options(kind, config.options)
    if not problem.complete and (kind in OF_ONE or strategies[kind].lacking == "refused"):
        able = ", ".join(name for name, strategy in strategies.items() if strategy.lacking != "refused")
        raise UserError(
            f"Expected data whose samples have every modality for method {config.method!r}, but got some that lack "
            f"one. Use one of {able}, or leave these samples out."
        )
    if kind in OF_ONE:
        return _of_one(kind, argument, config, shapes, num_classes, problem)
    if problem.task not in strategies[kind].tasks:
        able = ", ".join(name for name, strategy in strategies.items() if problem.task in strategy.tasks)
        raise UserError(
            f"Expected a method for {problem.task}, but got {kind!r}, which needs one class a sample. "
            f"Use one of {able}."
        )
    if kind != "joint" and len(shapes) < 2:
        raise UserError(
            f"Expected the data to have two modalities or more for method {kind!r}, but got {_listed(shapes)}. "
            "Use --method joint."
        )
    network = _network(config, shapes, num_classes, problem)
    strategy = _strategy(kind, config, network, num_classes, problem)
    # Neither has state beside that of what it trains, whose names in a checkpoint are those of a loop by hand.
    return Method(strategy, strategy.module if isinstance(strategy, (Joint, AGM)) else strategy)


def _of_one(kind: str, name: str, config: Config, shapes: Shapes, num_classes: int, problem: Problem) -> Method:
    """Joint training on the modality `name`."""
    if name not in shapes:
        raise UserError(
            f"Expected the method {kind}:NAME to name one of {_listed(shapes)}, but got {name!r}. "
            f"Use for example --method {kind}:{next(iter(shapes))}."
        )
    if kind == "unimodal":
        own = {key: size for key, size in problem.vocabularies.items() if key == name}
        alone = _network(config, {name: shapes[name]}, num_classes, replace(problem, vocabularies=own))
        strategy = Joint(alone, criterion=problem.criterion)
    else:
        whole = SingleModality(_network(config, shapes, num_classes, problem), name, shapes, problem.vocabularies)
        paths = {name: f"network.encoders.{name}"}
        strategy = Joint(whole, modalities=(name,), encoders=paths, criterion=problem.criterion)
    return Method(strategy, strategy.module)


def _strategy(kind: str, config: Config, network: FactorisedNetwork, num_classes: int, problem: Problem) -> Strategy:
    settings: dict[str, Any] = {**config.options, "criterion": problem.criterion}
    if kind == "agm":
        settings["score"] = problem.score
    for name in _SETTINGS.get(kind, ()):
        settings[name] = getattr(config, name)
    if kind != "joint":
        settings.update(start=config.start, stop=config.stop)
    heads = strategies[kind].default_heads(network, num_classes)
    if settings.get("multi_loss") is True and not hasattr(network, "unimodal_logits"):
        heads = linear_heads(network.widths, num_classes)
    if heads is not None:
        settings["heads"] = heads

    def present_optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Like the run's own, at the learning rate that it has now."""
        optimizer = new_optimizer(config, parameters)
        if strategy.optimizer is not None:
            optimizer.param_groups[0]["lr"] = strategy.optimizer.param_groups[0]["lr"]
        return optimizer

    if "make_optimizer" in options_of(kind):
        settings["make_optimizer"] = present_optimizer
    try:
        strategy = strategies[kind](network, **settings)
    except (TypeError, ValueError) as error:
        if any(_names(str(error), name) for name in config.options):
            raise UserError(f"{error} It was set for method {kind!r}, by --option or in [options].") from error
        raise UserError(f"{error} This is method {kind!r} with {config.fusion} fusion.") from error
    if config.epochs < strategy.least_epochs:
        stages = ", ".join(name for name in options_of(kind) if name.endswith("_epochs"))
        raise UserError(
            f"Expected setting `epochs` to be {strategy.least_epochs} or more for the stages of method {kind!r}, but "
            f"got {config.epochs}. Set it with --epochs, or shorten the stages by --option ({stages})."
        )
    return strategy


def new_optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer with the settings of a run, at its first learning rate."""
    if config.optimizer != "sgd":
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    known = own_options(kind)
    for name in options:
        if name in _SETTINGS.get(kind, ()):
            raise UserError(
                f"Expected `{name}` of method {kind!r} among the settings, but got it among the options. "
                f"Set it with --{name.replace('_', '-')}."
            )
        if name not in known:
            near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
            hint = f"Did you mean `{near[0]}`? " if near else ""
            raise UserError(
                f"Expected the options of method {kind!r} to be {', '.join(known) or 'none'}, but got {name!r}. {hint}"
                "Options are given by --option NAME=VALUE or in [options]."
            )


def _network(config: Config, shapes: Shapes, num_classes: int, problem: Problem) -> FactorisedNetwork:
    if config.fusion not in models.fusions:
        raise UserError(
            f"Expected setting `fusion` to be one of {', '.join(models.fusions)}, but got {config.fusion!r}. "
            "Set it with --fusion."
        )
    try:
        network = models.build(
            config.fusion,
            dict(shapes),
            num_classes,
            width=config.width,
            vocabularies=problem.vocabularies,
            encoders=config.encoders,
        )
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    models.initialise_(network, config.init)
    return network


def _names(message: str, setting: str) -> bool:
    return re.search(rf"\b{re.escape(setting)}\b", message) is not None


def _listed(names: Shapes) -> str:
    return ", ".join(names)
