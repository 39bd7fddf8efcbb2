"""Norms exchange gradients where the joint pass comes to them, and not where masked rows alone do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import agm

from .exchanging import logged
from .test_exchanges import NETWORKS, Encoder, Parted, Whole, build, step


class Dropping(Parted):
    """Leaves a modality out of the joint pass in some steps, as dropout of modalities does, in all processes."""

    drops = False

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        if self.training and self.drops:
            features = {**features, "audio": torch.zeros_like(features["audio"])}
        return super().fuse(features)


class DroppingInside(Whole):
    def __init__(self, encoder: type[nn.Module] = Encoder) -> None:
        super().__init__(encoder)
        self.inner = Dropping(encoder)


@pytest.mark.parametrize("kind", [*NETWORKS])
def test_features_that_the_joint_pass_leaves_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked rows alone would have the norms exchange gradients there, which they do not in two passes."""
    monkeypatch.setitem(NETWORKS, "parted", (Dropping, {}))
    monkeypatch.setitem(NETWORKS, "paths", (DroppingInside, NETWORKS["paths"][1]))
    model, single = build(kind, "exact", "auto"), build(kind, "exact", "two")
    other = build(kind, "exact", "two", plain=False)
    for number in range(4):
        for one in (model, single, other):
            getattr(one.module, "inner", one.module).drops = number == 1
        with logged() as expected:
            step(other, number)
        with logged() as log:
            found = step(model, number)
            assert ("leaves features of it out" in str(model.plan())) == (number == 1)
        assert log == expected
        assert len(log) == (12 if number == 1 else 16)
        torch.testing.assert_close(found, step(single, number), rtol=1e-10, atol=1e-11)
    getattr(model.module, "inner", model.module).drops = True
    one = agm.AGM(model.module, model.modalities, passes="one", process_group=False, **NETWORKS[kind][1])
    with logged(), pytest.raises(ValueError, match="leaves features of it out"):
        step(one, 0)


class Several(Encoder):
    """Returns what nobody takes beside its features, and what only the masked passes take."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        hidden = self.norm8(self.first(x))
        return {"of": self.norm6(self.skip(x)), "hidden": hidden, "more": hidden.tanh()}


class Choosing(Parted):
    masked = ""

    def fuse(self, features: dict[str, Any]) -> Tensor:
        taken = {name: value["of"] for name, value in features.items()}
        if self.masked and not self.training:
            taken = {name: taken[name] + features[name][self.masked].mean(1, True) for name in taken}
        return super().fuse(taken)


class Along(Several):
    """As that, but no norm makes what is left out alone."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        hidden = self.norm8(self.first(x))
        return {"of": self.norm6(self.skip(x) + hidden[:, :6]), "hidden": hidden, "more": hidden.tanh()}


@pytest.mark.parametrize("masked", ["", "hidden"])
@pytest.mark.parametrize("encoder", [Several, Along])
def test_features_of_which_some_are_left_out(
    masked: str, encoder: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "several", (Choosing, {}))
    models = [build("several", "exact", *one) for one in (("auto", encoder), ("two", encoder), ("two", encoder, False))]
    for one in models:
        one.module.masked = masked
    with logged() as log:
        found = step(models[0], 0)
        assert ("leaves features of it out" in str(models[0].plan())) == (encoder is Several)
    with logged() as expected:
        step(models[2], 0)
    assert log == expected
    torch.testing.assert_close(found, step(models[1], 0), rtol=1e-10, atol=1e-11)
