"""Tensors that forward writes to in place, and then uses: what the step leaves in them, and its gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

from .plain_network import CLASSES, ENCODERS, NAMES, OPTIONS, TARGET, Net, inputs


@torch.library.custom_op("agm_tests::decay", mutates_args=("x",))
def decay(x: Tensor) -> None:
    x.mul_(0.9).add_(0.05)


@torch.jit.script
def scripted(x: Tensor) -> None:
    x.mul_(0.9).add_(0.05)


def through_out(x: Tensor) -> None:
    torch.add(x * 0.9, torch.full_like(x, 0.05), out=x)


def foreach(x: Tensor) -> None:
    torch._foreach_mul_([x], 0.9)
    torch._foreach_add_([x], 0.05)


def operators(x: Tensor) -> None:
    torch.ops.aten.mul_.Scalar(x, 0.9)
    torch.ops.aten.add_.Scalar(x, 0.05)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "methods": lambda x: x.mul_(0.9).add_(0.05),
    "out=": through_out,
    "foreach": foreach,
    "operators": operators,
    "a custom operator": decay,
    "TorchScript": scripted,
    "set_": lambda x: x.set_(x * 0.9 + 0.05),
}
PLACES = ("buffer", "parameter", "frozen parameter", "attribute", "list", "dict", "hidden layer")


class Written(Net):
    """Moves its prototypes in place in every forward, and compares its features with them."""

    def __init__(self, place: str, write: Callable[[Tensor], object], uses: bool = True) -> None:
        super().__init__()
        values = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.write, self.uses = write, uses
        self.held: Any = None
        if place == "buffer":
            self.register_buffer("own", values)
        elif "parameter" in place:
            self.own = nn.Parameter(values, requires_grad=place == "parameter")
        elif place == "attribute":
            self.own = values
        elif place == "hidden layer":
            layer = nn.Linear(4, 10, bias=False).double().requires_grad_(False)
            layer.weight.copy_(values)
            self.held = [layer]
        else:
            self.held = [values] if place == "list" else {0: values}

    @property
    def prototypes(self) -> Tensor:
        held = self.own if self.held is None else self.held[0]
        return held.weight if isinstance(held, nn.Module) else held

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self.prototypes)
        hidden = self.hidden(audio, visual)
        return self.head(hidden) + hidden @ self.prototypes if self.uses else self.head(hidden)


def check(options: dict[str, Any], place: str, write: Callable[[Tensor], object]) -> None:
    """Two steps against the definition: passes one after another, each from what the joint pass has left."""
    model = agm.AGM(Written(place, write), NAMES, alpha=1.5, **options)
    for _ in range(2):
        network = model.module
        plain = Written(place, WRITES["methods"])
        plain.load_state_dict(network.state_dict())
        plain.prototypes.data.copy_(network.prototypes)
        joint = plain(**inputs())
        left = plain.prototypes.detach().clone()
        network.zero_grad()
        logits = model(**inputs(), target=TARGET)
        F.cross_entropy(logits, TARGET).backward()
        torch.testing.assert_close(logits, joint, rtol=0, atol=1e-12)
        torch.testing.assert_close(network.prototypes.detach(), left, rtol=0, atol=0)

        (g,) = torch.autograd.grad(F.cross_entropy(leaf := joint.detach().requires_grad_(), TARGET), leaf)
        kappa, mean = (state := model.modulator.state.coefficients), state.mean()
        joint.backward(mean * g)
        total = {name: p.grad for name, p in plain.named_parameters()}
        for present, own in zip(NAMES, kappa, strict=True):
            masked = Written(place, WRITES["methods"])
            masked.load_state_dict(plain.state_dict())
            masked.prototypes.data.copy_(left)
            masked(**{name: x if name == present else x * 0 for name, x in inputs().items()}).backward((own - mean) * g)
            for name, p in masked.named_parameters():
                if p.grad is not None:
                    total[name] = p.grad if total[name] is None else total[name] + p.grad
        for name, p in network.named_parameters():
            torch.testing.assert_close(p.grad, total[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_the_graph_of_a_masked_pass_has_what_that_wrote(options: dict[str, Any], place: str) -> None:
    check(options, place, WRITES["methods"])


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("place", ["buffer", "frozen parameter", "attribute"])
def test_by_whatever_function_it_is_written(write: str, place: str) -> None:
    check(OPTIONS[1], place, WRITES[write])


@pytest.mark.parametrize("place", ["buffer", "attribute"])
def test_a_write_through_numpy_is_put_back(place: str) -> None:
    def write(x: Tensor) -> None:
        x.detach().numpy()[...] += 1.0

    network = Written(place, write, uses=False)
    before = network.prototypes.clone()
    agm.AGM(network, NAMES, **OPTIONS[1])(**inputs(), target=TARGET)
    assert torch.equal(network.prototypes, before + 1)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_parameter_that_is_clamped_in_forward(options: dict[str, Any]) -> None:
    """CLIP's logit scale: the backward of the joint pass finds it as it was."""

    class Clamped(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

        def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
            with torch.no_grad():
                self.scale.clamp_(0, 1.5)
            return self.logits(audio, visual) * self.scale

    model = agm.AGM(Clamped(), NAMES, alpha=0.0, **options)
    F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
    plain = Clamped()
    F.cross_entropy(plain(**inputs()), TARGET).backward()
    for one, other in zip(model.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert agm.verify(model, inputs(), TARGET).ok


class Failing(Net):
    """A queue and its place, towers that follow the encoder, and a generator of its own."""

    def __init__(self, write: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(8, 5, dtype=torch.float64))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))
        self.register_buffer("rebound", torch.zeros(3, dtype=torch.float64))
        self.tower, self.recurrent = nn.Linear(4, 5).double(), nn.GRU(4, 4).double()
        self.words = nn.Embedding(4, 5, max_norm=0.1).double()
        self.hidden_tower = [nn.Linear(4, 5).double()]
        self.generator = torch.Generator().manual_seed(0)
        self.write = write
        self.fails: str | None = None

    def values(self) -> dict[str, Tensor]:
        return {**self.state_dict(), **dict(self.hidden_tower[0].named_parameters(prefix="hidden"))}

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        if self.training:
            torch.rand(2, generator=self.generator)
            with torch.no_grad():
                for one in (self.tower, self.recurrent, self.hidden_tower[0], self.head):
                    for own in one.parameters():
                        self.write(own)
                self.queue[int(self.place)] = self.tower(audio).mean(0) + self.words(torch.arange(2)).sum(0)
                self.place.copy_((self.place + 1) % 8)
                self.rebound = self.rebound + 1
        if self.fails == ("joint" if self.training else "masked"):
            raise KeyboardInterrupt
        return self.logits(audio, visual)


