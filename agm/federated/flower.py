"""Federated rounds over Flower: its messages carry what `Client` reports, is asked for and sends.

Needs the extra agm-torch[federated].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from agm.federated.client import Client, Report, Update
from agm.federated.selection import Choice

if TYPE_CHECKING:
    from flwr.app import Context, Message, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid

__all__ = ["FlowerClients", "client_app"]


def client_app(make_client: Callable[[Context], Client]) -> ClientApp:
    """A Flower ClientApp that reports on a query, and trains when it is asked to.

    Args:
        make_client: from the context of a node (its `node_config` says which data are its own) to its client. It is
            called for every message: a client keeps nothing between rounds but what the server sends.

    Raises:
        ModuleNotFoundError: Flower is not installed.

    Example:
        >>> app = client_app(lambda context: make(context.node_config["partition-id"]))   # flwr run finds `app`
    """
    flower = _flower()
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.query()  # type: ignore[untyped-decorator, misc, unused-ignore]
    def report(message: Message, context: Context) -> Message:
        asked = _Asked(message.content)
        found = make_client(context).report(asked.weights, asked.prototypes, asked.known)
        content = _packed(
            {"joint": found.joint, "counts": found.counts},
            {"own": found.own, "prototypes": found.prototypes},
            {"samples": found.samples, "ratio": found.ratio},
        )
        return flower.Message(content=content, reply_to=message)

    @app.train()  # type: ignore[untyped-decorator, misc, unused-ignore]
    def fit(message: Message, context: Context) -> Message:
        asked = _Asked(message.content)
        update = make_client(context).fit(asked.weights, asked.prototypes, asked.known, asked.modality)
        content = _packed({"counts": update.counts}, {"prototypes": update.prototypes}, {"samples": update.samples})
        content["weights"] = flower.ArrayRecord(torch_state_dict=update.weights)
        return flower.Message(content=content, reply_to=message)

    return app


class FlowerClients:
    """The nodes of a Flower federation, as the clients of `Federation`.

    Args:
        grid: of the ServerApp.
        count: nodes to wait for.
        timeout: seconds for the answers of a round; None waits for ever.

    Raises:
        ModuleNotFoundError: Flower is not installed.

    Example:
        >>> app = flwr.serverapp.ServerApp()
        >>> @app.main()
        ... def main(grid, context):
        ...     federation = Federation(network.state_dict(), FlowerClients(grid, count=20), count=5)
        ...     for _ in range(180):
        ...         federation.round()
    """

    def __init__(self, grid: Grid, *, count: int, timeout: float | None = None) -> None:
        self._flower = _flower()
        self.grid, self.timeout = grid, timeout
        self.nodes = self._wait(count)

    def reports(
        self, weights: Mapping[str, Tensor], prototypes: Mapping[str, Tensor], known: Tensor | None
    ) -> list[Report]:
        """Of all nodes, in their order."""
        content = _question(weights, prototypes, known, None)
        answers = self._asked([(node, content, "query") for node in self.nodes])
        return [
            Report(
                samples=int(answer["metrics"]["samples"]),
                ratio=float(answer["metrics"]["ratio"]),
                joint=tensors["joint"],
                counts=tensors["counts"],
                own=_named(tensors, "own"),
                prototypes=_named(tensors, "prototypes"),
            )
            for answer, tensors in zip(answers, map(_tensors, answers), strict=True)
        ]

    def fits(
        self,
        choices: Sequence[Choice],
        weights: Mapping[str, Tensor],
        prototypes: Mapping[str, Tensor],
        known: Tensor | None,
    ) -> list[Update]:
        """Of the chosen nodes, which train at the same time."""
        questions = [
            (self.nodes[choice.client], _question(weights, prototypes, known, choice.modality), "train")
            for choice in choices
        ]
        answers = self._asked(questions)
        return [
            Update(
                samples=int(answer["metrics"]["samples"]),
                weights=dict(answer["weights"].to_torch_state_dict()),
                prototypes=_named(tensors, "prototypes"),
                counts=tensors["counts"],
            )
            for answer, tensors in zip(answers, map(_tensors, answers), strict=True)
        ]

    def _asked(self, questions: Sequence[tuple[int, RecordDict, str]]) -> list[Any]:
        """The contents of the answers, in the order of the questions."""
        messages = [
            self._flower.Message(content=content, dst_node_id=node, message_type=kind)
            for node, content, kind in questions
        ]
        answers = {}
        for reply in self.grid.send_and_receive(messages, timeout=self.timeout):
            if reply.has_error():
                raise RuntimeError(f"Node {reply.metadata.src_node_id} of the federation failed: {reply.error}.")
            answers[reply.metadata.src_node_id] = reply.content
        if missing := [node for node, _, _ in questions if node not in answers]:
            raise RuntimeError(f"Expected answers of {len(questions)} nodes, but got none of {missing} in time.")
        return [answers[node] for node, _, _ in questions]

    def _wait(self, count: int) -> list[int]:
        while len(nodes := sorted(self.grid.get_node_ids())) < count:
            time.sleep(0.2)
        return nodes


class _Asked:
    """What the server sent along."""

    def __init__(self, content: RecordDict) -> None:
        found: Any = content
        self.weights = dict(found["weights"].to_torch_state_dict())
        tensors = _tensors(found)
        self.prototypes = _named(tensors, "prototypes")
        self.known = tensors.get("known")
        self.modality = str(found["config"]["modality"]) or None


def _question(
    weights: Mapping[str, Tensor], prototypes: Mapping[str, Tensor], known: Tensor | None, modality: str | None
) -> Any:
    flower = _flower()
    content = _packed({} if known is None else {"known": known}, {"prototypes": prototypes}, {})
    content["weights"] = flower.ArrayRecord(torch_state_dict=dict(weights))
    content["config"] = flower.ConfigRecord({"modality": modality or ""})
    return content


def _packed(
    tensors: Mapping[str, Tensor], named: Mapping[str, Mapping[str, Tensor]], numbers: Mapping[str, float]
) -> Any:
    flower = _flower()
    flat = dict(tensors)
    for kind, mapping in named.items():
        flat |= {f"{kind}/{name}": value for name, value in mapping.items()}
    state = {name: value.detach().cpu() for name, value in flat.items()}
    return flower.RecordDict(
        {"tensors": flower.ArrayRecord(torch_state_dict=state), "metrics": flower.MetricRecord(dict(numbers))}
    )


def _tensors(content: Any) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value) for name, value in content["tensors"].to_torch_state_dict().items()}


def _named(tensors: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{kind}/"): value for name, value in tensors.items() if name.startswith(f"{kind}/")}


def _flower() -> Any:
    try:
        import flwr.app
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Federated rounds over a network need Flower. Install it with: pip install 'agm-torch[federated]'."
        ) from error
    return flwr.app
