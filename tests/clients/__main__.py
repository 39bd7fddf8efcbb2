"""Measures every client in both modes and prints a table: `python tests/clients [NAME ...] > TABLE.md`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import torch  # noqa: E402
import transformers  # noqa: E402

from tests.clients import forms, huggingface, pairs, published  # noqa: E402
from tests.clients.client import BATCH, Client, measured  # noqa: E402

SOURCES = {
    "forms of the field": {**published.CLIENTS, **forms.CLIENTS},
    "transformers": {**huggingface.CLIENTS, **pairs.CLIENTS},
}


def rows_of(rows: dict[str, float]) -> str:
    """Rows through each encoder, in multiples of the batch."""
    words = {1 / BATCH: "1 row", 1.0: "B", 1 + 1 / BATCH: "B + 1", 2.0: "2 B", 2 + 1 / BATCH: "2 B + 1", 3.0: "3 B"}
    return ", ".join(words.get(count, f"{count:.2f} B") for count in rows.values()) or "its own"


def line(name: str, client: Client) -> str:
    """Its row."""
    if client.refused is not None:
        return f"| {name} | | | | refused: {client.refused} |"
    found = {masked: measured(client, masked) for masked in ("exact", "shared")}
    verdict = "right" if all(one.ok and one.finite for one in found.values()) else "WRONG"
    worst = max(one.worst for one in found.values())
    note = f"{verdict}; {client.written}" if client.written else verdict
    return f"| {name} | {rows_of(found['exact'].rows)} | {rows_of(found['shared'].rows)} | {worst:.0e} | {note} |"


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for source, clients in SOURCES.items():
        chosen = {name: client for name, client in clients.items() if len(sys.argv) == 1 or name in sys.argv[1:]}
        if not chosen:
            continue
        print(f"\n## {source[0].upper()}{source[1:]}\n")
        print("| network | encoder rows, exact | shared | largest error | outcome, and what else is written |")
        print("| --- | --- | --- | --- | --- |")
        for name, client in chosen.items():
            print(line(name, client), flush=True)


if __name__ == "__main__":
    main()
