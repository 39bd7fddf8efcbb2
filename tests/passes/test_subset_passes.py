"""Passes of one subset each, behind encoders that are named by path and of which more is asked than to run."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .attending_networks import (
    MET,
    NAMES,
    OPTIONS,
    ROWS,
    SHARED,
    TARGET,
    Encoder,
    Methods,
    Network,
    Tower,
    TwoTowers,
    batch,
)


class SomeNamed(Network):
    @property
    def paths(self) -> dict[str, str]:
        return {"visual": "nets.visual"}


class Centred(Network):
    """Samples meet before the encoders, and nowhere else."""

    def given(self, x: Tensor) -> Tensor:
        return x - x.mean(0) + 1

    def fused(self, x: Tensor) -> Tensor:
        return x


class Written(Network):
    """Writes to its features, which serve several subsets."""

    class encoder(Encoder):
        def mixed(self, x: Tensor) -> Tensor:
            return x + 1

    def features(self, **inputs: Tensor) -> list[Tensor]:
        found = super().features(**inputs)
        for one in found:
            one.mul_(2)
        return found


class Watched(Network):
    """Hooks on features, that want a gradient of them."""

    def features(self, **inputs: Tensor) -> list[Tensor]:
        found = super().features(**inputs)
        for one in found:
            one.register_hook(lambda gradient: gradient)
        return found


class Pairs(Network):
    """Encoders that return more than features."""

    class encoder(Encoder):
        def forward(self, x: Tensor) -> Any:
            return {"x": super().forward(x), "scale": torch.tensor(2.0), "name": "features"}

    def features(self, **inputs: Tensor) -> list[Tensor]:
        found = [self.nets[name](x) for name, x in inputs.items()]
        return [one["x"] * one["scale"] for one in found]


class Attending(Network):
    """Samples meet inside the encoders, and nowhere else."""

    class encoder(Encoder):
        def mixed(self, x: Tensor) -> Tensor:
            return x + torch.softmax(x @ x.T, -1) @ x.cumsum(0)

    def fused(self, x: Tensor) -> Tensor:
        return x


class Normed(TwoTowers):
    """Of which each subset has a pass of its own from the first step on, by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(24, track_running_stats=False).double()

    def fused(self, x: Tensor) -> Tensor:
        return self.norm(x)


KINDS = [Network, Methods, Tower, TwoTowers, SomeNamed, Centred, Written, Watched, Pairs, Attending, Normed]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_asked_of_encoders_holds_in_passes_of_one_subset(kind: type[Network], options: dict[str, Any]) -> None:
    network = kind()
    model = agm.AGM(network, NAMES, alpha=2.0, encoders=network.paths, **options)
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)
    for _ in range(3):
        model(**batch(), target=TARGET)
    assert MET in str(model.plan())
    result = agm.verify(model, batch(), TARGET)
    assert result.ok, str(result)


@pytest.mark.parametrize("subsets", [None, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_plan_counts_their_rows(options: dict[str, Any], subsets: int | None) -> None:
    network = Network()
    model = agm.AGM(network, NAMES, encoders=network.paths, subsets=subsets, **options)
    model._passes.record.looks = 0  # at absent rows that amplify
    model(**batch(), target=TARGET)
    for _ in range(2):
        ROWS.clear()
        model(**batch(), target=TARGET)
        for name in NAMES:
            assert sum(ROWS[name]) == model.plan().count(f"encoder `{name}`", 6)


def test_one_pass_is_refused_where_it_was_asked_for() -> None:
    network = Network().eval()
    model = agm.AGM(network, NAMES, encoders=network.paths, passes="one").train()
    with pytest.raises(ValueError, match=r"`passes` to be 'auto' or 'two'.*rows of a batch have met"):
        model(**batch(), target=TARGET)


@pytest.mark.parametrize("mixes", [True, False])
def test_features_that_are_kept_are_no_other_ones(mixes: bool) -> None:
    """Between two refreshes absent features are those of older weights, which is no sign that rows have met."""

    class Later(Network):
        late = False

        def fused(self, x: Tensor) -> Tensor:
            if not self.late:
                return x
            return x - x.mean(0) if mixes else torch.tanh(x)

    network = Later()
    model = agm.AGM(network, NAMES, encoders=network.paths, masked="shared", absent_gradient=False, absent_refresh=3)
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for network.late in (False, False, True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**batch(), target=TARGET), TARGET).backward()
        optimizer.step()
    assert (MET in str(model.plan())) == mixes


@pytest.mark.parametrize("kind", [Network, Methods, TwoTowers, Written, Pairs, Normed])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_samples_that_lack_a_modality(kind: type[Network], gradient: bool, early: bool) -> None:
    """Their features of it are those of an absent one, in eval mode, in every subset."""
    present = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool)
    network = kind()
    network.train()
    for net in network.nets.values():
        net[2].p = 0.0
    options: dict[str, Any] = {"encoders": network.paths, "masked": "shared", "absent_gradient": gradient}
    passes = agm._passes.masked_passes.MaskedPasses(
        network, agm._passes.options.MaskedOptions(modalities=NAMES, **options)
    )
    if not early:  # rows have met before any sample lacked anything
        passes.stacked(passes.binding.split((), batch()))
        assert passes.record.rows_meet
    for _ in range(2):
        found = passes.stacked(passes.binding.split((), batch()), present)
        assert passes.record.rows_meet
        expected = []
        for subset in range(1, 7):
            seen = present & torch.tensor([bool(subset >> bit & 1) for bit in range(3)])
            expected.append(lacking(network, present, seen))
        torch.testing.assert_close(found[:-1], torch.stack(expected), rtol=1e-10, atol=1e-12)


