"""What a strategy is: the places in a training loop at which one can act, each doing nothing by default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agm._inputs.arguments import Modalities
from agm._passes.outputs import Output
from agm.modulation import order
from agm.modulation.scale_gradients import scale_gradients_
from agm.strategies._checks import check_choice, check_window
from agm.strategies.batch import Batch, Criterion
from agm.strategies.draws import Draws
from agm.strategies.heads import linear_heads
from agm.strategies.measuring import Batches, Measured, measure
from agm.strategies.moments import FirstMoment, normalises
from agm.strategies.parts import Parts, weighted
from agm.strategies.sharing import average_gradients, share
from agm.strategies.taken import is_dense

__all__ = ["Common", "Draw", "Outcome", "Strategy"]


class Common(TypedDict, total=False):
    """The keyword arguments that every strategy takes, see `Strategy`."""

    modalities: Modalities | None
    encoders: Mapping[str, str] | None
    heads: Mapping[str, nn.Module] | None
    output: Output | None
    inputs: Mapping[str, Any] | None
    class_dim: int | None
    criterion: Criterion
    start: int
    stop: int | None
    moments: Literal["gradient", "first"]


@dataclass(frozen=True)
class Outcome:
    """An update that is ready to be made: its gradients are in the parameters.

    Args:
        loss: () criterion of the joint logits, without a graph, on the device.
        logits: (B, C) joint logits, without a graph.
    """

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Draw:
    """The samples of an epoch.

    Args:
        index: (N,) numbers of the samples, in the order of their use; a number may come more than once.
        present: (N, M) bool, which modalities of each are used; None for all of them.
        cuts: places of the order that no batch should reach across.
    """

    index: Tensor
    present: Tensor | None = None
    cuts: tuple[int, ...] = ()

    def take(self, places: Tensor) -> Draw:
        """Those at some places of the order."""
        return Draw(self.index[places], None if self.present is None else self.present[places])


class Strategy(nn.Module):
    """A way to balance the modalities of a network while it trains; this one does nothing about it.

    A training loop calls four methods:

        strategy = OGMGE(network)                          # what there is to train is strategy.parameters()
        for epoch in range(epochs):
            strategy.begin_epoch(epoch)
            for inputs, target in loader:                  # inputs: modality -> tensor
                for outcome in strategy.steps(inputs, target):
                    optimizer.step()                       # before it: clip, unscale, log as usual
            strategy.end_epoch(validation=validation_loader)

    A strategy of its own fills in what it needs of `begin_epoch`, `draw`, `feature`, `loss`, `backward`, `modulate`,
    `stepped`, `updates` and `end_epoch`, and asks its `Batch` for statistics. No step reads from the device;
    `begin_epoch` and `end_epoch` may. State is in buffers (or `get_extra_state`), so that `state_dict` continues a run
    exactly from between two epochs; `epoch` is set by `begin_epoch` and is not part of it.

    Over a DistributedDataParallel every process takes every step, with its share of the batch. The statistics of a
    `distributed` strategy are those of all shares, so that K processes with equal shares train as one with the whole
    batch; of a split between epochs each is given its share, or each the whole. Paths of encoders are those in the
    plain network or in the wrapper.

    Args:
        network: forward takes the modalities and returns logits (B, C).
        modalities: their names, in order, or modality -> the arguments of forward that carry it, as in `agm.AGM`: the
            input of a modality of several is a mapping. Those of the encoders by default.
        encoders: modality -> path of its encoder in the network. A network that offers `encoders` and `fuse`, such as
            those of `agm.models`, needs none.
        heads: modality -> module from its feature to logits (B, C) of its own, trained along with the network. Needed
            by strategies with unimodal losses where the network's head does not split (`linear_heads` makes them).
        output: where the network's output holds the logits, as in `agm.AGM`; the output itself, or its `logits`.
        inputs: modality -> where it is in the one batch that forward takes, as in `agm.AGM`: steps and splits are then
            given that batch in the place of a mapping of modalities.
        class_dim: the dimension of the classes in logits of more than two, as in `agm.AGM`. Strategies that are not
            `dense` refuse targets of several positions a sample.
        criterion: (logits, target) -> loss.
        start: first epoch in which the strategy acts; before it training is plain joint training.
        stop: first epoch in which it no longer does; None for no end. A window that authors count from 1, with its last
            epoch in it, begins here at one less and stops at the same number.
        moments: of strategies that scale gradients: "gradient" scales them; "first" scales what enters Adam's first
            moment alone (`agm.strategies.FirstMoment`), since Adam cancels most of the former. It needs `optimizer`.

    Attributes:
        module: what is trained, without the heads: the network, or a wrapper of it.
        heads: an `nn.ModuleDict` of the heads, empty where there are none.
        parts: the network taken apart.
        epoch: the current one.
        optimizer: the user's; set it for a strategy that puts back the optimizer's state too, or adds parameters.
        draws: the random numbers of the strategy; another object with its methods replays recorded ones.

    Raises:
        TypeError: `network` or a head is no module, or an argument that the strategy does not have.
        ValueError: no encoders, parts that do not fit together, heads that are needed and missing, an impossible
            setting, or a DistributedDataParallel network under a strategy that decides by process.
    """

    # Of "train" and "validation": splits asked for between epochs; "index": train comes with the samples' numbers.
    needs: frozenset[str] = frozenset()
    trains_heads: ClassVar[bool] = False  # whether there are unimodal losses
    scales: ClassVar[bool] = False  # whether it multiplies gradients of encoders, so that `moments` is a choice
    # Of what targets there can be, class indices, labels and numbers, those that it can take with a criterion for them.
    tasks: ClassVar[frozenset[str]] = frozenset({"classes"})
    # Samples that lack a modality: refused; or their inputs are zeros and it need not know; or it is told by `present`.
    lacking: ClassVar[Literal["refused", "zeros", "told"]] = "refused"
    dense: ClassVar[bool] = False  # whether it takes targets of several positions a sample: tokens, pixels
    distributed: ClassVar[bool] = False  # whether every process of a DistributedDataParallel network decides alike
    why_alone: ClassVar[str] = "what it decides from each process's own batch would drive their weights apart"

    def __init__(self, network: nn.Module, **common: Unpack[Common]) -> None:
        super().__init__()
        if unknown := sorted(common.keys() - Common.__annotations__.keys()):
            raise TypeError(f"Expected settings that {type(self).__name__} has, but got {', '.join(unknown)}.")
        heads = common.get("heads")
        if isinstance(network, nn.parallel.DistributedDataParallel) and not self.distributed:
            raise ValueError(
                f"Expected argument `network` of {type(self).__name__} to be trained by one process, but got a "
                f"DistributedDataParallel: {self.why_alone}. Give the plain network, or use one of "
                f"{', '.join(sorted(kind.__name__ for kind in _every(Strategy) if kind.distributed))}."
            )
        found = {name: common.get(name) for name in ("modalities", "encoders", "output", "inputs", "class_dim")}
        self.parts = Parts(network, heads=heads, **found)  # type: ignore[arg-type]
        self.start, self.stop = common.get("start", 0), common.get("stop")
        check_window(self.start, self.stop)
        self.criterion: Criterion = common.get("criterion", F.cross_entropy)
        self.moments = check_choice("moments", common.get("moments", "gradient"), ("gradient", "first"))
        if self.moments == "first" and not self.scales:
            raise ValueError(f"Expected no argument `moments`, since {type(self).__name__} scales no gradients.")
        self._moment: tuple[torch.optim.Optimizer, FirstMoment | None] | None = None
        self.module: nn.Module = network
        self.heads = nn.ModuleDict(self.parts.heads)
        self._shared_heads = False
        self.epoch = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self.draws = Draws()
        self.latest: dict[str, Tensor] = {}
        if self.trains_heads:
            self._require_heads()

    @property
    def network(self) -> nn.Module:
        """The plain network."""
        network: nn.Module = self.parts.network
        return network

    @property
    def predictor(self) -> nn.Module:
        """What predicts: takes the modalities by keyword and returns logits (B, C). The plain network for most."""
        return self.network

    @classmethod
    def default_heads(cls, network: Any, num_classes: int) -> dict[str, nn.Module] | None:
        """`heads` for a network of `agm.models`, where the strategy cannot do without; else None."""
        if cls.trains_heads and not hasattr(network, "unimodal_logits"):
            return linear_heads(network.widths, num_classes)
        return None

    @property
    def modalities(self) -> tuple[str, ...]:
        """Their names, in order."""
        return self.parts.modalities

    @property
    def active(self) -> bool:
        """Whether the epoch is inside the window."""
        return self.start <= self.epoch and (self.stop is None or self.epoch < self.stop)

    @property
    def finished(self) -> bool:
        """Whether the strategy would end the training here; known between epochs."""
        return False

    @property
    def extra_epochs(self) -> int:
        """Passes over the training split, through every encoder and back, that it took beside the loop's epochs so far:
        for teachers, or for copies of the network."""
        return 0

    @property
    def least_epochs(self) -> int:
        """Epochs of the loop without which it does not come to the end of its stages."""
        return 1

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As `nn.Module`, where the network is: a strategy over one on a GPU needs no `.to`."""
        place = next(self.module.parameters(), None)
        if tensor is not None and place is not None:
            tensor = tensor.to(place.device)
        super().register_buffer(name, tensor, persistent)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if any(key.startswith(prefix) for key in destination):  # a state of its own, by places of modalities
            destination[prefix + order.KEY] = order.order_of(self.modalities)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        *_, error_msgs = args
        saved = state_dict.pop(prefix + order.KEY, None)  # none in checkpoints of versions before
        if saved is not None and not saved.is_meta:
            names = order.names_in(saved)
            if names != self.modalities:
                error_msgs.append(
                    f"Expected a state of the modalities {self.modalities}, in this order, but "
                    f"{prefix + order.KEY} holds {names}. Name them in that order: {type(self).__name__}(..., "
                    f"modalities={names})."
                )
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    # What a training loop calls.

    def begin_epoch(self, epoch: int, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        """Before the first step of epoch 0, 1, ..., with the splits that `needs` names.

        Args:
            epoch: its number.
            train: the training set in batches of (inputs, target); iterated again, it may be in another order.
            validation: a split that is not trained on.

        Raises:
            ValueError: a split that the strategy needs now is missing.
        """
        self.epoch = epoch

    def draw(self, order: Tensor) -> Draw:
        """The samples of the epoch, from all of them in the order (N,) that the loop would take."""
        return Draw(order)

    def steps(
        self,
        inputs: Any,
        target: Tensor,
        *,
        index: Tensor | None = None,
        present: Tensor | None = None,
    ) -> Iterator[Outcome]:
        """The updates of one batch: each time the gradients are in the parameters, and the caller steps.

        One update a batch, unless the strategy alternates between modalities. Gradients from before are dropped.

        Args:
            inputs: modality -> its input, that of a modality of several arguments a mapping of these; beside them may
                be other keyword arguments of the network's forward. With the argument `inputs`, the batch.
            target: (B,) class indices, or (B, ...) for logits (B, ..., C).
            index: (B,) numbers of the samples, for strategies that know them apart.
            present: (B, M) bool as in `Draw`.
        """
        yield from self.updates(self.batch(inputs, target, index, present))

    def end_epoch(self, *, train: Batches | None = None, validation: Batches | None = None) -> None:
        """After the last step of an epoch, with the splits as in `begin_epoch`."""

    def statistics(self) -> dict[str, Tensor]:
        """Of the last step, if the strategy acted: kind -> a copy on the device.

        "score", "ratio" and "coefficient" are (M,), and a run writes them down; other kinds are as a strategy says.
        """
        return {kind: values.clone() for kind, values in self.latest.items()} if self.active else {}

    # What a strategy fills in.

    def run(self, batch: Batch) -> tuple[dict[str, Any] | None, Tensor]:
        """The forward: features by modality (None where they are not known) and joint logits."""
        return self.parts.run(batch.inputs, lambda name, value: self.feature(name, value, batch))

    def feature(self, name: str, feature: Any, batch: Batch) -> Any:
        """What the network goes on with, from what the encoder of a modality gave: zeros for samples without it."""
        if batch.present is None:
            return feature
        return weighted(feature, batch.present[:, self.modalities.index(name)])

    def updates(self, batch: Batch) -> Iterator[Outcome]:
        """The updates of one batch, as `steps` yields them: gradients from before are dropped before each."""
        self.zero_grad(set_to_none=True)
        if self.parts.group is not None and not self._shared_heads:
            share(self.heads, self.parts.group)
            self._shared_heads = True
        self.backward(batch)
        if self.parts.group is not None:
            average_gradients(self.heads.parameters(), self.parts.group)
        if self.active:
            with torch.no_grad():
                self.modulate(batch)
        yield self.outcome(batch)
        self.stepped()

    def loss(self, batch: Batch) -> Tensor:
        """() what is minimised; the joint loss by default."""
        return batch.joint_loss

    def backward(self, batch: Batch) -> None:
        """Leaves gradients in the parameters; several passes and surgery on them are at home here."""
        self.loss(batch).backward()

    def modulate(self, batch: Batch) -> None:
        """Changes the gradients of the parameters, without a graph, in epochs in which the strategy is active."""

    def stepped(self) -> None:
        """After the caller's step."""

    # What helps it.

    def batch(self, inputs: Any, target: Tensor, index: Tensor | None = None, present: Tensor | None = None) -> Batch:
        """The statistics of these samples, none of them computed yet.

        Raises:
            ValueError: the target has several positions a sample, about which this strategy does not decide.
        """
        if is_dense(target) and not self.dense:
            raise ValueError(
                f"Expected argument `target` to be one class index a sample, (B,), but got {tuple(target.shape)}: "
                f"{type(self).__name__} decides about samples and not about their tokens or pixels. Use one of "
                f"{', '.join(sorted(kind.__name__ for kind in _every(Strategy) if kind.dense))}."
            )
        return Batch(self.parts, inputs, target, self.criterion, self.run, index, present)

    def outcome(self, batch: Batch) -> Outcome:
        """What `steps` yields."""
        return Outcome(batch.joint_loss.detach(), batch.logits.detach())

    def measure(self, batches: Batches) -> Measured:
        """Losses and accuracies of a split, jointly and of each modality alone."""
        return measure(self.parts, batches)

    def scale(
        self,
        coefficients: Tensor,  # (M,)
        *,
        heads: bool = False,
        convolutions_only: bool = False,
        noise: bool = False,
    ) -> None:
        """Multiplies the gradients of every encoder by its coefficient, on the device (`agm.scale_gradients_`).

        Args:
            coefficients: one a modality.
            heads: also the weights of the head that only this modality's feature meets.
            convolutions_only: of the encoders, only 4-D weights.
            noise: add normal noise of the gradient's own standard deviation.
        """
        moment = self._first_moment()
        if moment is not None:
            moment.scale(self._factors(coefficients, heads, convolutions_only))
            return
        groups = [[p.grad for p in parameters] for parameters in self.parts.parameters(convolutions_only)]
        if heads:
            own = self.parts.head_gradients()
            groups = [[*group, *more] for group, more in zip(groups, own, strict=True)]
        scale_gradients_(groups, coefficients, noise=noise)

    def _first_moment(self) -> FirstMoment | None:
        """What scales the first moment; None where gradients are to be scaled, which for SGD is the same."""
        if self.moments != "first":
            return None
        if self.optimizer is None:
            raise RuntimeError(
                "Expected attribute `optimizer` of the strategy to be the optimizer for moments='first', but it is "
                "None. Set it before the first step."
            )
        if self._moment is None or self._moment[0] is not self.optimizer:
            first = FirstMoment(self.optimizer) if normalises(self.optimizer) else None
            self._moment = (self.optimizer, first)
        return self._moment[1]

    def _factors(self, coefficients: Tensor, heads: bool, convolutions_only: bool) -> dict[nn.Parameter, Tensor]:
        groups = self.parts.parameters(convolutions_only)
        factors = {p: k for group, k in zip(groups, coefficients, strict=True) for p in group}
        return factors | self.parts.head_factors(coefficients) if heads else factors

    def required(self, batches: Batches | None, split: str) -> Batches:
        """The split, which must have been given.

        Raises:
            ValueError: it was not.
        """
        if batches is None:
            raise ValueError(
                f"Expected argument `{split}` to be an iterable of (inputs, target), but got None: "
                f"{type(self).__name__} needs the {split} split between epochs."
            )
        return batches

    def _require_heads(self) -> None:
        if not self.parts.has_heads:
            raise ValueError(
                f"Expected argument `heads` to map each modality to a head for its unimodal loss, but got none, and "
                f"{type(self.network).__name__} has no `unimodal_logits(features)`. Give heads that take what each "
                "encoder returns: agm.strategies.linear_heads(widths, num_classes) for vectors (B, D) and tokens "
                "(B, N, D); nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)) "
                "for feature maps (B, channels, H, W)."
            )


def _every(kind: type[Strategy]) -> Iterator[type[Strategy]]:
    """A class and those that are built on it."""
    yield kind
    for below in kind.__subclasses__():
        yield from _every(below)
