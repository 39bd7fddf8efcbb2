"""Networks as papers of the field and their repositories write them, in plain torch, shortened."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm.models

from .client import BATCH, CLASSES, Client, generator, normal

D = 16


class MulT(nn.Module):
    """Crossmodal transformers (Tsai et al., ACL 2019): time first, projections by convolution, a tuple returned."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.ModuleDict(
            {name: nn.Conv1d(size, D, 1, bias=False) for name, size in (("l", 20), ("a", 8), ("v", 12))}
        )
        pairs = [first + second for first in "lav" for second in "lav" if first != second]
        self.cross = nn.ModuleDict({pair: nn.MultiheadAttention(D, 2, dropout=0.1) for pair in pairs})
        layer = nn.TransformerEncoderLayer(2 * D, 2, 32, dropout=0.1)
        self.memory = nn.ModuleDict({name: nn.TransformerEncoder(layer, 1) for name in "lav"})
        self.first, self.second, self.out = nn.Linear(6 * D, 6 * D), nn.Linear(6 * D, 6 * D), nn.Linear(6 * D, CLASSES)

    def forward(self, x_l: Tensor, x_a: Tensor, x_v: Tensor) -> tuple[Tensor, Tensor]:
        given = {"l": F.dropout(x_l.transpose(1, 2), 0.25, self.training), "a": x_a.transpose(1, 2)}
        given["v"] = x_v.transpose(1, 2)
        seen = {name: self.project[name](x).permute(2, 0, 1) for name, x in given.items()}
        last = []
        for name in "lav":
            both = [
                self.cross[name + other](seen[name], seen[other], seen[other])[0] for other in "lav" if other != name
            ]
            last.append(self.memory[name](torch.cat(both, 2))[-1])
        joined = torch.cat(last, 1)
        hidden = self.second(F.dropout(F.relu(self.first(joined)), 0.1, self.training)) + joined
        return self.out(hidden), joined


class TensorFusion(nn.Module):
    """An outer product of features with a one appended (Zadeh et al., EMNLP 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.audio = nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 6), nn.ReLU())
        self.video = nn.Sequential(nn.BatchNorm1d(12), nn.Dropout(0.1), nn.Linear(12, 6), nn.ReLU())
        self.text = nn.LSTM(20, 6, batch_first=True)
        self.post = nn.Sequential(nn.Dropout(0.1), nn.Linear(7**3, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def parts(self, audio: Tensor, video: Tensor, text: Tensor) -> list[Tensor]:
        found = [self.audio(audio.mean(1)), self.video(video.mean(1)), self.text(text)[1][0].squeeze(0)]
        one = torch.ones(len(found[0]), 1, dtype=found[0].dtype)
        return [torch.cat([one, x], 1) for x in found]

    def forward(self, audio: Tensor, video: Tensor, text: Tensor) -> Tensor:
        a, v, t = self.parts(audio, video, text)
        both = torch.bmm(a.unsqueeze(2), v.unsqueeze(1)).view(-1, 49, 1)
        logits: Tensor = self.post(torch.bmm(both, t.unsqueeze(1)).view(len(a), -1))
        return logits


class LowRankFusion(TensorFusion):
    """The same of low rank (Liu et al., ACL 2018), with parameters beside the modules."""

    def __init__(self, rank: int = 4) -> None:
        super().__init__()
        del self.post
        self.factors = nn.ParameterList(0.3 * torch.randn(rank, 7, CLASSES) for _ in range(3))
        self.weights, self.bias = nn.Parameter(torch.randn(1, rank)), nn.Parameter(torch.zeros(1, CLASSES))

    def forward(self, audio: Tensor, video: Tensor, text: Tensor) -> Tensor:
        a, v, t = (x @ factor for x, factor in zip(self.parts(audio, video, text), self.factors, strict=True))
        return (self.weights @ (a * v * t).permute(1, 0, 2)).squeeze(1) + self.bias


class Bottlenecks(nn.Module):
    """Attention bottlenecks (Nagrani et al., NeurIPS 2021): learnt tokens that are expanded to the batch."""

    def __init__(self) -> None:
        super().__init__()

        def layer() -> nn.Module:
            return nn.TransformerEncoderLayer(D, 2, 32, batch_first=True, dropout=0.1)

        self.audio, self.video = nn.Sequential(nn.Linear(8, D), layer()), nn.Sequential(nn.Linear(12, D), layer())
        self.mixed = nn.ModuleList(nn.ModuleList([layer(), layer()]) for _ in range(2))
        self.tokens = nn.Parameter(torch.randn(1, 2, D))
        self.heads = nn.ModuleList([nn.Linear(D, CLASSES), nn.Linear(D, CLASSES)])

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        a, v, tokens = self.audio(audio), self.video(video), self.tokens.expand(len(audio), -1, -1)
        for first, second in self.mixed:
            a, v = first(torch.cat([a, tokens], 1)), second(torch.cat([v, tokens], 1))
            tokens, a, v = (a[:, -2:] + v[:, -2:]) / 2, a[:, :-2], v[:, :-2]
        return (self.heads[0](a[:, 0]) + self.heads[1](v[:, 0])) / 2


class Exchange(nn.Module):
    """MMTM (Joze et al., CVPR 2020): channels of two CNNs gate each other half way."""

    def __init__(self) -> None:
        super().__init__()

        def block(channels: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(True))

        self.audio, self.video, self.audio2, self.video2 = block(1), block(3), block(8), block(8)
        self.squeeze, self.excite, self.head = nn.Linear(16, 4), nn.Linear(4, 16), nn.Linear(16, CLASSES)

    def forward(self, audio: Tensor, video: Tensor) -> Tensor:
        a, v = self.audio(audio), self.video(video)
        squeezed = F.relu(self.squeeze(torch.cat([x.flatten(2).mean(-1) for x in (a, v)], 1)))
        gates = torch.sigmoid(self.excite(squeezed))[..., None, None].chunk(2, 1)
        seen = [self.audio2(a * gates[0]).mean((2, 3)), self.video2(v * gates[1]).mean((2, 3))]
        logits: Tensor = self.head(torch.cat(seen, 1))
        return logits


class Question(nn.Module):
    """FiLM (Perez et al., AAAI 2018): a question, read by a GRU, scales and shifts a CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.question = nn.GRU(20, D, batch_first=True)
        self.image = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
        self.norm, self.film, self.head = nn.BatchNorm2d(8, affine=False), nn.Linear(D, 16), nn.Linear(8, CLASSES)

    def forward(self, question: Tensor, image: Tensor) -> Tensor:
        scale, shift = self.film(self.question(question)[1].squeeze(0))[..., None, None].chunk(2, 1)
        logits: Tensor = self.head(F.relu(self.norm(self.image(image)) * (1 + scale) + shift).amax((2, 3)))
        return logits


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