def lacking(network: Network, present: Tensor, seen: Tensor) -> Tensor:
    """Logits of one subset: features of the joint pass where a sample has what it may show, else absent ones."""
    inputs = {name: x * present[:, bit, None] for bit, (name, x) in enumerate(batch().items())}
    outputs: dict[int, list[Any]] = {}
    originals = {net: net.forward for net in network.nets.values()}
    mode: list[Any] = ["note", None]

    def instead(net: Any) -> Any:
        def forward(x: Tensor) -> Any:
            if mode[0] == "note":
                net.eval() if mode[1] else net.train()
                before = {name: buffer.clone() for name, buffer in net.named_buffers()}
                found = originals[net](x)
                if not mode[1]:
                    for name, buffer in net.named_buffers():
                        buffer.copy_(before[name])
                outputs[mode[1]].append(found["x"].clone() if isinstance(found, dict) else found.clone())
                return found
            joint, absent, bit = outputs[0].pop(0), outputs[1].pop(0), mode[2].pop(0)
            x = torch.where(seen[:, bit, None], joint, absent)
            return {"x": x, "scale": torch.tensor(2.0)} if isinstance(network, Pairs) else x

        return forward

    order = [1, 0, 2] if isinstance(network, TwoTowers) else [0, 1, 2]
    with torch.no_grad():
        for net in network.nets.values():
            net.forward = instead(net)
        try:
            for absent in (0, 1):
                outputs[absent], mode[1] = [], absent
                zeros = {name: 0 * x for name, x in inputs.items()}
                network(**(zeros if absent else inputs))
            mode[:] = ["answer", None, order]
            return network(**inputs)
        finally:
            for net in network.nets.values():
                del net.forward
                net.train()


class Through(Network):
    """Encoders that return what they are given, to which forward then writes."""

    class encoder(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            return x

    def features(self, **inputs: Tensor) -> list[Tensor]:
        found = []
        for name, x in inputs.items():
            x = x * 1.5
            found.append(nn.functional.pad(self.nets[name](x).mul_(2) + x, (0, 3)))
        return found


class ThroughApart(Through):
    def fused(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("options", [SHARED, {}], ids=str)
@pytest.mark.parametrize("kind", [Through, ThroughApart])
def test_encoders_that_return_memory_that_they_are_given(kind: type[Network], options: dict[str, Any]) -> None:
    network = kind()
    model = agm.AGM(network, NAMES, alpha=2.0, encoders=network.paths, **options)
    for _ in range(2):
        model(**batch(), target=TARGET)
        assert (MET in str(model.plan())) == (kind is Through)
        result = agm.verify(model, batch(), TARGET)
        assert result.ok, str(result)


@pytest.mark.parametrize("options", [OPTIONS[1], {}], ids=str)
def test_a_compiled_step_has_passes_of_one_subset_too(options: dict[str, Any]) -> None:
    network, other = Network(), Network()
    for one in (network, other):
        for net in one.nets.values():
            net[2].p = 0.0
    model, compiled = (agm.AGM(one, NAMES, encoders=one.paths, alpha=2.0, **options) for one in (network, other))
    for one in (model, compiled):
        one(**batch(), target=TARGET)
    step = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    for one in (model, step):
        nn.functional.cross_entropy(one(**batch(), target=TARGET), TARGET).backward()
    for own, expected in zip(compiled.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-10, atol=1e-12)
