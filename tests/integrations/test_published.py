"""Checkpoints of other code bases, as their networks have them: the same logits from other names."""

import pytest
import torch
from torch import Tensor, nn

from agm.integrations.published import load_published
from agm.models import ResNet18


class Published(nn.Module):
    """The names and the forward of OGM-GE's AVClassifier, and those of BalanceBenchmark's modality_encoder."""

    def __init__(self, fusion: str, *, items: bool = False) -> None:
        super().__init__()
        self.fusion_module = nn.Module()
        if fusion == "concat":
            self.fusion_module.fc_out = nn.Linear(1024, 6)
        elif fusion == "FiLM":
            self.fusion_module.fc, self.fusion_module.fc_out = nn.Linear(512, 1024), nn.Linear(512, 6)
        else:
            self.fusion_module.fc_x, self.fusion_module.fc_y = nn.Linear(512, 6), nn.Linear(512, 6)
        audio, visual = ResNet18(1), ResNet18(3)
        if items:
            self.modality_encoder = nn.ModuleDict({"audio": audio, "visual": visual})
        else:
            self.audio_net, self.visual_net = audio, visual
        self.parts = [audio, visual]

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        a, v = self.parts[0](audio), self.parts[1](visual)
        head = self.fusion_module
        if hasattr(head, "fc"):
            gamma, beta = torch.split(head.fc(a), 512, 1)
            return head.fc_out(gamma * v + beta)
        return head.fc_out(torch.cat([a, v], 1)) if hasattr(head, "fc_out") else head.fc_x(a) + head.fc_y(v)


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 33, 40, generator=random), torch.randn(2, 2, 3, 32, 32, generator=random)


@pytest.mark.parametrize(
    ("fusion", "items", "prefix", "key"),
    [
        ("concat", False, "module.", "model"),
        ("sum", False, "", None),
        ("FiLM", False, "", None),
        ("concat", True, "", "state_dict"),
    ],
)
def test_the_same_logits(fusion: str, items: bool, prefix: str, key: str | None, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    theirs = Published(fusion, items=items)
    theirs(*batch)  # running statistics that are no longer the first ones
    state = {prefix + name: value for name, value in theirs.state_dict().items()}
    checkpoint = state if key is None else {"saved_epoch": 3, "acc": 0.6, key: state, "optimizer": {}}
    ours = load_published(checkpoint).eval()
    assert tuple(ours.encoders) == ("audio", "visual")
    audio, visual = batch
    torch.testing.assert_close(ours(audio=audio, visual=visual), theirs.eval()(audio, visual))


def test_what_cannot_be_converted_is_refused() -> None:
    state = dict(Published("concat").state_dict())
    gate = {f"fusion_module.fc_x.{name}": value for name, value in nn.Linear(512, 512).state_dict().items()}
    film = dict(Published("FiLM").state_dict())
    with pytest.raises(TypeError, match=r"`checkpoint` to be a state dict.*but got str"):
        load_published("best.pth")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoders `NAME_net`.*but got \['audio'\]"):
        load_published({name: value for name, value in state.items() if "visual" not in name})
    with pytest.raises(ValueError, match=r"fc_out` \(concat\).*but got \['fc_out\.bias', 'fc_out\.weight', 'fc_x\.b"):
        load_published(state | gate)
    with pytest.raises(ValueError, match=r"two modalities for a fusion by FiLM, but got \['audio', 'visual', 'flow'\]"):
        load_published(film | {name.replace("audio", "flow"): value for name, value in film.items()})
    with pytest.raises(ValueError, match=r"`fusion_module\.fc` of shapes .*\(1024, 512\).* but got .*\(7, 512\)"):
        load_published(film | {"fusion_module.fc.weight": torch.zeros(7, 512)})
    with pytest.raises(ValueError, match=r"a ResNet-18 for `audio`, but got other parameters than its: layer9\.weight"):
        load_published(state | {"audio_net.layer9.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"a head of 1024 columns.*but got one of shape \(6, 512\)"):
        load_published(state | {"fusion_module.fc_out.weight": torch.zeros(6, 512)})
