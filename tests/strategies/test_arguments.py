"""Strategies take what `agm.AGM` takes: one batch, arguments beside the modalities, lists, logits of tokens."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm
from agm.strategies import LinearHead, Strategy, build, measure, options_of, strategies

from .networks import batch_of

WIDTHS = {"audio": 5, "image": 5}
ENCODERS = {"audio": "ear", "image": "eye"}


class Plain(nn.Module):
    """Two modalities, and how much of each sample to keep, which no encoder sees."""

    def __init__(self) -> None:
        super().__init__()
        self.ear = nn.Sequential(nn.Flatten(), nn.Linear(25, 5), nn.Tanh())
        self.eye = nn.Sequential(nn.Flatten(), nn.Linear(25, 5), nn.Tanh())
        self.out = nn.Linear(10, 4)

    def forward(self, audio: Tensor, image: Tensor, scale: Any = None) -> Tensor:
        scale = torch.as_tensor([1.0] * len(audio) if scale is None else scale).unsqueeze(1)
        return self.out(torch.cat([self.ear(audio), self.eye(image)], 1)) * scale


class Batched(Plain):
    """The same from one batch, and an output with something else in it."""

    def forward(self, batch: Any) -> Any:
        logits = super().forward(batch["views"][0], batch["views"][1]["pixels"], batch["scale"])
        return {"scores": logits, "names": ["a"]}


# Those that do not use the network's own fusion, or not in the first epoch.
WITHOUT_FUSION = ("mmcosine", "mla", "aug", "igm", "reconboost", "di-mml", "ensemble", "stacked")


def settings_of(name: str) -> dict[str, Any]:
    torch.manual_seed(1)
    shared = LinearHead(5, 4)
    settings: dict[str, Any] = {"encoders": ENCODERS}
    if name not in ("agm", "aug"):
        settings["heads"] = {m: shared if name == "mla" else LinearHead(5, 4) for m in WIDTHS}
    settings |= {"cggm": {"direction": 0.0}, "g2d": {"teacher_epochs": 2}}.get(name, {})
    return settings | ({"widths": WIDTHS, "num_classes": 4} if "widths" in options_of(name) else {})


def trained(name: str, network: nn.Module, given: Any, target: Tensor, **more: Any) -> Strategy:
    """After an epoch of two steps, and what comes before and after it."""
    strategy = build(name, network, **settings_of(name), **more)
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    numbers = (torch.arange(8),) if "index" in strategy.needs else ()
    splits = {"train": [(given, target, *numbers)], "validation": [(given, target)]}
    torch.manual_seed(2)
    strategy.begin_epoch(0, **splits)
    for _ in range(2):
        for outcome in strategy.steps(given, target):
            assert outcome.logits.shape == (8, 4)
            strategy.optimizer.step()
    strategy.end_epoch(**splits)
    return strategy


def assert_same(one: Strategy, other: Strategy) -> None:
    for (name, left), right in zip(one.network.named_parameters(), other.network.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("name", list(strategies))
def test_one_batch_is_as_its_parts(name: str) -> None:
    torch.manual_seed(0)
    inputs, target = batch_of()
    scale = torch.rand(8) + 0.5
    plain = Plain()
    batched = Batched()
    batched.load_state_dict(plain.state_dict())
    before = copy.deepcopy(plain.state_dict())
    expected = trained(name, plain, {**inputs, "scale": scale}, target)
    given = {"views": [inputs["audio"], {"pixels": inputs["image"]}], "scale": scale}
    paths = {"audio": "views.0", "image": ("views", 1, "pixels")}
    found = trained(name, batched, given, target, inputs=paths, output="scores")
    assert_same(found, expected)
    assert any(not torch.equal(value, before[key]) for key, value in plain.state_dict().items() if "1.weight" in key)
    if name not in WITHOUT_FUSION:
        without = Plain()
        without.load_state_dict(before)
        other = trained(name, without, inputs, target)
        pairs = zip(other.network.parameters(), plain.parameters(), strict=True)
        assert any(not torch.allclose(left, right, rtol=1e-4) for left, right in pairs), "scale was not used"


@pytest.mark.parametrize("name", ["joint", "agm", "ogm", "mlb", "mmpareto", "valuation"])
def test_a_list_with_a_value_a_sample(name: str) -> None:
    torch.manual_seed(0)
    inputs, target = batch_of()
    scale = torch.rand(8) + 0.5
    one, other = Plain(), Plain()
    other.load_state_dict(one.state_dict())
    expected = trained(name, one, {**inputs, "scale": scale}, target)
    assert_same(trained(name, other, {**inputs, "scale": scale.tolist()}, target), expected)


def test_statistics_and_measures_of_one_batch() -> None:
    inputs, target = batch_of()
    scale = torch.rand(8) + 0.5
    plain, batched = Plain(), Batched()
    batched.load_state_dict(plain.state_dict())
    one = build("ogm", plain, encoders=ENCODERS)
    paths = {"audio": "views.0", "image": "views.1.pixels"}
    other = build("ogm", batched, encoders=ENCODERS, inputs=paths, output="scores")
    given = {"views": (inputs["audio"], {"pixels": inputs["image"]}), "scale": scale}
    left, right = one.batch({**inputs, "scale": scale}, target), other.batch(given, target)
    expected = agm.masked_logits(plain.eval(), inputs, arguments={"scale": scale})
    for batch in (left, right):
        torch.testing.assert_close(batch.masked_logits, expected)
    torch.testing.assert_close(left.confidences, right.confidences)
    pairs = [measure(s.parts, [(g, target)]) for s, g in ((one, {**inputs, "scale": scale}), (other, given))]
    assert pairs[0] == pairs[1]


class Tagger(nn.Module):
    """Tags of tokens, from words and frames in step, with the classes in dimension 1."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.ear, self.eye, self.out, self.last = nn.Linear(6, 5), nn.Linear(3, 5), nn.Linear(10, 4), last

    def forward(self, audio: Tensor, image: Tensor) -> Tensor:
        logits = self.out(torch.cat([self.ear(audio).tanh(), self.eye(image).tanh()], -1))
        return logits if self.last else logits.movedim(-1, 1)


