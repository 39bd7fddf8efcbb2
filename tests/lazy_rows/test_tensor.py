"""Deferred rows, function by function, against the rows written out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm._lazy_rows.tensor import CannotDefer, Deferred, Rows, written

from .deferring import B, Made, check, features, rows


def in_place_relu(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    F.relu(a, inplace=True)
    return torch.cat([a, b, c], 1)


def add_in_place(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    hidden = F.linear(torch.cat([a, b, c], 1), Made.wide)
    kept = hidden * 2
    hidden.add_(1.0)
    hidden[:, 0] = 0.0
    return hidden + kept


# What a fusion does with features (rows, 6) -> whether it stays deferred, and is a sum in the end.
FLAT: dict[str, tuple[Callable[..., Tensor], str]] = {
    "concatenation": (lambda a, b, c: torch.cat([a, b, c], 1), "deferred"),
    "another order": (lambda a, b, c: torch.cat([c, a, b], -1), "deferred"),
    "nested concatenation": (lambda a, b, c: torch.cat([torch.cat([a, b], 1), c], 1), "deferred"),
    "linear": (lambda a, b, c: F.linear(torch.cat([a, b, c], 1), Made.wide, Made.bias), "sum"),
    "two linear": (
        lambda a, b, c: F.linear(F.linear(torch.cat([a, b, c], 1), Made.wide, Made.bias), Made.own[:, :5], Made.bias),
        "sum",
    ),
    "matrix product": (lambda a, b, c: torch.cat([a, b, c], 1) @ Made.wide.T + Made.bias, "sum"),
    "sum": (lambda a, b, c: sum([a, b, c]), "sum"),
    "mean": (lambda a, b, c: (a + b + c) / 3, "sum"),
    "weighted": (lambda a, b, c: 2 * a + Made.row * b + c * 0.5, "sum"),
    "heads": (lambda a, b, c: F.linear(a, Made.own, Made.bias) + F.linear(b, Made.own) + c[:, :5].tanh(), "sum"),
    "one modality": (lambda a, b, c: F.linear(b, Made.own), "sum"),
    "two modalities": (lambda a, b, c: F.linear(a, Made.own) + F.linear(c, Made.own), "sum"),
    "one twice": (lambda a, b, c: a + a + b, "sum"),
    "normalised": (lambda a, b, c: F.linear(Made.norm(torch.cat([a, b, c], 1)), Made.wide), "sum"),
    "activated": (lambda a, b, c: F.linear(F.gelu(torch.cat([a, b, c], 1)), Made.wide), "sum"),
    "dropped out": (lambda a, b, c: F.linear(F.dropout(torch.cat([a, b, c], 1), 0.5, False), Made.wide), "sum"),
    "each normalised": (lambda a, b, c: Made.small(a) + Made.layer(b) + F.softmax(c, -1), "sum"),
    "in place": (in_place_relu, "deferred"),
    "bilinear": (lambda a, b, c: a * b + c, "written"),
    "hidden layer": (lambda a, b, c: F.relu(F.linear(torch.cat([a, b, c], 1), Made.wide)), "written"),
    "written to": (add_in_place, "written"),
    "stacked": (lambda a, b, c: torch.stack([a, b, c], 1).amax(1), "written"),
    "attention": (lambda a, b, c: Made.attention(*[torch.stack([a, b, c], 1)] * 3)[0].flatten(1), "written"),
    "by value": (lambda a, b, c: (a if bool(a.sum() > 0) else b) * c, "written"),
    "two branches": (lambda a, b, c: torch.sigmoid(F.linear(torch.cat([a, b, c], 1), Made.wide)) * c[:, :5], "written"),
    "named input": (lambda a, b, c: torch.tanh(input=torch.cat([a, b, c], 1)), "written"),
    "a row of weights": (lambda a, b, c: a * F.linear(torch.cat([b, c], 1), Made.wide[0, :12]).unsqueeze(1), "written"),
    "position of a row": (lambda a, b, c: a + torch.arange(len(a)).double().unsqueeze(1), "written"),
}


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("which", [rows(), rows(range(3, 17)), rows(subsets=(1, 4, 6, 3))], ids=["all", "part", "some"])
@pytest.mark.parametrize("name", FLAT)
def test_what_a_fusion_does(name: str, which: Rows, per_sample: bool) -> None:
    function, form = FLAT[name]
    result = check(function, features(6, per_sample=per_sample), which)
    if form == "written":
        assert type(result) is Tensor
    else:
        assert (result.dim is None) == (form == "sum")


# What a network does with images or sequences around its encoders; all of it stays with one modality.
SHAPED: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...], int]] = {
    "frames into rows": (lambda x: x.permute(0, 2, 1, 3).reshape(-1, 4, 2), (4, 3, 2), 1),
    "frames into rows, view": (lambda x: x.view(len(x) * 3, 4), (3, 4), 1),
    "flatten": (lambda x: x.flatten(0, 1), (3, 4), 1),
    "rows into frames": (lambda x: x.view(-1, 3, 4).mean(1), (4,), 3),
    "rows into frames, unflatten": (lambda x: x.unflatten(0, (-1, 3)).amax(dim=1), (4,), 3),
    "flatten all": (lambda x: x.flatten(), (3, 4), 1),
    "flatten features": (lambda x: x.flatten(1), (3, 4), 1),
    "view features": (lambda x: x.view(x.size(0), -1), (3, 4), 1),
    "first token": (lambda x: x[:, 0], (3, 4), 1),
    "transpose": (lambda x: x.transpose(1, 2).unsqueeze(1), (3, 4), 1),
    "pooling": (lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), (3, 4, 4), 1),
    "convolution": (lambda x: Made.conv(x), (6, 5), 1),
    "sum over time": (lambda x: x.sum(1, keepdim=True) * 2 - 1 if False else x.sum(dim=1) * 2, (3, 4), 1),
}


@pytest.mark.parametrize("name", SHAPED)
def test_shapes(name: str) -> None:
    function, shape, fold = SHAPED[name]
    given = features(*shape, fold=fold)
    form = check(lambda a, b, c: function(b), given, rows(), fold)
    assert list(form.terms) == [1]
    check(lambda a, b, c: function(b), given, rows(range(2, 9)), fold)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: x.mean(), (3, 4)),
        (lambda x: x.mean(0), (3, 4)),
        (lambda x: x.sum(dim=(0, 1)), (3, 4)),
        (lambda x: x.amax(dim=()), (3, 4)),
        (lambda x: x.transpose(0, 1), (3, 4)),
        (lambda x: x.view(3, -1), (3, 4)),
        (lambda x: x.flip(0), (3, 4)),
        (lambda x: x[::2], (3, 4)),
        (lambda x: x[0], (3, 4)),
        (lambda x: x[:, [0, 2]], (3, 4)),
        (lambda x: x.cumsum(0), (4,)),
        (lambda x: F.softmax(x, 0), (4,)),
        (lambda x: torch.cat([x, x]), (4,)),
        (lambda x: torch.cat([x, x], 1), (4,)),
        (lambda x: F.layer_norm(x, x.shape), (4,)),
    ],
)
def test_what_goes_across_rows_is_written_out(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    result = check(lambda a, b, c: function(c), features(*shape), rows())
    assert type(result) is Tensor


def test_a_sum_of_bools_is_no_sum() -> None:
    """True and True is True, of which twice is 2; and a float beside an integer makes it one."""
    few = [one.detach() > -0.5 for one in features(6)[:2]]
    one, other = (Deferred.of(rows(), m, x) for m, x in enumerate(few))
    expected = [rows().expanded(m, x) for m, x in enumerate(few)]
    assert torch.equal(written((one + other) * 2), (expected[0] + expected[1]) * 2)
    count = Deferred.of(rows(), 0, few[0].long())
    assert written(count + 0.0).dtype == torch.float32


def test_batch_norm_in_training_mode_sees_all_rows() -> None:
    norm = nn.BatchNorm1d(6, track_running_stats=False).double()
    assert type(check(lambda a, b, c: norm(a), features(6), rows())) is Tensor


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * 2


@pytest.mark.parametrize("has_frame", [True, False])
def test_what_goes_past_torch_functions_raises(has_frame: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not has_frame:  # torch 2.14 and newer
        monkeypatch.setattr("agm._lazy_rows.tensor._APPLY", None)
    deferred = Deferred.of(rows(), 0, features(6)[0])
    with pytest.raises(CannotDefer):
        Doubled.apply(deferred)
    with torch.no_grad():  # as a network encodes with frozen weights
        few = (deferred * 2).alone(0)
    assert few is not None
    assert not few[0].requires_grad


@pytest.mark.parametrize("method", ["register_hook", "retain_grad"])
def test_gradients_of_rows_are_those_of_rows(method: str) -> None:
    deferred = Deferred.of(rows(), 0, features(6)[0])
    with pytest.raises(CannotDefer, match="gradients of all rows"):
        getattr(deferred, method)(*[lambda gradient: gradient] * (method == "register_hook"))


def test_rows_first_written_out_without_gradients_keep_theirs() -> None:
    deferred = Deferred.of(rows(), 0, features(6)[0])
    with torch.no_grad():
        mean = deferred.mean(0)
    assert not mean.requires_grad
    assert (deferred * 2).mean().requires_grad
    with torch.no_grad():
        constant = Deferred.of(rows(), 0, features(6)[0])
    assert not (constant * 2).mean().requires_grad


def test_versions_are_counted_in_inference_mode() -> None:
    with torch.inference_mode():
        deferred = Deferred.of(rows(), 0, torch.randn(B + 1, 6))
        view = deferred.view(-1, 2, 3)
        view.add_(1.0)
        with pytest.raises(CannotDefer, match="shares its memory"):
            written(deferred)


class Network(nn.Module):
    """Encoders and a fusion given as a function, named by path or offered."""

    def __init__(self, fusion: Callable[..., Tensor], offers: bool) -> None:
        super().__init__()
        self.nets = nn.ModuleDict({name: nn.Linear(4, 6) for name in "abc"})
        self.fusion = fusion
        if offers:
            self.encoders, self.fuse = self.nets, self._fuse

    def _fuse(self, features: dict[str, Tensor]) -> Tensor:
        return self.fusion(*features.values())

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        given = {"a": a, "b": b, "c": c}
        fuse = getattr(self, "fuse", self._fuse)
        return fuse({name: net(given[name]) for name, net in self.nets.items()})


@pytest.mark.parametrize("offers", [True, False])
@pytest.mark.parametrize("name", [name for name, (_, form) in FLAT.items() if name != "by value"])
def test_in_a_model(name: str, offers: bool) -> None:
    """A training step equals separate passes, and what becomes of the rows is found."""
    function, form = FLAT[name]
    if name == "position of a row":
        pytest.skip("depends on the place of a sample in its batch, which no masked pass keeps")
    torch.manual_seed(0)
    network = Network(function, offers).double()
    paths = None if offers else {one: f"nets.{one}" for one in "abc"}
    model = agm.AGM(network, tuple("abc"), encoders=paths, alpha=1.0)
    inputs = {one: torch.randn(5, 4, dtype=torch.float64) for one in "abc"}
    target = torch.randint(5, (5,))
    for _ in range(2):
        result = agm.verify(model, inputs, target)
        assert result.ok, result
    found = model._passes._parted.record.deferral  # type: ignore[union-attr]
    assert found is not None
    assert (found.how == "sum") == (form == "sum")


@pytest.mark.parametrize("offers", [True, False])
def test_a_fusion_past_torch_functions_gets_its_rows(offers: bool) -> None:
    network = Network(lambda a, b, c: Doubled.apply(a) + b + c, offers).double()
    paths = None if offers else {one: f"nets.{one}" for one in "abc"}
    model = agm.AGM(network, tuple("abc"), encoders=paths)
    inputs = {one: torch.randn(5, 4, dtype=torch.float64) for one in "abc"}
    target = torch.randint(5, (5,))
    assert agm.verify(model, inputs, target).ok
    assert "written out at once" in str(model.plan())


def test_sixteen_modalities_by_path_and_no_subset() -> None:
    """2**16 subsets are never written out: neither inputs nor features nor logits."""
    names = tuple(f"m{i}" for i in range(16))

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for name in names})
            self.head = nn.Linear(64, 5)

        def forward(self, **given: Tensor) -> Tensor:
            return self.head(torch.cat([self.nets[name](given[name]) for name in names], 1))

    torch.manual_seed(0)
    network = Many().double()
    model = agm.AGM(network, names, encoders={name: f"nets.{name}" for name in names}, alpha=1.0)
    inputs = {name: torch.randn(6, 3, dtype=torch.float64) for name in names}
    target = torch.randint(5, (6,))
    model(**inputs, target=target)
    largest = 0
    forward = F.linear

    def counted(x: Tensor, *others: Any) -> Tensor:
        nonlocal largest
        if type(x) is Deferred:  # what it stands for, not what it holds
            return forward(x, *others)
        largest = max(largest, x.shape[0])
        return forward(x, *others)

    state = agm.ModulationState(16)
    state.load_state_dict(model.modulator.state.state_dict())
    network.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agm._lazy_rows.handlers.F.linear", counted)
        logits = model(**inputs, target=target)
    assert largest < 16  # a row for each of the 6 samples, and an absent one
    F.cross_entropy(logits, target).backward()
    gradient = network.head.weight.grad
    # The same by the function for sums, from features by hand.
    copied = Many().double()
    copied.load_state_dict(network.state_dict())
    copied.eval()
    weights = copied.head.weight.split([4] * 16, 1)
    present = [F.linear(copied.nets[name](inputs[name]), w) for name, w in zip(names, weights, strict=True)]
    absent = [
        F.linear(copied.nets[name](torch.zeros(1, 3).double()), w) for name, w in zip(names, weights, strict=True)
    ]
    expected = agm.fused_modulate_additive(
        present, absent, target, state, joint_logits=logits.detach().requires_grad_(), alpha=1.0
    )
    torch.testing.assert_close(model.modulator.state.coefficients, state.coefficients)
    F.cross_entropy(expected, target).backward()
    assert gradient is not None
    assert gradient.isfinite().all()
