"""Chains of known layers, in which no function is followed: rows stay apart in them, or they are not known."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

import agm
from agm._module_state.structure import Structure
from agm._one_pass.known_layers import _LAYERS, known_layers

B = 5


def rows(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def fixed(norm: nn.Module) -> nn.Module:
    return norm.eval()


# A layer of each kind, and rows that it takes.
KINDS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 4), (6,)),
    (nn.Linear(6, 4), (3, 6)),
    (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 6)),
    (nn.Conv2d(2, 3, 3), (2, 6, 6)),
    (nn.Conv3d(2, 3, 2), (2, 4, 4, 4)),
    (nn.MaxPool1d(2), (2, 6)),
    (nn.MaxPool2d(2), (2, 6, 6)),
    (nn.MaxPool3d(2), (2, 4, 4, 4)),
    (nn.AvgPool1d(2), (2, 6)),
    (nn.AvgPool2d(2), (2, 6, 6)),
    (nn.AvgPool3d(2), (2, 4, 4, 4)),
    (nn.AdaptiveAvgPool1d(2), (2, 6)),
    (nn.AdaptiveAvgPool2d((None, 2)), (2, 6, 6)),
    (nn.AdaptiveAvgPool3d(1), (2, 4, 4, 4)),
    (fixed(nn.BatchNorm1d(6)), (6,)),
    (fixed(nn.BatchNorm2d(2)), (2, 6, 6)),
    (fixed(nn.BatchNorm3d(2)), (2, 4, 4, 4)),
    (nn.LayerNorm(6), (3, 6)),
    (nn.Embedding(9, 4), (3,)),
    (fixed(nn.Dropout(0.5)), (6,)),
    (nn.Flatten(), (2, 3)),
    (nn.Identity(), (6,)),
    *((kind(), (6,)) for kind in (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.Mish, nn.Hardswish)),
    *((kind(), (6,)) for kind in (nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LogSigmoid, nn.Hardsigmoid)),
]


def treats_apart(encoder: nn.Module, dims: int) -> bool:
    found = known_layers(Structure(encoder))
    return found is not None and found.treat_apart(dims)


def test_every_kind_is_here() -> None:
    assert {type(layer) for layer, _ in KINDS} == set(_LAYERS)


@pytest.mark.parametrize(("layer", "shape"), KINDS, ids=lambda value: type(value).__name__)
def test_rows_stay_apart(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """What a row comes to does not change with the rows beside it, and neither does what flows back into it."""
    encoder = copy.deepcopy(nn.Sequential(layer).double())
    x = torch.arange(B * 3).view(B, 3) % 9 if isinstance(layer, nn.Embedding) else rows(B, *shape)
    assert treats_apart(encoder, x.dim())
    weights = list(encoder.parameters())
    together = encoder(x)
    apart = torch.cat([encoder(x[:3]), encoder(x[3:])])
    torch.testing.assert_close(together, apart)
    if weights:
        scales = rows(*together.shape)
        for one, other in zip(
            torch.autograd.grad((together * scales).sum(), weights),
            torch.autograd.grad((apart * scales).sum(), weights),
            strict=True,
        ):
            torch.testing.assert_close(one, other)


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.mean(0).sum()


def hooked(kind: str) -> nn.Module:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    getattr(encoder[0], kind)(lambda *given: None)
    return encoder


def forward_of_its_own() -> nn.Module:
    encoder = nn.Sequential(nn.Linear(6, 4))
    encoder[0].forward = lambda x: x - x.mean(0)  # type: ignore[method-assign]
    return encoder


def frozen_halves() -> nn.Module:
    norm = nn.BatchNorm1d(6)
    norm.eval().running_mean = None
    return norm


# What is not known, with the dimensions of what it is given.
OTHERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a class of the user's": (lambda: nn.Sequential(Own(6, 4)), 2),
    "one row without a batch": (lambda: nn.Sequential(nn.Linear(6, 4)), 1),
    "an image without a batch": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3)), 3),
    "an image that is flattened first": (lambda: nn.Sequential(nn.Flatten(), nn.Conv2d(2, 3, 3)), 4),
    "rows that are flattened": (lambda: nn.Flatten(0), 2),
    "a norm in training mode": (lambda: nn.BatchNorm1d(6), 2),
    "a norm of the batch": (lambda: nn.BatchNorm1d(6, track_running_stats=False).eval(), 2),
    "a norm without a mean": (frozen_halves, 2),
    "a dropout": (lambda: nn.Dropout(0.5), 2),
    "a norm over rows": (lambda: nn.LayerNorm((3, 6)), 2),
    "a table that is written to": (lambda: nn.Embedding(9, 4, max_norm=1.0), 2),
    "a table with gradients by frequency": (lambda: nn.Embedding(9, 4, scale_grad_by_freq=True), 2),
    "indices of a pool": (lambda: nn.MaxPool1d(2, return_indices=True), 3),
    "writing to the input": (lambda: nn.Sequential(nn.ReLU(inplace=True)), 2),
    "writing to a view of the input": (lambda: nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), 3),
    "a weight of a parametrisation": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4))), 2),
    "a weight of a hook": (lambda: nn.Sequential(spectral_norm(nn.Linear(6, 4))), 2),
    "a forward of its own": (forward_of_its_own, 2),
    "a softmax": (lambda: nn.Softmax(0), 2),
    **{
        kind: (lambda kind=kind: hooked(kind), 2)  # type: ignore[misc]
        for kind in (
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_full_backward_hook",
            "register_full_backward_pre_hook",
        )
    },
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_known(kind: str) -> None:
    make, dims = OTHERS[kind]
    assert not treats_apart(make(), dims)


def test_writing_to_what_a_layer_has_made_is_fine() -> None:
    assert treats_apart(nn.Sequential(nn.Linear(6, 4), nn.Dropout().eval(), nn.ReLU(inplace=True)), 2)


def exchanged(encoder: Any) -> None:
    encoder[1] = nn.Softmax(0)


def trained(encoder: Any) -> None:
    encoder[2].train()


def tensor_of_another_kind(encoder: Any) -> None:
    class Weight(Tensor):
        pass

    encoder[0]._parameters["weight"] = torch.ones(4, 6).as_subclass(Weight)  # type: ignore[misc]


LATER: dict[str, Callable[[Any], object]] = {
    "another layer": exchanged,
    "one more": lambda encoder: encoder.append(nn.Softmax(0)),
    "training mode": trained,
    "a hook": lambda encoder: encoder[1].register_forward_hook(lambda *given: None),
    "a forward": lambda encoder: setattr(encoder[1], "forward", lambda x: x - x.mean(0)),
    "a setting": lambda encoder: setattr(encoder[3], "start_dim", 0),
    "a weight": tensor_of_another_kind,
}


@pytest.mark.parametrize("change", LATER)
def test_what_changes_after_the_encoder_was_looked_at(change: str) -> None:
    """It is asked right before each batch."""
    encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout().eval(), nn.Flatten())
    found = known_layers(Structure(encoder))
    assert found is not None
    assert found.treat_apart(2)
    LATER[change](encoder)
    assert not found.treat_apart(2)


def test_a_class_whose_forward_is_another_one_by_now(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    assert treats_apart(encoder, 2)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: F.relu(x - x.mean(0)))
    assert not treats_apart(encoder, 2)


class Net(nn.Module):
    """Encoders that are known, and something that forward does to one of them in a later batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.visual = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
        self.head = nn.Linear(10, 3)
        self.inside: Callable[[Net], object] | None = None
        self.double()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        if self.inside is not None:
            self.inside(self)
        return self.head(torch.cat([self.audio(audio), self.visual(visual)], 1))


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