@pytest.mark.parametrize("fails", ["joint", "masked", "scores"])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    "options", [*OPTIONS, {"encoders": ENCODERS, "head": "head", "loss": "cross_entropy"}], ids=str
)
def test_a_step_that_fails_puts_back_what_forward_has_written(options: dict[str, Any], fails: str, steps: int) -> None:
    check_failing(options, "methods", steps, fails)


@pytest.mark.parametrize("write", [name for name in WRITES if name not in ("TorchScript", "set_")])
@pytest.mark.parametrize("steps", [0, 1])
def test_a_step_that_fails_puts_back_what_any_function_has_written(steps: int, write: str) -> None:
    check_failing(OPTIONS[1], write, steps, "joint")


def check_failing(options: dict[str, Any], write: str, steps: int, fails: str) -> None:
    network = Failing(WRITES[write])
    model = agm.AGM(network, NAMES, **options)
    for _ in range(steps):
        model(**inputs(), target=TARGET)
    before = {name: value.clone() for name, value in network.values().items()}
    state = network.generator.get_state()
    network.fails = fails
    target = TARGET + CLASSES if fails == "scores" else TARGET
    with pytest.raises((KeyboardInterrupt, ValueError, IndexError)):
        model(**inputs(), target=target)
    assert [name for name, value in network.values().items() if not torch.equal(before[name], value)] == []
    assert torch.equal(network.generator.get_state(), state)

    network.fails = None
    model(**inputs(), target=TARGET)
    assert not any(
        torch.equal(before[name], value) for name, value in network.tower.state_dict(prefix="tower.").items()
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_that_a_first_step_gives_their_sizes(options: dict[str, Any]) -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.LazyLinear(CLASSES).double()  # type: ignore[assignment]

    torch.manual_seed(0)
    network = Lazy()
    model = agm.AGM(network, NAMES, **options)
    F.cross_entropy(model(**inputs(), target=TARGET), TARGET).backward()
    assert network.head.weight.grad is not None
    assert agm.verify(model, inputs(), TARGET).ok
