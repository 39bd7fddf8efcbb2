"""Which clients train in a round, and on which of their modalities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Choice", "select"]

_FAR = 1e11  # of an objective to which nothing was chosen yet


@dataclass(frozen=True)
class Choice:
    """A client of a round.

    Args:
        client: its number.
        modality: the one that it trains; None for all it has.
    """

    client: int
    modality: str | None = None


def select(
    joint: Tensor,  # (N, P)
    own: Mapping[str, Tensor],  # modality -> (N, P_m)
    ratios: Sequence[float],
    samples: Sequence[int],
    count: int,
    *,
    threshold: float = 1.0,
    share: float = 0.1,
    generator: torch.Generator | None = None,
) -> list[Choice]:
    """Balanced modality selection (BMSFed, arXiv 2401.00403, ECCV 2024), of two modalities, from its released code.

    Greedily, `count` times, among a random subset of the clients left (at least `count` and `share` of all): the client
    whose gradient represents those of all best,

        argmin_i sum_k min(cur_k, |g_k - g_i|),     k over the clients and their mean, cur_k the distance so far

    If the first modality is ahead of the second over all clients (the mean of `ratios`, weighted by samples, is above
    1), the best client for the second modality's gradients is looked for as well, and if it is one in which the first
    is ahead, too (ratio above `threshold`), it is taken in its place, with the second modality alone. If the second is
    ahead, the same with the roles exchanged, below `1 / threshold`. Each kind of gradient has a cur of its own.

    Args:
        joint: of each client, the gradient of all its encoders.
        own: the gradient of each modality's encoder, in the order of the modalities.
        ratios: of each client, accuracy of the first modality over that of the second.
        samples: of each client.
        count: clients to choose, K.
        threshold: of a client's ratio; 1 in the released code.
        share: of the clients among which each choice is made; 0.1.
        generator: of the random subsets; torch's own by default.

    Raises:
        ValueError: another number of modalities than two, lengths that differ, or fewer clients than `count`.

    Example:
        >>> own = {"audio": torch.randn(20, 4), "image": torch.randn(20, 4)}
        >>> choices = select(torch.cat(list(own.values()), 1), own, [1.2] * 20, [50] * 20, 5)
    """
    clients = len(joint)
    if len(own) != 2:
        raise ValueError(
            f"Expected gradients of two modalities, between which clients are balanced, but got {len(own)}."
        )
    if {len(ratios), len(samples), *(len(rows) for rows in own.values())} != {clients} or not 1 <= count <= clients:
        raise ValueError(
            f"Expected 1 <= count <= {clients} and one row or number a client of everything, but got count {count}, "
            f"{len(ratios)} ratios, {len(samples)} samples and {[len(rows) for rows in own.values()]} rows."
        )
    first, second = own
    weights = torch.tensor(samples, dtype=torch.float64)
    overall = float((torch.tensor(list(ratios), dtype=torch.float64) * weights).sum() / weights.sum())
    kinds: dict[str | None, Tensor] = {None: joint}
    kinds.update(own)
    distances = {kind: _distances(rows) for kind, rows in kinds.items()}
    nearest = {kind: torch.full((clients + 1,), _FAR, dtype=torch.float64) for kind in kinds}
    behind = second if overall > 1 else first if overall < 1 else None
    left, chosen = list(range(clients)), []
    for _ in range(count):
        size = min(max(count, int(share * clients)), len(left))
        places = torch.randperm(len(left), generator=generator)[:size].tolist()
        candidates = [left[place] for place in places]
        choice = Choice(_best(candidates, distances[None], nearest[None]))
        if behind is not None:
            other = _best(candidates, distances[behind], nearest[behind])
            if (ratios[other] > threshold) if behind == second else (ratios[other] < 1 / threshold):
                choice = Choice(other, behind)
        kind = choice.modality
        nearest[kind] = torch.minimum(nearest[kind], distances[kind][:, choice.client])
        left.remove(choice.client)
        chosen.append(choice)
    return chosen


def _distances(rows: Tensor) -> Tensor:  # (N, P) -> (N + 1, N), the last row from the mean
    rows = rows.double().cpu()
    return torch.cdist(torch.cat([rows, rows.mean(0, keepdim=True)]), rows)


def _best(candidates: Sequence[int], distances: Tensor, nearest: Tensor) -> int:
    sums = torch.minimum(nearest.unsqueeze(1), distances[:, list(candidates)]).sum(0)
    # Two clients that are each other's nearest are worth the same: the lower number, whatever the rounding.
    equal = sums <= sums.min() * (1 + 1e-12)
    return min(client for client, best in zip(candidates, equal.tolist(), strict=True) if best)
