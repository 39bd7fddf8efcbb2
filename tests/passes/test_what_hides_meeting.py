"""What could hide from a look that samples meet, or be taken for it."""

import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm
from agm._inputs.closeness import close_logits

from .meeting_networks import MET, NAMES, OPTIONS, TARGET, Centring, Offering, Pairs, batch


@pytest.mark.parametrize("kind", [Pairs, Offering], ids=["whole", "fuse"])
def test_a_smaller_batch_has_whole_subsets_in_a_pass_too(kind: Any) -> None:
    """Rows that fill one pass each show nothing of subsets that share one."""
    network = Centring() if kind is Pairs else Offering(Centring)
    model = agm.AGM(network, NAMES, alpha=2.0, max_rows=6)
    for size in (6, 6, 4, 6, 3, 2):
        given = {name: x[:size] for name, x in batch().items()}
        model(**given, target=TARGET[:size])
        result = agm.verify(model, given, TARGET[:size])
        assert result.ok, str(result)


@pytest.mark.parametrize("kind", [Pairs, Offering], ids=["whole", "fuse"])
def test_what_does_not_fit_is_warned_of_and_what_does_is_right(kind: Any) -> None:
    network = Centring() if kind is Pairs else Offering(Centring)
    model = agm.AGM(network, NAMES, alpha=2.0, max_rows=4)
    warns = pytest.warns(UserWarning, match="max_rows=4 fewer go through at a time than the 6 samples")
    for size in (6, 2, 6, 4, 6):
        given = {name: x[:size] for name, x in batch().items()}
        with warns if size > 4 else nullcontext():
            model(**given, target=TARGET[:size])
        if size <= 4:
            result = agm.verify(model, given, TARGET[:size])
            assert result.ok, str(result)


class RuledOut(Centring):
    """A class that is none, by a number that is far larger than the others."""

    value = -1e9

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return super().forward(audio, visual).masked_fill(torch.tensor([False, False, True]), self.value)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("value", [-1e4, -1e9, torch.finfo(torch.float32).min, float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_is_ruled_out_hides_nothing(dtype: torch.dtype, value: float, options: dict[str, Any]) -> None:
    network = RuledOut().to(dtype)
    network.value = value
    model = agm.AGM(network, NAMES, **options)
    model(**{name: x.to(dtype) for name, x in batch().items()}, target=TARGET % 2)
    assert MET in str(model.plan())


class Four(Pairs):
    """Statistics over the samples that have two of four modalities."""

    def __init__(self, pair: tuple[int, int]) -> None:
        super().__init__()
        self.pair = pair
        self.nets = nn.ModuleList(nn.Linear(5, 4) for _ in range(4)).double()

    def forward(self, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        inputs = (a, b, c, d)
        hidden = torch.cat([net(x) for net, x in zip(self.nets, inputs, strict=True)], 1)
        both = [(inputs[index] != 0).any(1, keepdim=True) for index in self.pair]
        weight = (both[0] & both[1]).double()
        return self.head(hidden - weight * (hidden * weight).sum(0) / weight.sum().clamp(min=1))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("pair", [(0, 1), (0, 3), (1, 2), (2, 3)])
def test_what_two_modalities_decide_on_is_seen(pair: tuple[int, int], encoded: bool) -> None:
    names = ("a", "b", "c", "d")
    paths = {name: f"nets.{index}" for index, name in enumerate(names)} if encoded else None
    model = agm.AGM(Four(pair), names, encoders=paths)
    generator = torch.Generator().manual_seed(2)
    model(**{n: torch.randn(6, 5, generator=generator, dtype=torch.float64) for n in names}, target=TARGET)
    assert MET in str(model.plan())


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("first", ["head of zeros", "batch of zeros"])
def test_logits_that_are_the_same_for_all_samples_show_nothing(first: str, options: dict[str, Any]) -> None:
    network = Centring()
    model = agm.AGM(network, NAMES, **options)
    if first == "head of zeros":
        nn.init.zeros_(network.head.weight)
    model(**batch(0.0 if first == "batch of zeros" else 1.0), target=TARGET)
    assert MET not in str(model.plan())
    nn.init.normal_(network.head.weight)
    model(**batch(), target=TARGET)
    assert MET in str(model.plan())


class Capacity(Pairs):
    """Centres batches of another size than the first alone, by the same functions."""

    def mixed(self, x: Tensor) -> Tensor:
        return x - x.mean(0) * float(len(x) % 6 > 0)


def test_another_size_of_batches_is_looked_at() -> None:
    model = agm.AGM(Capacity(), NAMES)
    model(**batch(), target=TARGET)
    assert MET not in str(model.plan())
    model(**{name: x[:4] for name, x in batch().items()}, target=TARGET[:4])
    assert MET in str(model.plan())


class Noisy(Pairs):
    """Draws in eval mode too, of which nothing can be told."""

    def mixed(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.parametrize("options", [*OPTIONS, {"max_rows": 4}], ids=str)
def test_random_numbers_are_no_meeting(options: dict[str, Any]) -> None:
    model = agm.AGM(Noisy(), NAMES, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(11):
            model(**batch(), target=TARGET)
    assert MET not in str(model.plan())


class RuledOutInSamples(RuledOut):
    """Of each sample another class, by what is put in its place or added to it."""

    adds = False

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits = Centring.forward(self, audio, visual)
        out = torch.arange(3) == (torch.arange(len(logits)) % 3)[:, None]
        return logits + out * self.value if self.adds else logits.masked_fill(out, self.value)


class Tagging(RuledOut):
    """Logits of six tokens, most of which are padding."""

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits = Centring.forward(self, audio, visual).unsqueeze(1) * torch.arange(1, 7)[:, None]
        return logits.masked_fill(torch.arange(6)[:, None] > 1, self.value)


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("value", [-1e4, -1e9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_class_that_is_ruled_out_in_some_samples_hides_nothing(dtype: torch.dtype, value: float, adds: bool) -> None:
    network = RuledOutInSamples().to(dtype)
    network.value, network.adds = value, adds
    model = agm.AGM(network, NAMES)
    model(**{name: x.to(dtype) for name, x in batch().items()}, target=TARGET)
    assert MET in str(model.plan())


@pytest.mark.parametrize("value", [-1e4, -1e9])
def test_padded_tokens_hide_nothing(value: float) -> None:
    network = Tagging()
    network.value = value
    model = agm.AGM(network, NAMES)
    model(**batch(), target=TARGET[:, None].expand(6, 6))
    assert MET in str(model.plan())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_of_one_class_is_that_of_all(dtype: torch.dtype) -> None:
    """A sum that comes to little is rounded as its summands are."""
    logits = torch.tensor([[0.88, 0.47, 0.0088], [-0.5, 0.3, -0.007]], dtype=dtype)
    ulps = 2 * torch.finfo(dtype).eps * torch.tensor([[0.5, 0.5, 0.5], [-0.5, 0.5, -0.5]], dtype=dtype)
    assert close_logits(logits, logits + ulps)
    assert not close_logits(logits, logits + (0.1 if dtype != torch.float32 else 0.003))
    assert close_logits(logits, logits.clone())
    assert not close_logits(logits, torch.full_like(logits, torch.nan))
    infinite = logits.masked_fill(torch.tensor([False, True, False]), -torch.inf)
    assert close_logits(infinite, infinite + ulps)
    assert not close_logits(infinite, logits)
