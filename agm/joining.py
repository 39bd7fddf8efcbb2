"""Processes with fewer batches than others, in `torch.distributed.algorithms.join.Join`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup
from torch.distributed.algorithms.join import Joinable, JoinHook, _JoinConfig
from torch.nn.parallel import DistributedDataParallel

from agm.distributed import joined_totals
from agm.modulation.modulator import Modulator
from agm.modulation.scores import find_score
from agm.ops import reference
from agm.ops._checks import check_modulation
from agm.waiting import waiting

__all__ = ["joinable"]


def joinable(model: DistributedDataParallel) -> Joinable:
    """What torch's `Join` takes in the place of `model`, so that processes may run out of batches at different times.

        with Join([joinable(model)]):
            for inputs, target in batches:
                loss(model(**inputs, target=target), target).backward()

    A process without a batch mirrors the others' steps, with no samples of its own: their scores, ratios and
    coefficients are those of all samples that there are, and its state goes on as theirs does. Every forward inside
    must be one of training. What the gradients are divided by is up to DistributedDataParallel, as without AGM.

    Args:
        model: holds one `agm.AGM` or `agm.Modulator`, or more.

    Raises:
        TypeError: `model` is no DistributedDataParallel.
    """
    if not isinstance(model, DistributedDataParallel):
        raise TypeError(
            f"Expected argument `model` to be a DistributedDataParallel, but got {type(model).__name__}. "
            "Other wrappers cannot be joined."
        )
    return _Joinable(model)


class _Joinable(Joinable):
    """A DistributedDataParallel and the modulators in it."""

    def __init__(self, model: DistributedDataParallel) -> None:
        self._model = model

    @property
    def _join_config(self) -> Any:
        return self._model._join_config

    @_join_config.setter
    def _join_config(self, config: Any) -> None:
        self._model._join_config = config  # its forward tells Join that this process goes on

    def join_hook(self, **settings: Any) -> JoinHook:
        found = [module for module in self._model.modules() if isinstance(module, Modulator)]
        return _JoinHook(self._model, self._model.join_hook(**settings), [m for m in found if m.peers.together])

    @property
    def join_device(self) -> torch.device:
        device: torch.device = self._model.join_device
        return device

    @property
    def join_process_group(self) -> Any:
        return self._model.join_process_group


class _JoinHook(JoinHook):
    """Mirrors a step: the scores of the modulators while the wrapper mirrors its forward and backward.

    The others exchange scores between what the wrapper's hook mirrors in one go. So scores have a group of their own in
    a Join, and this process puts its share in before it turns to the rest.
    """

    def __init__(self, model: DistributedDataParallel, inner: JoinHook, modulators: list[Modulator]) -> None:
        self._model, self._inner = model, inner
        self._groups = [(modulator, _own_group(modulator)) for modulator in modulators]

    def main_hook(self) -> None:
        shares = [
            (modulator, group, *joined_totals(modulator.state.values.device, group))
            for modulator, group in self._groups
            if modulator.modulates_now
        ]
        self._inner.main_hook()
        for modulator, group, totals, work in shares:
            with waiting(group, totals.device, "the scores of a training step"):
                work.wait()
            _follow(modulator, totals)

    def post_hook(self, is_last_joiner: bool) -> None:
        self._inner.post_hook(is_last_joiner)
        # Torch leaves it on, and the next forward would take this Join to go on.
        self._model._join_config = _JoinConfig.construct_disabled_join_config()
        for modulator, _ in self._groups:
            modulator.peers.leave()


def _own_group(modulator: Modulator) -> ProcessGroup:
    """All processes enter a Join together, whether they have a batch or not."""
    group = modulator.peers.group
    assert group is not None
    modulator.begin_together(group)
    some = distributed.get_world_size(group) < distributed.get_world_size()
    made = distributed.new_group(distributed.get_process_group_ranks(group), use_local_synchronization=some)
    assert isinstance(made, ProcessGroup)
    modulator.peers.join(made)
    return made


def _follow(modulator: Modulator, totals: Tensor) -> None:
    """The step of the others, whose totals end in how many numbers they are, and how many processes gave them."""
    length, processes = totals[-2:].tolist()
    state, gap = modulator.state, check_modulation(modulator.alpha, modulator.max_gap, modulator.floor)
    found = totals[: round(length / processes)]
    of_mean = find_score(modulator.score).of_mean
    held = modulator.held
    reference.finish_step(found, state.values, state.counts, modulator.alpha_now, gap, True, of_mean, state.seen)
    if held is not None:
        state.coefficients.copy_(held)
