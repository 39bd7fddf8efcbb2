"""The server's rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from agm.federated.aggregation import average, merge_prototypes
from agm.federated.client import Client, Report, Update
from agm.federated.selection import Choice, select

__all__ = ["Clients", "Federation", "LocalClients"]


class Clients(Protocol):
    """All clients of a federation, wherever they are."""

    def reports(
        self, weights: Mapping[str, Tensor], prototypes: Mapping[str, Tensor], known: Tensor | None
    ) -> list[Report]:
        """Of every client, in their order."""

    def fits(
        self,
        choices: Sequence[Choice],
        weights: Mapping[str, Tensor],
        prototypes: Mapping[str, Tensor],
        known: Tensor | None,
    ) -> list[Update]:
        """Of the chosen clients, in the order of the choices."""


class LocalClients:
    """Clients in this process, one after the other.

    Args:
        clients: all of them.
    """

    def __init__(self, clients: Sequence[Client]) -> None:
        self.clients = clients

    def reports(
        self, weights: Mapping[str, Tensor], prototypes: Mapping[str, Tensor], known: Tensor | None
    ) -> list[Report]:
        """See `Clients`."""
        return [client.report(weights, prototypes, known) for client in self.clients]

    def fits(
        self,
        choices: Sequence[Choice],
        weights: Mapping[str, Tensor],
        prototypes: Mapping[str, Tensor],
        known: Tensor | None,
    ) -> list[Update]:
        """See `Clients`."""
        return [self.clients[c.client].fit(weights, prototypes, known, c.modality) for c in choices]


class Federation:
    """The server of a federation with balanced modality selection (BMSFed, arXiv 2401.00403).

    A round asks every client for a report, selects clients and modalities, lets them train, and averages what comes
    back: each encoder over the clients that trained its modality, everything else over all of them.

    Args:
        weights: name -> tensor of the network, the state dict to begin with.
        clients: `LocalClients`, `agm.federated.flower.FlowerClients`, or others with these two methods.
        count: clients of a round; 5 of 20 in the released settings.
        threshold, share: of `select`.
        generator: of `select`.

    Attributes:
        weights: the global ones.
        prototypes: modality -> (C, F); empty before the first round.
        known: (C,) bool, classes that have a prototype; None before the first round.

    Example:
        >>> federation = Federation(network.state_dict(), LocalClients(clients), count=5)
        >>> for _ in range(180):
        ...     choices = federation.round()
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        clients: Clients,
        *,
        count: int = 5,
        threshold: float = 1.0,
        share: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.weights = {name: value.clone() for name, value in weights.items()}
        self.clients, self.count = clients, count
        self.threshold, self.share, self.generator = threshold, share, generator
        self.prototypes: dict[str, Tensor] = {}
        self.known: Tensor | None = None

    def round(self) -> list[Choice]:
        """One round; returns who trained what."""
        reports = self.clients.reports(self.weights, self.prototypes, self.known)
        if self.known is None:
            self._merge([r.prototypes for r in reports], [r.counts for r in reports])
        names = list(reports[0].own)
        choices = select(
            torch.stack([r.joint for r in reports]),
            {name: torch.stack([r.own[name] for r in reports]) for name in names},
            [r.ratio for r in reports],
            [r.samples for r in reports],
            self.count,
            threshold=self.threshold,
            share=self.share,
            generator=self.generator,
        )
        updates = self.clients.fits(choices, self.weights, self.prototypes, self.known)
        self.weights = average(self.weights, [u.weights for u in updates], [u.samples for u in updates])
        self._merge([u.prototypes for u in updates], [u.counts for u in updates])
        return choices

    def _merge(self, prototypes: Sequence[Mapping[str, Tensor]], counts: Sequence[Tensor]) -> None:
        self.prototypes, self.known = merge_prototypes(self.prototypes, self.known, prototypes, counts)
