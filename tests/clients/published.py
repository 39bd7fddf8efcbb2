"""Fusions as their papers and repositories write them, in plain torch, shortened."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import agm.models

from .client import CLASSES, Client, normal
from .forms import D, sequences


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


def three() -> dict[str, Any]:
    return {**sequences(), "text": normal(7, 20)}


def pictures() -> dict[str, Any]:
    return {"audio": normal(1, 16, 16), "video": normal(3, 16, 16)}


TRIMODAL = ("audio", "video", "text")

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
}
