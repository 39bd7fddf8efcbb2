"""Networks as people write their forwards: what they are given, what they return, and what they keep."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .client import BATCH, CLASSES, Client, generator, normal

D = 16


class Pair(nn.Module):
    """Two encoders and a linear head, which the forms of calls below share."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(8, D), nn.BatchNorm1d(D), nn.ReLU(), nn.Dropout(0.1))
        self.visual = nn.Sequential(nn.Linear(12, D), nn.BatchNorm1d(D), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(2 * D, outputs)

    def fused(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.audio(audio), self.visual(visual)], -1))
        return logits

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        return self.fused(audio, visual)


class OfBatch(Pair):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.fused(batch["audio"], batch["visual"])


class OfList(Pair):
    def forward(self, inputs: list[Tensor]) -> Tensor:
        return self.fused(*inputs)


class Regressing(Pair):
    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fused(audio, visual).squeeze(-1)


class Tupled(Pair):
    """As OGM-GE's classifier: features of both, and the logits."""

    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        a, v = self.audio(audio), self.visual(visual)
        return a, v, self.head(torch.cat([a, v], -1))


@dataclass
class Answer:
    scores: Tensor
    features: Tensor


class AsDataclass(Pair):
    def forward(self, audio: Tensor, visual: Tensor) -> Any:
        logits = self.fused(audio, visual)
        return Answer(logits, logits.detach())


class WithTarget(Pair):
    def forward(self, audio: Tensor, visual: Tensor, target: Tensor | None = None) -> Tensor:
        return self.fused(audio, visual)


class Keeping(Pair):
    """As MISA: a loss of its own and counters among the attributes."""

    steps = 0

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        a, v = self.audio(audio), self.visual(visual)
        self.alike, self.steps = (a - v).square().mean(), self.steps + 1
        logits: Tensor = self.head(torch.cat([a, v], -1))
        return logits


class Experts(Pair):
    """A mixture of experts over the fused feature, whose balance is a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * D, 3)
        self.experts = nn.ModuleList(nn.Linear(2 * D, CLASSES) for _ in range(3))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        fused = torch.cat([self.audio(audio), self.visual(visual)], -1)
        shares = self.gate(fused).softmax(-1)
        self.balance = shares.mean(0).square().sum()
        answers = torch.stack([expert(fused) for expert in self.experts], 1)
        return (shares.unsqueeze(-1) * answers).sum(1)


class Momentum(Pair):
    """An encoder that follows another one, and a queue, both written by forward."""

    queue: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.slow = nn.Linear(8, D).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(2 * BATCH, D))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.slow.weight.lerp_(self.audio[0].weight, 0.1)
                self.queue.copy_(torch.cat([self.slow(audio).to(self.queue), self.queue])[: len(self.queue)])
        return self.fused(audio, visual)


class Segmenting(nn.Module):
    """Colour and depth, a class a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.colour = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, CLASSES, 2, 2)

    def forward(self, colour: Tensor, depth: Tensor) -> Tensor:
        logits: Tensor = self.up(torch.cat([self.colour(colour), self.depth(depth)], 1))
        return logits


class Padded(nn.Module):
    """A transformer that takes rows of zeros for padding, beside an image."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, 2, 32, 0.1, batch_first=True), 1)
        self.image, self.head = nn.Linear(12, D), nn.Linear(2 * D, CLASSES)

    def forward(self, text: Tensor, image: Tensor, padding: Tensor) -> Tensor:
        read = self.text(text, src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(read)
        logits: Tensor = self.head(torch.cat([(read * kept).sum(1) / kept.sum(1), self.image(image)], -1))
        return logits


class Sequences(nn.Module):
    """An LSTM over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(20, D, batch_first=True)

    def forward(self, text: Tensor, lengths: Tensor) -> Tensor:
        rows = nn.utils.rnn.pack_padded_sequence(text, lengths.cpu(), batch_first=True, enforce_sorted=False)
        last: Tensor = self.lstm(rows)[1][0].squeeze(0)
        return last


class Packed(nn.Module):
    """It beside an image."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image, self.head = Sequences(), nn.Linear(12, D), nn.Linear(2 * D, CLASSES)

    def forward(self, text: Tensor, image: Tensor, lengths: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.text(text, lengths), self.image(image)], -1))
        return logits


class Graph(nn.Module):
    """Nodes under a dense adjacency, beside an image."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.image, self.head = nn.Linear(6, D), nn.Linear(12, D), nn.Linear(2 * D, CLASSES)

    def forward(self, x: Tensor, image: Tensor, adjacency: Tensor) -> Tensor:
        seen = F.relu(adjacency @ self.nodes(x)).mean(1)
        logits: Tensor = self.head(torch.cat([seen, self.image(image)], -1))
        return logits


