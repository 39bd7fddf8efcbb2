"""What a first user is told: the argument, what is wrong with it, and advice that fits."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import agm

A, V, Y = torch.randn(16, 8), torch.randn(16, 6), torch.arange(16) % 4
M = ("audio", "visual")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio_net, self.visual_net = nn.Linear(8, 16), nn.Linear(6, 16)
        self.head = nn.Linear(32, 4)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio_net(audio), self.visual_net(visual)], 1).relu())


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.h = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.h(torch.cat([self.a(rgb), self.b(depth)], 1))


def pixels(side: int, **options: Any) -> Tensor:
    model = agm.AGM(Pixels(), ("rgb", "depth"), **options)
    inputs = {"rgb": torch.randn(2, 3, side, side), "depth": torch.randn(2, 1, side, side)}
    return model(**inputs, target=torch.randint(4, (2, side, side)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m(audio=A, visual=V, target=F.one_hot(Y, 4).float()), TypeError, "mixup.*'soft_cross_entropy'"),
        (lambda m: m(audio=A, visual=V, target=Y.float()), TypeError, r"target\.long\(\)"),
        (lambda m: m(audio=[torch.randn(i + 1, 8) for i in range(16)], visual=V, target=Y), ValueError, "pad_sequence"),
        (lambda m: agm.AGM(m, M), TypeError, r"an agm\.AGM, which has one.*model\.module"),
        (lambda m: pixels(6), ValueError, r"\(2, 4, 6\).* got \(2, 6, 6\).*class_dim=1"),
    ],
)
def test_advice(call: Callable[[agm.AGM], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(agm.AGM(Net(), M))


def test_logits_that_can_be_read_in_two_ways_are_told_once() -> None:
    model = agm.AGM(Pixels(), ("rgb", "depth"))
    inputs = {"rgb": torch.randn(2, 3, 4, 4), "depth": torch.randn(2, 1, 4, 4)}
    target = torch.randint(4, (2, 4, 4))
    with pytest.warns(UserWarning, match=r"Logits \(2, 4, 4, 4\) fit the target \(2, 4, 4\) whether"):
        model(**inputs, target=target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs, target=target)
        for given in (1, -1):
            assert pixels(4, class_dim=given).shape == (2, 4, 4, 4)
        assert pixels(6, class_dim=1).shape == (2, 4, 6, 6)


def test_modules_that_torch_does_not_find() -> None:
    class Hidden(Net):
        def __init__(self) -> None:
            super().__init__()
            self.encoders_of = [nn.Sequential(nn.Linear(n, 16), nn.BatchNorm1d(16)) for n in (8, 6)]
            self.steps = [1, 2]
            self.known = [self.head]

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            return self.head(torch.cat([e(x) for e, x in zip(self.encoders_of, (audio, visual), strict=True)], 1))

    found = agm.verify(agm.AGM(Hidden(), M, max_rows=len(A) - 1), {"audio": A, "visual": V}, Y)
    assert not found.ok
    assert "where torch does not find them: encoders_of. " in found.advice[0]


class Reader(nn.Module):
    def __init__(self, sorted_only: bool) -> None:
        super().__init__()
        self.rnn, self.sorted_only = nn.GRU(5, 7, batch_first=True), sorted_only

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        packed = pack_padded_sequence(
            given["steps"], given["length"], batch_first=True, enforce_sorted=self.sorted_only
        )
        return self.rnn(packed)[1][-1]


class Reading(nn.Module):
    def __init__(self, sorted_only: bool) -> None:
        super().__init__()
        self.reader, self.look, self.out = Reader(sorted_only), nn.Linear(4, 7), nn.Linear(14, 3)

    def forward(self, text: dict[str, Tensor], image: Tensor) -> Tensor:
        return self.out(torch.cat([self.reader(text), self.look(image).relu()], 1))


@pytest.mark.parametrize("options", [{}, {"encoders": {"text": "reader", "image": "look"}}])
@pytest.mark.parametrize("masked", ["exact", "function"])
def test_sequences_sorted_by_length(options: dict[str, Any], masked: str) -> None:
    inputs = {"text": {"steps": torch.randn(8, 6, 5), "length": torch.arange(8, 0, -1).clamp(max=6)}}
    inputs |= {"image": torch.randn(8, 4)}

    def run(sorted_only: bool) -> Tensor:
        net = Reading(sorted_only)
        if masked == "function":
            return agm.masked_logits(net, inputs, **options)[-1]
        return agm.AGM(net, ("text", "image"), **options)(**inputs, target=torch.arange(8) % 3)

    with pytest.raises(ValueError, match=r"sequences of `text` .*enforce_sorted=False"):
        run(True)
    assert run(False).shape == (8, 3)


@pytest.mark.parametrize("name", ["text", "type", "half", "train", "cam.left", "100%", "items"])
@pytest.mark.parametrize("make", [lambda: nn.Parameter(torch.zeros(4)), lambda: nn.Linear(4, 4)])
def test_what_is_absent_is_learnt_for_a_modality_of_any_name(name: str, make: Callable[[], Any]) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p, self.q = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, **given: Tensor) -> Tensor:
            first, second = given.values()
            return self.p(first) + torch.tanh(self.q(second))

    learnt = make()
    model = agm.AGM(Sum(), (name, "other"), absent={name: learnt})
    inputs, target = {name: torch.randn(6, 4), "other": torch.randn(6, 4)}, torch.arange(6) % 3
    F.cross_entropy(model(**inputs, target=target), target).backward()
    for parameter in [learnt] if isinstance(learnt, nn.Parameter) else learnt.parameters():
        assert parameter.grad is not None
        assert any(own is parameter for own in model.parameters())
    twin = agm.AGM(Sum(), (name, "other"), absent={name: make()})
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        present = torch.tensor([[False, True]]).expand(6, 2)
        model.eval(), twin.eval()
        assert torch.equal(model(**inputs, present=present), twin(**inputs, present=present))


def test_old_names_of_what_is_learnt() -> None:
    model = agm.AGM(Net(), M, absent={"audio": nn.Parameter(torch.zeros(8))})
    assert "absent.audio" in model.state_dict()


def test_backends_are_a_table() -> None:
    lines = str(agm.backends()).splitlines()
    assert lines == repr(agm.backends()).splitlines()
    assert all(len(line) < 80 for line in lines)
    assert lines[0].split() == ["op", "cpu", "cuda"]
    shown = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    for service in agm.backends():
        op = service.op if service.op in shown else service.op.removesuffix("_backward")
        assert shown[op][["cpu", "cuda"].index(service.device)] == service.backend


def test_a_state_is_printed_with_its_values() -> None:
    model = agm.AGM(Net(), M)
    assert "step=0, running_scores=[0, 0]" in repr(model)
    model(audio=A, visual=V, target=Y)
    scores = ", ".join(f"{score:.4g}" for score in model.modulator.state.running_scores.tolist())
    assert f"step=1, running_scores=[{scores}]" in repr(model)
    assert repr(model.modulator.state.to("meta")) == "ModulationState(num_modalities=2)"
