"""The parts of a network that strategies work on: its encoders, and what each modality says alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree as pytree

from agm._inputs.arguments import Binding, Modalities
from agm._module_state.eval_mode import evaluation
from agm._module_state.replace_forward import answering, called_function
from agm._passes.by_protocol import is_factorised
from agm._passes.masked_passes import MaskedPasses
from agm._passes.options import MaskedOptions
from agm._passes.outputs import Output, Outputs
from agm.distributed import Peers
from agm.ops._checks import check_modalities
from agm.strategies.splitting import Block, split_head
from agm.strategies.taken import Taken

__all__ = ["Parts", "evaluation", "weighted", "zeros"]

Alter = Callable[[str, Any], Any]  # (modality, its feature) -> the feature that goes on


class Parts:
    """A network, taken apart by module: no name of a parameter is ever read.

    Args:
        network: forward takes the modalities (by keyword, or by position in their order) and returns logits (B, C), or
            (B, ..., C) of tokens or pixels.
        modalities: their names, two or more (one makes the unimodal network), or modality -> what carries it, as in
            `agm.AGM`; those of `encoders` by default.
        encoders: modality -> path of its encoder in the network; may be left out for a network that offers `encoders`.
        heads: modality -> module from its feature to its own logits (B, C), beside the network; with their classes
            where the network has them.
        output: where the network's output holds the logits, as in `agm.AGM`.
        inputs: modality -> where it is in the one batch that forward takes, as in `agm.AGM`.
        class_dim: the dimension of the classes, where it is not the last, as in `agm.AGM`.

    What is called `given` is what a step is given: modality -> its input, beside other keyword arguments of forward by
    their names; or, with `inputs`, the batch.

    Attributes:
        network: as given, without DistributedDataParallel around it.
        wrapper: that DistributedDataParallel, through which training passes go; None where there is none.
        modalities: their names, in order.
        encoders: modality -> its module.
        heads: as given, or empty.

    Raises:
        TypeError: `network` or a head is no module.
        ValueError: no encoders, a path that does not exist, or encoders that share a parameter.
    """

    def __init__(
        self,
        network: nn.Module,
        modalities: Modalities | None = None,
        encoders: Mapping[str, str] | None = None,
        heads: Mapping[str, nn.Module] | None = None,
        output: Output | None = None,
        inputs: Mapping[str, Any] | None = None,
        class_dim: int | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(f"Expected argument `network` to be an nn.Module, but got {type(network).__name__}.")
        self.wrapper = network if isinstance(network, DistributedDataParallel) else None
        network = network if self.wrapper is None else self.wrapper.module
        self.network: Any = network
        self.encoders = _encoders(network, encoders, self.wrapper is not None)
        names = tuple(self.encoders) if modalities is None else modalities
        self.modalities = tuple(names) if len(names) == 1 else check_modalities(names)
        if set(self.modalities) != set(self.encoders):
            raise ValueError(
                f"Expected argument `modalities` to name those that have an encoder, {tuple(self.encoders)}, in any "
                f"order, but got {self.modalities}."
            )
        self.encoders = {name: self.encoders[name] for name in self.modalities}
        _check_apart(self.encoders)
        self.heads = _checked_heads(heads, self.modalities)
        self.carriers: Modalities = modalities if isinstance(modalities, Mapping) else self.modalities
        self.binding = Binding(network, self.carriers, inputs)
        self.outputs = Outputs(output, class_dim)
        self.options = MaskedOptions(
            modalities=self.carriers,
            encoders=self.paths(network) if encoders else None,
            inputs=inputs,
            output=output,
            class_dim=class_dim,
        )
        self._masked: MaskedPasses | None = None
        self._blocks: dict[str, Block] | None = None
        self._searched = False

    def run(self, given: Any, alter: Alter | None = None) -> tuple[dict[str, Any], Tensor]:
        """One forward of the network: each encoder's output, and the joint logits (B, ..., C).

        Args:
            given: what the step is given.
            alter: what becomes of each feature before the network goes on with it.

        Raises:
            ValueError: a modality is missing, or an encoder was not called exactly once.
        """
        taken = self.taken(given)
        features: dict[str, Any] = {}
        calls = dict.fromkeys(self.modalities, 0)

        def watch(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def watched(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                calls[name] += 1
                features[name] = output if alter is None else alter(name, output)
                return features[name]

            return watched

        watchers = {encoder: watch(name, called_function(encoder)) for name, encoder in self.encoders.items()}
        with answering(watchers):
            logits = self._called(taken)
        if wrong := [name for name, count in calls.items() if count != 1]:
            raise ValueError(
                f"Expected the network's forward to call each encoder once, but that of {', '.join(wrong)} was called "
                f"{calls[wrong[0]]} times. Name modules that give one feature a batch in `encoders`."
            )
        self._search(taken, features)
        return features, logits

    def taken(self, given: Any) -> Taken:
        """What a step is given, taken apart.

        Raises:
            ValueError: a modality is missing, or an input of several arguments is no mapping.
        """
        if isinstance(given, Taken):
            return given
        if self.binding.batch is not None:
            return Taken(self.binding.split((given,), {}))
        return Taken(self.binding.split((), self.arguments(given)))

    def arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of forward that carry these inputs: of a group, those in the modality's mapping."""
        given: dict[str, Any] = {}
        for name, value in inputs.items():
            carrier = self.binding.carriers.get(name, name)
            if isinstance(carrier, str):
                given[carrier] = value
            elif isinstance(value, Mapping):
                given |= value
            else:
                raise ValueError(
                    f"Expected the input of `{name}` to map each of {carrier} to its value, but got "
                    f"{type(value).__name__}."
                )
        return given

    def _called(self, taken: Taken) -> Tensor:
        if self.wrapper is None or not (torch.is_grad_enabled() and self.network.training):
            return self.outputs.logits(self.binding.call(taken.arguments))
        args, kwargs = self.binding.as_given(taken.arguments)
        return self.outputs.logits(self.wrapper(*args, **kwargs))

    @property
    def group(self) -> ProcessGroup | None:
        """Of the processes that train the network together; None for one alone."""
        return None if self.wrapper is None else self.wrapper.process_group

    def paths(self, root: nn.Module) -> dict[str, str]:
        """Modality -> path of its encoder in a module that holds it."""
        known = {module: path for path, module in root.named_modules()}
        return {name: known[encoder] for name, encoder in self.encoders.items()}

    def _search(self, taken: Taken, features: Mapping[str, Any]) -> None:
        """Looks once whether the head splits, in the graph of a pass from these features on."""
        if self._searched or len(self.modalities) == 1:
            return
        self._searched = True
        if not all(isinstance(value, Tensor) and value.is_floating_point() for value in features.values()):
            return
        leaves = {name: value.detach().requires_grad_() for name, value in features.items()}
        with torch.enable_grad(), evaluation(self.network):
            self._blocks = split_head(self.fused(taken, leaves), leaves)

    @property
    def has_heads(self) -> bool:
        """Whether each modality has logits of its own that can be trained: given heads, or a head that splits."""
        return bool(self.heads) or callable(getattr(self.network, "unimodal_logits", None))

    def unimodal(self, given: Any, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """Modality -> logits (B, ..., C) of that modality alone.

        From `heads` where they were given; else from the network's `unimodal_logits(features)`, the terms of an
        additive head (Peng et al., CVPR 2022), `W_m h_m + b / M`; the same from a linear layer on the concatenated
        features, or a sum of such layers, which is found in the graph of the first pass; else from the network on this
        modality's feature and zeros in the place of the others' features, in eval mode (the form of Yang et al.,
        "Adaptively Masking Subnetworks", 2025, for fusions that do not split).
        """
        if self.heads:
            return {name: self._classes_last(head(features[name])) for name, head in self.heads.items()}
        if (terms := self.terms(features)) is not None:
            return terms
        taken = self.taken(given)
        return {name: self.with_only((name,), taken, features) for name in self.modalities}

    def _classes_last(self, logits: Tensor) -> Tensor:
        dim = self.outputs.class_dim
        return logits if dim is None or logits.dim() == 2 else logits.movedim(dim, -1)

    def terms(self, features: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Modality -> its term of the joint logits (B, C), which sum to them; None where the network's head does not
        split, whatever `heads` were given."""
        if callable(getattr(self.network, "unimodal_logits", None)):
            logits: dict[str, Tensor] = self.network.unimodal_logits(features)
            return logits
        if self._blocks is not None:
            return {name: block.logits(features[name]) for name, block in self._blocks.items()}
        return None

    def encode(self, name: str, given: Any) -> Any:
        """What the encoder of one modality gives for that modality's input; the rest of the network does not run."""
        return self.called(self.encoders[name], name, self.taken(given)[name])

    def called(self, module: Callable[..., Any], name: str, value: Any) -> Any:
        """What a module, or a method of one, gives for the input of one modality; that of a group by keyword."""
        grouped = self.binding.batch is None and not isinstance(self.binding.carriers[name], str)
        return module(**value) if grouped else module(value)

    def masked_logits(self, given: Any) -> Tensor:
        """(2**M - 1, B, ..., C), as `agm.masked_logits`."""
        if self._masked is None:
            self._masked = MaskedPasses(self.network, self.options, Peers(False))
        return self._masked.stacked(self.taken(given).arguments)

    def subset_logits(self, given: Any, features: Mapping[str, Any]) -> Tensor:
        """(2**M - 1, B, C) logits in eval mode, row i those of the modalities in bitmask i + 1: others' features are 0.

        Unlike `Batch.masked_logits`, which masks inputs.
        """
        rows, taken = [], self.taken(given)
        for subset in range(1, 2 ** len(self.modalities)):
            present = [name for place, name in enumerate(self.modalities) if subset >> place & 1]
            rows.append(self.with_only(present, taken, features))
        return torch.stack(rows)

    def with_only(self, present: Collection[str], given: Any, features: Mapping[str, Any]) -> Tensor:
        """(B, ..., C) logits in eval mode from the features of these modalities and zeros for the others'."""
        kept = {name: features[name] for name in present}
        with evaluation(self.network):
            return self.fused(given, {**zeros(features), **kept})

    def head_weights(self) -> dict[str, Tensor] | None:
        """Modality -> W_m (C, D_m), the part of a linear head that its feature meets; None where the head does not
        split, or is found in the first pass and there was none yet."""
        if callable(getattr(self.network, "split_head", None)):
            return {name: weight for name, (weight, _) in self.network.split_head().items()}
        return None if self._blocks is None else {name: block.columns for name, block in self._blocks.items()}

    def fused(self, given: Any, features: Mapping[str, Any]) -> Tensor:
        """The network's logits when its encoders answer with these features."""
        answers = {self.encoders[name]: _constant(features[name]) for name in self.modalities}
        with answering(answers):
            logits = self._called(self.taken(given))
        return logits

    def parameters(self, convolutions_only: bool = False) -> list[list[nn.Parameter]]:
        """Of each modality's encoder, those that are trained; with `convolutions_only`, the 4-D ones."""
        return [
            [p for p in encoder.parameters() if p.requires_grad and (p.dim() == 4 or not convolutions_only)]
            for encoder in self.encoders.values()
        ]

    def head_gradients(self) -> list[list[Tensor | None]]:
        """Of each modality, the gradients of what only its feature meets behind its encoder; they may be written.

        All parameters of the head that was given, and the modality's part of the network's own head where that splits:
        the columns of a common layer, without its bias, or a layer of its own, with it.
        """
        found: list[list[Tensor | None]] = [[] for _ in self.modalities]
        declared = getattr(self.network, "head_gradients", None)
        for place, name in enumerate(self.modalities):
            if self.heads:
                found[place] += [p.grad for p in self.heads[name].parameters()]
            if self._blocks is not None:
                found[place] += self._blocks[name].gradients()
            elif callable(declared):
                found[place].append(declared()[name])
        return found

    def head_factors(self, coefficients: Tensor) -> dict[nn.Parameter, Tensor]:
        """Parameter -> what each of its elements is multiplied by if `head_gradients` are by these (M,) coefficients.

        Without heads in it that no modality has to itself.
        """
        modules = (self.network, *self.heads.values())
        known = [p for module in modules for p in module.parameters() if p.grad is not None]
        kept = [p.grad for p in known]
        try:
            for parameter in known:
                parameter.grad = torch.ones_like(parameter)
            written = set()
            for coefficient, views in zip(coefficients, self.head_gradients(), strict=True):
                for view in views:
                    if view is not None:
                        view.mul_(coefficient)
                        written.add(view.untyped_storage().data_ptr())
            return {p: p.grad for p in known if p.grad is not None and p.grad.untyped_storage().data_ptr() in written}
        finally:
            for parameter, gradient in zip(known, kept, strict=True):
                parameter.grad = gradient


def _encoders(network: nn.Module, paths: Mapping[str, str] | None, wrapped: bool) -> dict[str, nn.Module]:
    if paths:
        found = {}
        for name, path in paths.items():
            try:
                # In a DistributedDataParallel it may be that in the wrapper.
                found[name] = network.get_submodule(path.removeprefix("module.") if wrapped else path)
            except AttributeError as error:
                raise ValueError(
                    f"Expected the encoder of `{name}` to be a submodule of the network, but there is none at {path!r}."
                ) from error
        return found
    if not is_factorised(network):
        raise ValueError(
            "Expected argument `encoders` to map each modality to the path of its encoder, but got None: only a "
            "network that offers `encoders` and `fuse` names them itself."
        )
    return dict(network.encoders)  # type: ignore[arg-type]


def _check_apart(encoders: Mapping[str, nn.Module]) -> None:
    owner: dict[int, str] = {}
    for name, encoder in encoders.items():
        for parameter in encoder.parameters():
            if owner.setdefault(id(parameter), name) != name:
                raise ValueError(
                    f"Expected every parameter to belong to one modality's encoder, but {owner[id(parameter)]} and "
                    f"{name} share one. Name encoders that share nothing."
                )


def _checked_heads(heads: Mapping[str, nn.Module] | None, modalities: tuple[str, ...]) -> dict[str, nn.Module]:
    if not heads:
        return {}
    if set(heads) != set(modalities):
        raise ValueError(f"Expected argument `heads` to map each of {modalities} to a module, but got {tuple(heads)}.")
    for name, head in heads.items():
        if not isinstance(head, nn.Module):
            raise TypeError(f"Expected the head of `{name}` to be an nn.Module, but got {type(head).__name__}.")
    return {name: heads[name] for name in modalities}


def zeros(features: Mapping[str, Any]) -> dict[str, Any]:
    """Features of the same shapes in which every floating tensor is 0."""

    def zero(leaf: Any) -> Any:
        return torch.zeros_like(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    return {name: pytree.tree_map(zero, value) for name, value in features.items()}


def weighted(feature: Any, weights: Tensor) -> Any:
    """A feature in which every floating tensor (B, ...) is multiplied by a number a sample, (B,)."""

    def times(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        return leaf * weights.view(-1, *[1] * (leaf.dim() - 1)).to(leaf.dtype)

    return pytree.tree_map(times, feature)


def _constant(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value
