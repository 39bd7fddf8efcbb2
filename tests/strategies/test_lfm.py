import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import LFM

from .networks import batch_of, late, take
from .traces import Recorded, Trace, close, replay

ENCODERS = {"audio": "audio_encoder.net", "visual": "video_encoder.net"}


def recorded(name, **wanted):
    """`wanted`: setting -> name that it has in the recording, or a value."""
    trace = Trace(name)
    settings = {key: trace.settings[value] if isinstance(value, str) else value for key, value in wanted.items()}
    network = Recorded(trace, ENCODERS, lambda net, h: (net.cls_a(h["audio"]) + net.cls_v(h["visual"])) / 2)
    heads = {"audio": network.cls_a, "visual": network.cls_v}
    strategy = LFM(network, encoders=ENCODERS, heads=heads, schedule=trace.settings["schedule"], **settings)
    return trace, strategy, trace.sgd(strategy.parameters())


def epochs(trace, strategy, optimizer, numbers, **splits):
    each = trace.settings["steps_per_epoch"]
    for place, epoch in enumerate(numbers):
        strategy.begin_epoch(epoch, **splits)
        yield place, epoch, replay(trace, strategy, optimizer, range(place * each, (place + 1) * each))


def test_replays_the_fitted_schedule():
    trace, strategy, optimizer = recorded("lfm_fitted_a", released=True)
    for place, _, steps in epochs(trace, strategy, optimizer, trace.settings["epochs"]):
        close(strategy.weight, trace["weights"][place, 1], "weight of matching")
        for step, outcome in steps:
            close(outcome.loss, trace["terms"][step, 2], "joint loss")
            close(strategy.statistics()["terms"], trace["terms"][step, [2, 1]], "terms")
    for name, value in trace.state("final/").items():
        close(strategy.network.state_dict()[name], value, name)


def test_replays_the_learned_schedule():
    trace, strategy, optimizer = recorded("lfm_learned_a", released=True, rate="hyper_rate")
    held = [({m: trace[f"hyper/{m}"].double() for m in trace.modalities}, trace["hyper/target"])]
    for place, _, steps in epochs(trace, strategy, optimizer, trace.settings["epochs"], validation=held):
        close(strategy.hyper_gradient, trace["hyper_gradient"][place], "hyper-gradient")
        close(strategy.rate, trace["hyper_rate"][place], "rate")
        close(1 - strategy.weight, trace["weights"][place, 0], "weight of classification")
        for step, _ in steps:
            close(strategy.statistics()["terms"], trace["terms"][step, [2, 1]], "terms")


def test_replays_the_heuristic_schedule():
    trace, strategy, optimizer = recorded("lfm_heuristic_a_paper", temperature="temperature")
    each = trace.settings["steps_per_epoch"]
    for _, epoch, steps in epochs(trace, strategy, optimizer, range(trace.steps // each)):
        for step, _ in steps:
            close(strategy.weight, trace["alpha"][step], "weight of matching")
            close(strategy.statistics()["terms"], trace["terms"][step, [2, 1]], "terms")
        assert math.isclose(float(strategy.weight), 1 - math.exp(-1 / (epoch + 1)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 3)

    def forward(self, audio, visual):
        return self.out(torch.tanh(torch.cat([self.a(audio), self.b(visual)], 1)))


def test_the_learned_weight_follows_the_implicit_gradient():
    """The inverse of the whole Hessian, by hand."""
    network = Small().double()
    inputs = {name: torch.randn(12, 3, dtype=torch.float64) for name in ("audio", "visual")}
    target = torch.randint(3, (12,))
    paths = {"audio": "a", "visual": "b"}
    strategy = LFM(network, encoders=paths, schedule="learned", initial=0.6, rate=0.01, damping=200.0, iterations=40)
    values = torch.cat([p.detach().flatten() for p in network.parameters()])

    def unpacked(flat):
        parts, place = {}, 0
        for name, p in network.named_parameters():
            parts[name], place = flat[place : place + p.numel()].view_as(p), place + p.numel()
        return parts

    def classification(flat):
        return F.cross_entropy(torch.func.functional_call(network, unpacked(flat), (), inputs), target)

    def matching(flat):
        weights = unpacked(flat)
        first = F.normalize(inputs["audio"] @ weights["a.weight"].T + weights["a.bias"], dim=1)
        second = F.normalize(inputs["visual"] @ weights["b.weight"].T + weights["b.bias"], dim=1)
        products = first @ second.T / 0.2
        places = torch.arange(12)
        return (F.cross_entropy(products, places) + F.cross_entropy(products.T, places)) / 2

    def total(flat):
        return 0.4 * classification(flat) + 0.6 * matching(flat)

    hessian = torch.func.hessian(total)(values) + 200.0 * torch.eye(len(values), dtype=torch.float64)
    assert torch.linalg.eigvalsh(hessian).min() > 0
    outer, inner = torch.func.grad(classification)(values), torch.func.grad(matching)(values)
    expected = -(inner - outer) @ torch.linalg.solve(hessian, outer)
    strategy.begin_epoch(0, validation=[(inputs, target)])
    close(strategy.hyper_gradient, expected, "hyper-gradient", rtol=1e-6)
    close(strategy.weight, 0.6 - 0.01 * expected, "weight")
    take(strategy, inputs, target)
    again = LFM(Small().double(), encoders=paths, schedule="learned")
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.weight, strategy.weight)
    assert again.rate == 0.01


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="two modalities, which LFM matches, but got 3"):
        LFM(late(3))
    with pytest.raises(ValueError, match="`limits`"):
        LFM(late(), limits=(0.9, 0.1))
    with pytest.raises(ValueError, match="LFM needs the validation split"):
        LFM(late(), schedule="learned").begin_epoch(0)
    strategy = LFM(late(), stop=0)
    strategy.begin_epoch(0)
    take(strategy, *batch_of())
    assert strategy.statistics() == {}
