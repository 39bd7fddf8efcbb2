"""Splits in which samples that belong together, such as drawings by one hand, stay on one side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["SHARES", "in_classes", "split_groups"]

SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


def split_groups(groups: Sequence[Hashable], kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The split of every sample: no group in two of them, and of every kind about the same shares in each.

    Groups come one after the other, the largest first and equally large ones in random order, and each goes where
    most of its kinds is lacking.

    Args:
        groups: (N,) what says which samples belong together.
        kinds: (N, K) how much each sample has of what is to be shared out: classes one-hot, or labels.
        random: for the order.

    Returns:
        (N,) "train", "validation" or "test".
    """
    position = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group_of = np.array([position[group] for group in groups])
    amounts = np.zeros((len(position), kinds.shape[1]))
    np.add.at(amounts, group_of, kinds)
    order = random.permutation(len(position))
    order = order[np.argsort(-np.bincount(group_of)[order], kind="stable")]
    total = kinds.sum(0, dtype=np.float64).clip(min=1)
    shares = np.array(list(SHARES.values()))[:, None]  # (3, 1)
    lacking = shares * total  # (3, K)
    chosen = np.empty(len(position), dtype=np.int64)
    for group in order:
        # Of each split the part of its share that is still open, in the kinds that this group has.
        open_part = (lacking / (shares * total)) @ amounts[group]
        chosen[group] = int(np.argmax(open_part))
        lacking[chosen[group]] -= amounts[group]
    return np.array(list(SHARES))[chosen[group_of]]


def in_classes(target: np.ndarray) -> np.ndarray:
    """(N,) class indices -> (N, C) one-hot, for `split_groups`."""
    return np.eye(int(target.max()) + 1)[target]