class Selective(nn.Module):
    """A state space of its own recurrence, as Mamba's reference writes it: a loop over time."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.into, self.rate, self.out = nn.Linear(size, D), nn.Linear(size, D), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), D)
        for step in x.unbind(1):
            kept = torch.sigmoid(self.rate(step))
            state = kept * state + (1 - kept) * self.into(step)
        made: Tensor = self.out(state)
        return made


class OfEncoders(nn.Module):
    """Encoders by their names, and a head on their features."""

    def __init__(self, **encoders: nn.Module) -> None:
        super().__init__()
        self.names = tuple(encoders)
        self.parts = nn.ModuleDict(encoders)
        self.head = nn.Linear(len(encoders) * D, CLASSES)

    def forward(self, **inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.cat([self.parts[name](inputs[name]) for name in self.names], -1))
        return logits


def audio_and_visual() -> dict[str, Any]:
    return {"audio": normal(8), "visual": normal(12)}


def sequences() -> dict[str, Any]:
    return {"audio": normal(7, 8), "video": normal(7, 12)}


def lengths() -> Tensor:
    return torch.tensor([7, 2, 5, 3])


def texts_and_images() -> dict[str, Any]:
    return {"text": normal(7, 20), "image": normal(12), "lengths": lengths()}


BY_NAME = {"audio": "audio", "visual": "visual"}
PAIR = ("audio", "visual")
TEXT_AND_IMAGE = {"text": ("text", "lengths"), "image": "image"}


def pair(kind: type[Pair], **more: Any) -> Client:
    return Client(kind, PAIR, BY_NAME, audio_and_visual, more=more)


CLIENTS = {
    "forward(batch)": Client(
        OfBatch,
        PAIR,
        BY_NAME,
        lambda: {"batch": audio_and_visual()},
        more={"inputs": {"audio": "audio", "visual": "visual"}},
    ),
    "forward(inputs), a list": Client(
        OfList,
        PAIR,
        BY_NAME,
        lambda: {"inputs": list(audio_and_visual().values())},
        more={"inputs": {"audio": 0, "visual": 1}},
    ),
    "returns (a, v, logits)": Client(Tupled, PAIR, BY_NAME, audio_and_visual, more={"output": 2}),
    "returns a dataclass": Client(AsDataclass, PAIR, BY_NAME, audio_and_visual, more={"output": "scores"}),
    "losses in attributes": pair(Keeping),
    "mixture of experts": pair(Experts),
    "momentum encoder, queue": pair(Momentum),
    "numbers, (B,)": Client(
        Regressing,
        PAIR,
        BY_NAME,
        audio_and_visual,
        target=lambda: normal(),
        more={"score": "squared_error"},
    ),
    "a parameter named target": Client(WithTarget, PAIR, BY_NAME, audio_and_visual, more={"target": "labels"}),
    "segmentation, (B, C, H, W)": Client(
        Segmenting,
        ("colour", "depth"),
        {"colour": "colour", "depth": "depth"},
        lambda: {"colour": normal(3, 8, 8), "depth": normal(1, 8, 8)},
        target=lambda: torch.randint(0, CLASSES, (BATCH, 8, 8), generator=generator()),
        more={"class_dim": 1},
    ),
    "transformer with a padding mask": Client(
        Padded,
        {"text": ("text", "padding"), "image": "image"},
        {"text": "text", "image": "image"},
        lambda: {"text": normal(7, D), "image": normal(12), "padding": torch.arange(7) >= lengths()[:, None]},
    ),
    "packed sequences": Client(Packed, TEXT_AND_IMAGE, {"text": "text", "image": "image"}, texts_and_images),
    "packed sequences, the LSTM as encoder": Client(
        Packed,
        TEXT_AND_IMAGE,
        {"text": "text.lstm", "image": "image"},
        texts_and_images,
        refused="it takes a PackedSequence, whose rows cannot be told apart. Leave `text` out of `encoders`",
    ),
    "dense graph": Client(
        Graph,
        ("x", "image"),
        {"x": "nodes", "image": "image"},
        lambda: {"x": normal(5, 6), "image": normal(12), "adjacency": normal(5, 5).gt(0).float()},
    ),
    "state spaces": Client(
        lambda: OfEncoders(audio=Selective(8), video=Selective(12)),
        ("audio", "video"),
        {"audio": "parts.audio", "video": "parts.video"},
        sequences,
    ),
    "compiled encoders": Client(
        lambda: OfEncoders(
            audio=torch.compile(nn.Sequential(nn.Linear(8, D), nn.Dropout(0.1)), backend="eager"),  # type: ignore[arg-type]
            visual=torch.compile(nn.Sequential(nn.Linear(12, D), nn.Dropout(0.1)), backend="eager"),  # type: ignore[arg-type]
        ),
        PAIR,
        {"audio": "parts.audio", "visual": "parts.visual"},
        audio_and_visual,
    ),
}