def centred(net: Net) -> None:
    net.audio[1] = Centred()


def normed(net: Net) -> None:
    net.audio.append(nn.BatchNorm1d(5).double())


def dropped(net: Net) -> None:
    net.audio.append(nn.Dropout(0.5))


def scaled(net: Net) -> None:
    net.audio[1].register_forward_hook(lambda module, args, output: output * len(output))


def frozen(net: Net) -> None:
    net.audio.requires_grad_(False)


def half_frozen(net: Net) -> None:
    net.audio[0].bias.requires_grad_(False)  # type: ignore[union-attr]


CHANGES = (centred, normed, dropped, scaled, frozen, half_frozen)


def step(model: Any, plain: Any) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Logits of a step, and the gradients of the network."""
    torch.manual_seed(1)
    plain.zero_grad()
    logits = model(audio=rows(B, 6), visual=rows(B, 6) + 1, target=torch.arange(B) % 3)
    F.cross_entropy(logits, torch.arange(B) % 3).backward()
    return logits.detach(), {name: weight.grad for name, weight in plain.named_parameters()}


@pytest.mark.parametrize("inside", [False, True], ids=["between", "inside"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{}, {"masked": "shared"}], ids=["exact", "shared"])
def test_a_network_that_changes_between_batches_is_chosen_for_anew(
    options: dict[str, Any], change: Callable[[Net], None], inside: bool
) -> None:
    """As a model that was made after the change, with two passes, whether the user or forward itself changes it."""
    made = []
    for passes in ("auto", "two"):
        net = Net()
        model = agm.AGM(net, ("audio", "visual"), encoders={"audio": "audio", "visual": "visual"}, **options)
        later = agm.AGM(
            net, ("audio", "visual"), encoders={"audio": "audio", "visual": "visual"}, passes=passes, **options
        )
        for _ in range(3):
            step(model, net)
        later.modulator.load_state_dict(model.modulator.state_dict())
        once = []

        def change_once(net: Net, once: list[None] = once) -> None:
            if not once:
                once.append(None)
                change(net)

        if inside:
            net.inside = change_once
        else:
            change(net)
        made.append(step(model if passes == "auto" else later, net))
    torch.testing.assert_close(made[0], made[1])


class Switching(Net):
    """The encoder of the sound is another one in another batch, behind the same path."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).double()
        self.others = False

    @property
    def sound(self) -> nn.Module:
        return self.other if self.others else self.audio

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.sound(audio), self.visual(visual)], 1))


def test_a_path_that_leads_elsewhere_later() -> None:
    net = Switching()
    model = agm.AGM(net, ("audio", "visual"), encoders={"audio": "sound", "visual": "visual"})
    for others in (False, False, True, True, False):
        net.others = others
        _, gradients = step(model, net)
        assert (gradients["other.0.weight"] is not None) == others
        assert (gradients["audio.0.weight"] is not None) != others