def three() -> dict[str, Any]:
    return {**sequences(), "text": normal(7, 20)}


def pictures() -> dict[str, Any]:
    return {"audio": normal(1, 16, 16), "video": normal(3, 16, 16)}


def lengths() -> Tensor:
    return torch.tensor([7, 2, 5, 3])


def texts_and_images() -> dict[str, Any]:
    return {"text": normal(7, 20), "image": normal(12), "lengths": lengths()}


BY_NAME = {"audio": "audio", "visual": "visual"}
PAIR = ("audio", "visual")
TEXT_AND_IMAGE = {"text": ("text", "lengths"), "image": "image"}
TRIMODAL = ("audio", "video", "text")


def pair(kind: type[Pair], **more: Any) -> Client:
    return Client(kind, PAIR, BY_NAME, audio_and_visual, more=more)


CLIENTS = {
    "two ResNet-18, late": Client(
        lambda: agm.models.LateFusion({"audio": agm.models.ResNet18(1), "video": agm.models.ResNet18(3)}, CLASSES),
        ("audio", "video"),
        None,
        lambda: {"audio": normal(1, 33, 33), "video": normal(2, 3, 32, 32)},
        cheap=False,
    ),
    "MulT": Client(
        MulT,
        ("x_l", "x_a", "x_v"),
        {"x_l": "project.l", "x_a": "project.a", "x_v": "project.v"},
        lambda: {"x_l": normal(7, 20), "x_a": normal(7, 8), "x_v": normal(7, 12)},
        more={"output": 0},
    ),
    "TFN": Client(TensorFusion, TRIMODAL, {name: name for name in TRIMODAL}, three),
    "LMF": Client(LowRankFusion, TRIMODAL, {name: name for name in TRIMODAL}, three),
    "MBT": Client(Bottlenecks, ("audio", "video"), {"audio": "audio", "video": "video"}, sequences),
    "MMTM": Client(Exchange, ("audio", "video"), {"audio": "audio", "video": "video"}, pictures),
    "FiLM": Client(
        Question,
        ("question", "image"),
        {"question": "question", "image": "image"},
        lambda: {"question": normal(7, 20), "image": normal(3, 16, 16)},
    ),
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
