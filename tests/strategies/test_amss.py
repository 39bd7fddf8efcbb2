import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import AMSS, AMSSPlus, Draws

from .networks import batch_of, gradients, late, take
from .traces import Recorded, Trace, close, replay

ENCODERS = {"audio": "audio_net", "video": "video_net"}


class Recordings(Draws):
    """The recorded filters first, and a check of the weights they were drawn by."""

    def __init__(self, trace):
        self.left = [
            (trace[f"importance/{name}"][step], trace[f"kept/{name}"][step])
            for step in range(trace.steps)
            for name in trace.settings["masked"]
        ]

    def order_by_weight(self, weights):
        importance, kept = self.left.pop(0)
        close(weights, importance, "importance")
        return kept.long().argsort(descending=True)


class Images(Trace):
    def inputs(self, step):
        return {m: x.unsqueeze(1) if x.dim() == 3 else x for m, x in super().inputs(step).items()}


def convolved(encoder, x):
    return encoder.layer2.conv1(torch.tanh(encoder.layer1.conv1(x))).mean((2, 3))


def recorded(name, kind, **settings):
    trace = Images(name)
    if trace.settings["fusion"] == "concat":

        def alone(net, h):
            head = net.fusion_module.fc_out
            blocks = zip(h, head.weight.split(6, 1), strict=True)
            return {m: h[m] @ block.T + head.bias / 2 for m, block in blocks}
    else:

        def alone(net, h):
            return {"audio": net.fusion_module.fc_x(h["audio"]), "video": net.fusion_module.fc_y(h["video"])}

    network = Recorded(trace, ENCODERS, lambda net, h: sum(alone(net, h).values()), alone)
    for path in ENCODERS.values():
        encoder = network.get_submodule(path)
        encoder.forward = functools.partial(convolved, encoder)
    strategy = kind(network, encoders=ENCODERS, temperature=trace.settings["temperature"], **settings)
    strategy.draws = Recordings(trace)
    return trace, strategy


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("amss_concat_a", AMSS, {"released": True, "convolutions_only": True}),
        ("amss_topk_a", AMSS, {"released": True, "convolutions_only": True, "choice": "top"}),
        ("amssplus_concat_a", AMSSPlus, {"released": True, "convolutions_only": True, "weighting": "inverse"}),
        ("amss_concat_a_paper", AMSS, {}),
    ],
)
def test_replays_the_recorded_steps(name, kind, settings):
    trace, strategy = recorded(name, kind, **settings)
    for step, outcome in replay(trace, strategy, trace.sgd(strategy.parameters())):
        close(outcome.loss, trace["losses"][step, 0], "joint loss")
        # The class entropy is float32 in the released code.
        rtol = 2e-7 if strategy.released else 1e-9
        close(strategy.statistics()["coefficient"], trace["coefficient"][step], "coefficients", rtol)
        close(
            strategy.statistics()["ratio"],
            trace["ratio" if "ratio" in trace else "information_rate"][step],
            "ratios",
            rtol,
        )
        if "significance" in trace:
            close(strategy.significance, trace["significance"][step], "significance")
    assert settings.get("choice") == "top" or not strategy.draws.left


class Given(nn.Module):
    """Encoders that give their inputs, and heads that give what was recorded."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Linear(6, 6) for m in ("rgb", "flow", "depth")}).double()
        for encoder in self.encoders.values():
            nn.init.eye_(encoder.weight)
            nn.init.zeros_(encoder.bias)
        self.logits = {}

    def unimodal_logits(self, features):
        return self.logits

    def forward(self, **inputs):
        features = {m: self.encoders[m](x) for m, x in inputs.items()}
        return sum(features.values())[:, :4] + 0.0


def test_released_coefficients_of_three_modalities():
    trace = Trace("amss_three_a")
    network = Given()
    strategy = AMSS(network, encoders={m: f"encoders.{m}" for m in trace.modalities}, released=True)
    seen = set()
    for step in range(trace.settings["steps"]):
        network.logits = dict(zip(trace.modalities, trace["logits"][step], strict=True))
        inputs = dict(zip(trace.modalities, trace["feature"][step], strict=True))
        take(strategy, inputs, trace["target"][step])
        close(strategy.statistics()["coefficient"], trace["coefficient"][step], f"coefficients of {step}", rtol=5e-7)
        seen |= set(trace["coefficient"][step].tolist())
    assert {0.1, 0.5, 0.9} <= {round(value, 9) for value in seen}


@pytest.mark.parametrize("convolutions_only", [False, True])
def test_units_that_are_kept(convolutions_only):
    """Of each weight ceil(n c) rows stay, weighted so that equal ones stay as they are."""
    network, (inputs, target) = late(), batch_of()
    strategy = AMSSPlus(network, convolutions_only=convolutions_only)
    F.cross_entropy(network(**inputs), target).backward()
    joint = gradients(network)
    take(strategy, inputs, target)
    found, shares = gradients(network), strategy.statistics()["coefficient"].tolist()
    assert sum(shares) == pytest.approx(1)
    for modality, share in zip(inputs, shares, strict=True):
        for layer, units in (("conv", 3), ("linear", 5)):
            key = f"encoders.{modality}.{layer}.weight"
            rows, plain = found[key].flatten(1), joint[key].flatten(1)
            if layer == "linear" and convolutions_only:
                torch.testing.assert_close(rows, plain, rtol=1e-4, atol=1e-6)
                continue
            kept = rows.any(1)
            assert int(kept.sum()) == math.ceil(units * share)
            p = plain.square().sum(1) / plain.square().sum()
            factor = (2 / units / (p + 1 / units)).unsqueeze(1)
            torch.testing.assert_close(rows[kept], (plain * factor)[kept], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found["classifier.weight"], joint["classifier.weight"], rtol=1e-4, atol=1e-6)


def test_draws_go_by_weight():
    torch.manual_seed(0)
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    orders = torch.stack([Draws().order_by_weight(weights) for _ in range(2000)])
    assert (orders[:, :2].sort(1).values == torch.tensor([1, 2])).all()
    assert (orders[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_four_modalities_have_no_released_form():
    network = Given()
    network.encoders["tactile"] = nn.Linear(6, 6)
    with pytest.raises(ValueError, match="two or three modalities for the released coefficients, but got 4"):
        AMSS(network, encoders={m: f"encoders.{m}" for m in network.encoders}, released=True)