def tokens() -> tuple[dict[str, Tensor], Tensor]:
    draw = torch.Generator().manual_seed(3)
    inputs = {"audio": torch.randn(8, 7, 6, generator=draw), "image": torch.randn(8, 7, 3, generator=draw)}
    target = torch.randint(4, (8, 7), generator=draw)
    target[torch.rand(8, 7, generator=draw) < 0.3] = -100
    return inputs, target


class TokenHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)

    def forward(self, feature: Tensor) -> Tensor:
        return self.linear(feature).movedim(-1, 1)


DENSE = [name for name, kind in strategies.items() if kind.dense]


def test_which_are_dense() -> None:
    others = ("joint", "agm", "ogm", "ogm-ge", "mslr", "mses", "g-blending", "inforeg", "mmpareto", "balgrad")
    assert set(DENSE) == {*others, "multi-loss", "hybrid-loss", "mlb", "amgb", "dgl"}


@pytest.mark.parametrize("name", DENSE)
def test_tokens_are_rows(name: str) -> None:
    """As of a network that is given each token that has a tag as a sample of its own."""
    torch.manual_seed(0)
    dense = Tagger()
    flat = Tagger(last=True)
    flat.load_state_dict(dense.state_dict())
    inputs, target = tokens()
    known = target != -100
    heads = {m: TokenHead() for m in WIDTHS}
    plain = {m: LinearHead(5, 4) for m in WIDTHS}
    for m in WIDTHS:
        plain[m].load_state_dict(heads[m].state_dict())

    def run(network: nn.Module, given: Any, target: Tensor, **settings: Any) -> Strategy:
        more = {} if name == "agm" else {"heads": settings.pop("heads")}
        settings.pop("heads", None)
        strategy = build(name, network, encoders=ENCODERS, **settings, **more)
        splits = {"train": [(given, target)], "validation": [(given, target)]}
        strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
        torch.manual_seed(2)
        strategy.begin_epoch(0, **splits)
        for _ in range(2):
            torch.manual_seed(4)
            for outcome in strategy.steps(given, target):
                assert outcome.logits.shape[1] == 4
                strategy.optimizer.step()
        strategy.end_epoch(**splits)
        return strategy

    found = run(dense, inputs, target, class_dim=1, heads=heads)
    rows = {m: x[known] for m, x in inputs.items()}
    expected = run(flat, rows, target[known], heads=plain)
    assert_same(found, expected)
    for m in WIDTHS:
        for one, other in zip(heads[m].parameters(), plain[m].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    one, other = (measure(s.parts, [b]) for s, b in ((found, (inputs, target)), (expected, (rows, target[known]))))
    assert one.accuracies == pytest.approx(other.accuracies)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("name", ["pmr", "valuation", "bss", "mla"])
def test_others_say_that_they_decide_about_samples(name: str) -> None:
    strategy = build(name, Tagger(), **settings_of(name), class_dim=1)
    inputs, target = tokens()
    with pytest.raises(ValueError, match=r"one class index a sample, \(B,\), but got \(8, 7\).*Use one of AGM, AMGB"):
        list(strategy.steps(inputs, target))


def test_the_engine_gets_the_target_as_it_is() -> None:
    torch.manual_seed(0)
    network = Tagger()
    inputs, target = tokens()
    strategy = build("agm", copy.deepcopy(network), encoders=ENCODERS, class_dim=1, alpha=2.0)
    model = agm.AGM(copy.deepcopy(network), ("audio", "image"), encoders=ENCODERS, class_dim=1, alpha=2.0)
    F.cross_entropy(model(**inputs, target=target), target).backward()
    list(strategy.steps(inputs, target))
    for one, other in zip(strategy.network.parameters(), model.module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    assert torch.equal(strategy.module.modulator.state.values, model.modulator.state.values)


@pytest.mark.parametrize("name", ["joint", "agm", "ogm"])
def test_a_forward_with_a_target_of_its_own(name: str) -> None:
    class Shifted(Plain):
        def forward(self, audio: Tensor, image: Tensor, target: Any = None) -> Tensor:
            logits = super().forward(audio, image)
            return logits if target is None else logits + target

    torch.manual_seed(0)
    inputs, target = batch_of()
    one, other = Shifted(), Shifted()
    other.load_state_dict(one.state_dict())
    plain = trained(name, one, inputs, target)
    moved = trained(name, other, {**inputs, "target": torch.randn(8, 4)}, target)
    assert not torch.allclose(plain.network.out.weight, moved.network.out.weight)
