"""What goes wrong while an encoder is looked at in the first batch is not remembered as an answer."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm

X, Y = {name: torch.randn(8, 5) for name in ("a", "b")}, torch.arange(8) % 4


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(5, 12), nn.BatchNorm1d(12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.first(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.f, self.head = Encoder(), Encoder(), nn.Linear(12, 4)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(torch.cat([self.e(a), self.f(b)], 1))


def build() -> agm.AGM:
    torch.manual_seed(0)
    return agm.AGM(Net(), ("a", "b"), encoders={"a": "e", "b": "f"}, passes="one")


def gradients(model: agm.AGM) -> list[Any]:
    model.zero_grad()
    F.cross_entropy(model(**X, target=Y), Y).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("error", [MemoryError, torch.OutOfMemoryError, KeyboardInterrupt])
def test_memory_that_runs_out_in_the_first_batch(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, plain = gradients(build()), F.linear
    for number in range(1, 40):
        left = number

        def failing(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal left
            left -= 1
            if not left:
                raise error("not now")
            return plain(*args, **kwargs)

        model = build()
        with monkeypatch.context() as patch:
            patch.setattr(F, "linear", failing)
            try:
                model(**X, target=Y)
            except error:
                pass
            else:
                break
        found = gradients(model)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=f"product {number}")
    assert 5 < number < 39  # every product of the step failed once


class Capturing(nn.Module):
    """As models of transformers: hooks are registered once, in the first call, and make a part of the output."""

    registered = False

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        if not self.registered:

            def capture(module: nn.Module, args: Any, output: Tensor) -> None:
                self.seen.append(output)

            capture.__module__ = "transformers.utils"  # by which it is known to be the network's own
            self.first.register_forward_hook(capture)
            self.registered = True
        self.seen: list[Tensor] = []
        hidden = self.last(torch.relu(self.first(x)))
        if self.training:  # it reads its mode
            hidden = hidden * 1
        (captured,), self.seen = self.seen, []
        return hidden + captured[:, :6]


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_hooks_that_forward_registers_once_are_there_once(masked: str) -> None:
    torch.manual_seed(0)
    net = Net()
    net.e = Capturing()
    model = agm.AGM(net, ("a", "b"), encoders={"a": "e", "b": "f"}, masked=masked)
    for _ in range(2):
        F.cross_entropy(model(**X, target=Y), Y).backward()
        assert len(net.e.first._forward_hooks) == 1
