"""Steps that end in the loss of a linear head, against those that return the logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop

import agm
from agm.ops import reference

from .head_networks import (
    HIDDEN,
    PATHS,
    TARGET,
    Adding,
    Bypassing,
    Fusing,
    Named,
    Net,
    ending,
    engine,
    gradients,
    inputs,
)


def assert_alike(found: agm.AGM, expected: agm.AGM, call: Callable[[agm.AGM], Tensor] | None = None) -> None:
    """Of three steps, on parameters that change: loss, gradients, state, and statistics of batch norm."""

    def own(model: agm.AGM) -> Tensor:
        return model(**inputs(), target=TARGET)

    for _ in range(3):
        loss, logits = (call or own)(found), expected(**inputs(), target=TARGET)
        assert loss.shape == ()
        other = F.cross_entropy(logits, TARGET)
        torch.testing.assert_close(loss, other, rtol=1e-12, atol=0)
        for model, one in ((found, loss), (expected, other)):
            for parameter, gradient in zip(model.parameters(), gradients(model, one), strict=True):
                parameter.grad = gradient
        for one, another in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(one.grad, another.grad, rtol=1e-10, atol=1e-13)
        for model in (found, expected):
            torch.optim.SGD(model.parameters(), 0.3).step()
        left, right = found.state_dict(), expected.state_dict()
        assert left.keys() == right.keys()
        for name, value in left.items():
            torch.testing.assert_close(value, right[name], rtol=1e-10, atol=1e-12, msg=name)
    assert (found.modulator.state.coefficients - 1).abs().min() > 1e-4  # something was modulated


@pytest.mark.parametrize("masked", ["exact", "shared"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Net, {"encoders": PATHS}),
        (Net, {"encoders": {"audio": "audio_net"}, "passes": "two"}),
        (Fusing, {}),
        (Fusing, {"max_rows": 4, "checkpoint": True}),
        (Bypassing, {}),
        (Adding, {"encoders": PATHS}),
    ],
)
def test_numbers(kind: type[Net], settings: dict[str, Any], masked: Any) -> None:
    settings = {**settings, "masked": masked}
    assert_alike(ending(kind(), **settings), engine(kind(), **settings))


@pytest.mark.parametrize("settings", [{}, {"max_rows": 4}, {"max_rows": 4, "checkpoint": True}])
def test_numbers_of_a_network_of_one_piece(settings: dict[str, Any]) -> None:
    assert_alike(ending(Net(bias=False), **settings), engine(Net(bias=False), **settings))


def test_what_is_recomputed_to_its_end_ends_before_the_head_too() -> None:
    settings = {"max_rows": 4, "checkpoint": True}
    with set_checkpoint_early_stop(False):
        assert_alike(ending(Net(), **settings), engine(Net(), **settings))


@pytest.mark.parametrize(("kind", "settings"), [(Net, {"encoders": PATHS}), (Fusing, {})])
def test_compiles_without_a_break(kind: type[Net], settings: dict[str, Any]) -> None:
    found, expected = ending(kind(), **settings), engine(kind(), **settings)
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    assert_alike(found, expected, lambda _: compiled(**inputs(), target=TARGET))


def test_compiled_a_declared_sum_is_not_taken_for_what_the_head_is_given() -> None:
    def late() -> agm.models.LateFusion:
        torch.manual_seed(0)
        nets = {"audio": nn.Linear(4, 6), "visual": nn.Linear(3, 5)}
        return agm.models.LateFusion(encoders=nets, num_classes=40, num_features={"audio": 6, "visual": 5}).double()

    found = agm.AGM(late(), alpha=1.5, head="classifier", loss="cross_entropy")
    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    assert_alike(found, agm.AGM(late(), alpha=1.5), lambda _: compiled(**inputs(), target=TARGET))


def test_the_logits_are_those_that_a_model_without_loss_is_verified_by() -> None:
    model = ending(Net(), encoders=PATHS)
    assert agm.verify(model, inputs(), TARGET, double=True).ok
    assert agm.verify(model, inputs(), TARGET).ok
    assert model.loss == "cross_entropy"
    assert model(**inputs(), target=TARGET).shape == ()


_IN_CHUNKS = {
    getattr(torch.ops.agm, function.__name__): function
    for function in (
        reference.modulate_linear_cross_entropy,
        reference.modulate_linear_cross_entropy_backward,
    )
}


class _Largest(TorchDispatchMode):
    """Numbers of the largest tensor that an operation has made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _IN_CHUNKS:  # in whose kernel a mode sees nothing, so run it here
            with self:
                return _IN_CHUNKS[func.overloadpacket](*args, **(kwargs or {}))
        results = func(*args, **(kwargs or {}))
        for one in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(one, Tensor):
                self.numbers = max(self.numbers, one.untyped_storage().nbytes() // one.element_size())
        return results


def test_no_more_logits_are_made_than_those_of_a_chunk() -> None:
    batch, classes = 512, 3000
    chunk = 128 * classes

    class Wide(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(HIDDEN, classes).double()

    given = {"audio": torch.randn(batch, 4).double(), "visual": torch.randn(batch, 3).double()}
    target = torch.randint(classes, (batch,))
    with _Largest() as whole:
        F.cross_entropy(engine(Wide())(**given, target=target), target).backward()
    with _Largest() as chunked:
        ending(Wide(), backend="reference")(**given, target=target).backward()
    assert whole.numbers >= 3 * batch * classes
    assert chunk / 2 < chunked.numbers <= chunk


def test_the_window_and_calls_without_gradients_have_the_joint_loss() -> None:
    model, plain = ending(Net(), start=1), Net()
    expected = F.cross_entropy(plain(**inputs()), TARGET)
    loss = model(**inputs(), target=TARGET)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(gradients(model, loss), torch.autograd.grad(expected, list(plain.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(model.module.get_buffer(name), buffer, rtol=0, atol=0)
    assert int(model.modulator.state.step) == 0
    model.epoch = 1
    with torch.no_grad():
        torch.testing.assert_close(
            model(**inputs(), target=TARGET), F.cross_entropy(plain(**inputs()), TARGET), rtol=1e-12, atol=0
        )
    assert int(model.modulator.state.step) == 0
    model(**inputs(), target=TARGET)
    assert int(model.modulator.state.step) == 1


def test_eval_mode_returns_logits_and_where_there_is_room_the_loss() -> None:
    alone, named = ending(Net()).eval(), ending(Named()).eval()
    expected = Net().eval()(**inputs())
    assert torch.equal(alone(**inputs()), expected)
    assert torch.equal(alone(**inputs(), target=TARGET), expected)
    assert named(**inputs()).keys() == {"logits", "hidden"}
    output = named(**inputs(), target=TARGET)
    assert torch.equal(output["logits"], expected)
    torch.testing.assert_close(output["loss"], F.cross_entropy(expected, TARGET))


def test_the_output_keeps_what_it_holds_beside_the_logits() -> None:
    model, plain = ending(Named()), Named()
    output = model(**inputs(), target=TARGET)
    assert output.keys() == {"logits", "hidden", "loss"}
    assert output["logits"] is None
    torch.testing.assert_close(output["hidden"], plain(**inputs())["hidden"], rtol=0, atol=0)


def test_accumulated_batches_are_those_of_one_mean() -> None:
    model, other = ending(Net()), ending(Net())
    loss, mean = model(**inputs(), target=TARGET, num_items_in_batch=20), other(**inputs(), target=TARGET)
    torch.testing.assert_close(loss, mean * 5 / 20)
    for one, another in zip(gradients(model, loss), gradients(other, mean), strict=True):
        torch.testing.assert_close(one, another * 5 / 20, rtol=1e-12, atol=1e-15)
    nothing = torch.full_like(TARGET, -100)
    loss = model(**inputs(), target=nothing, num_items_in_batch=torch.tensor(20))
    assert loss.item() == 0
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(model, loss))
    model.eval()
    tokens = ending(Named()).eval()
    loss = tokens(**inputs(), target=TARGET, num_items_in_batch=20)["loss"]
    torch.testing.assert_close(loss, F.cross_entropy(Net().eval()(**inputs()), TARGET) * 5 / 20)


def test_the_plan_says_so() -> None:
    plan = ending(Net(), encoders=PATHS).plan()
    assert "The head `head` does not run: loss='cross_entropy' is computed of what it is given" in str(plan)
