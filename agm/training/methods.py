"""How a network is trained: one small class a method, and the table by which the trainer finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, cast

from torch import Tensor, nn

from agm import AGM, models
from agm.training.alone import Alone
from agm.training.config import Config
from agm.training.errors import UserError

__all__ = ["METHODS", "Method", "build_method"]

Shapes = Mapping[str, tuple[int, ...]]  # modality -> shape of one sample


class Method(Protocol):
    """What the trainer asks of a method.

    Attributes:
        model: everything that training changes; its state_dict goes into the checkpoint.
        network: the plain network inside it, for evaluation.
        modalities: those that the network takes.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def network(self) -> nn.Module: ...

    @property
    def modalities(self) -> tuple[str, ...]: ...

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of epoch 0, 1, ..."""
        ...

    def logits(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """(B, C) joint logits in train mode; the trainer takes their cross-entropy backward."""
        ...

    def statistics(self) -> Tensor | None:
        """Rows of `ModulationState.values` (5, M) after a step, on the device; None where there are none."""
        ...


class Joint:
    """Plain training on the joint logits."""

    def __init__(self, config: Config, shapes: Shapes, num_classes: int) -> None:
        self.modalities = tuple(shapes)
        self.model = self.network = _network(config, shapes, num_classes)

    def begin_epoch(self, epoch: int) -> None:
        pass

    def logits(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        return cast(Tensor, self.network(**inputs))

    def statistics(self) -> Tensor | None:
        return None


class Modulated:
    """Adaptive Gradient Modulation."""

    def __init__(self, config: Config, shapes: Shapes, num_classes: int) -> None:
        if len(shapes) < 2:
            raise UserError(
                f"Expected the data to have two modalities or more for method 'agm', but got {_listed(shapes)}. "
                "Use --method joint."
            )
        self.modalities = tuple(shapes)
        self.network = _network(config, shapes, num_classes)
        self.model = AGM(
            self.network,
            alpha=config.alpha,
            max_gap=config.max_gap,
            masked=cast(Literal["exact", "shared"], config.masked),
            start=config.start,
            stop=config.stop,
        )
        self._config = config
        self._modulates = False

    def begin_epoch(self, epoch: int) -> None:
        stop = self._config.stop
        self._modulates = self._config.start <= epoch and (stop is None or epoch < stop)
        self.model.epoch = epoch

    def logits(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        return cast(Tensor, self.model(**inputs, target=target))

    def statistics(self) -> Tensor | None:
        # A copy on the device: the next step writes over the state, and reading it now would synchronise.
        return self.model.modulator.state.values.clone() if self._modulates else None


def _joint(config: Config, shapes: Shapes, num_classes: int, argument: str) -> Method:
    return Joint(config, shapes, num_classes)


def _agm(config: Config, shapes: Shapes, num_classes: int, argument: str) -> Method:
    return Modulated(config, shapes, num_classes)


def _unimodal(config: Config, shapes: Shapes, num_classes: int, argument: str) -> Method:
    """Joint training of the same fusion over one encoder."""
    _check_named("unimodal", shapes, argument)
    return Joint(config, {argument: shapes[argument]}, num_classes)


def _alone(config: Config, shapes: Shapes, num_classes: int, argument: str) -> Method:
    """Joint training of the whole network on one modality, with the others absent."""
    _check_named("alone", shapes, argument)
    method = Joint(config, shapes, num_classes)
    method.modalities = (argument,)
    method.model = method.network = Alone(method.network, argument, shapes)
    return method


def _check_named(method: str, shapes: Shapes, argument: str) -> None:
    if argument not in shapes:
        raise UserError(
            f"Expected the method {method}:NAME to name one of {_listed(shapes)}, but got {argument!r}. "
            f"Use for example --method {method}:{next(iter(shapes))}."
        )


# Name -> builder from the settings, the shapes, the number of classes and what follows "NAME:".
METHODS: Mapping[str, Callable[[Config, Shapes, int, str], Method]] = {
    "agm": _agm,
    "joint": _joint,
    "unimodal": _unimodal,
    "alone": _alone,
}
_TAKES_ARGUMENT = ("unimodal", "alone")


def check_method(name: str) -> tuple[str, str]:
    """The entry of `METHODS` that `name` asks for, and what follows its colon.

    Raises:
        UserError: there is none.
    """
    kind, colon, argument = name.partition(":")
    if kind not in METHODS or bool(colon) != (kind in _TAKES_ARGUMENT):
        known = ", ".join(kind + (":NAME" if kind in _TAKES_ARGUMENT else "") for kind in METHODS)
        raise UserError(f"Expected setting `method` to be one of {known}, but got {name!r}. Set it with --method.")
    return kind, argument


def build_method(config: Config, shapes: Shapes, num_classes: int) -> Method:
    """The method that `config` names, over a new network with weights from torch's generator.

    Raises:
        UserError: no such method or fusion, or data that the method cannot take.
    """
    kind, argument = check_method(config.method)
    return METHODS[kind](config, shapes, num_classes, argument)


def _network(config: Config, shapes: Shapes, num_classes: int) -> nn.Module:
    if config.fusion not in models.fusions:
        raise UserError(
            f"Expected setting `fusion` to be one of {', '.join(models.fusions)}, but got {config.fusion!r}. "
            "Set it with --fusion."
        )
    try:
        return models.build(config.fusion, dict(shapes), num_classes, width=config.width)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error


def _listed(names: Shapes) -> str:
    return ", ".join(names)
