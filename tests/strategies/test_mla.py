import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import MLA, LinearHead, linear_heads

from .networks import batch_of, late
from .traces import Recorded, Trace, close, close_parameters


def recorded(name, **settings):
    trace = Trace(name)
    paths = {m: f"{m}_net" for m in trace.modalities}
    network = Recorded(trace, paths, lambda net, h: None)
    heads = dict.fromkeys(trace.modalities, network.fusion_module.fc_out)
    return trace, MLA(network, encoders=paths, heads=heads, **settings)


@pytest.mark.parametrize(
    ("name", "projection"),
    [
        ("mla_a", "elementwise"),
        ("mla_three_a", "elementwise"),
        ("mla_released_a", "none"),
        ("mla_a_paper", "scalar"),
        ("mla_three_a_paper", "scalar"),
    ],
)
def test_replays_the_recorded_steps(name, projection):
    trace, strategy = recorded(name, projection=projection)
    each = trace.settings["steps_per_epoch"]
    optimizer = trace.sgd(strategy.parameters())
    for step in range(trace.steps):
        if step % each == 0:
            strategy.begin_epoch(step // each, train=range(each))
        updates = strategy.steps(trace.inputs(step), trace["target"][step])
        for place, _ in enumerate(updates):
            close_parameters(strategy.network, trace, "grad/", (step, place))
            close(strategy.projector, trace["projector"][step, place], "projector")
            optimizer.step()
            close_parameters(strategy.network, trace, "weight/", (step, place))
        close(strategy.statistics()["score"], trace["losses"][step], "losses")


def test_the_ensemble_predicts():
    network, (inputs, target) = late(3).eval(), batch_of(3)
    head = LinearHead(5, 4)
    strategy = MLA(network, heads=dict.fromkeys(inputs, head))
    logits = strategy.predictor(**inputs)
    rows = []
    for sample in range(8):
        alone = [head(network.encoders[m](inputs[m]))[sample] for m in inputs]
        entropies = torch.stack([-(u.softmax(0) * u.log_softmax(0)).sum() for u in alone])
        weights = (entropies.max() - entropies).softmax(0)
        rows.append(sum(w * u for w, u in zip(weights, alone, strict=True)))
    torch.testing.assert_close(logits, torch.stack(rows), rtol=1e-4, atol=1e-6)
    outcomes = list(strategy.steps(inputs, target))
    assert len(outcomes) == 3
    torch.testing.assert_close(outcomes[0].logits, logits.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outcomes[0].loss, F.cross_entropy(logits, target).detach(), rtol=1e-4, atol=1e-6)


def test_the_state_resumes():
    (inputs, target), head = batch_of(), LinearHead(5, 4)
    strategy = MLA(late(), heads=dict.fromkeys(("audio", "image"), head))
    list(strategy.steps(inputs, target))
    again = MLA(late(), heads=dict.fromkeys(("audio", "image"), LinearHead(5, 4)))
    again.load_state_dict(strategy.state_dict())
    for each in (strategy, again):
        each.eval()
        list(each.steps(inputs, target))
    torch.testing.assert_close(again.projector, strategy.projector, rtol=1e-4, atol=1e-6)
    assert not torch.equal(again.projector, torch.eye(5))


def test_heads_that_are_not_one_are_refused():
    network = late()
    with pytest.raises(ValueError, match=r"one and the same head .* but got 2 heads"):
        MLA(network, heads=linear_heads(network.widths, 4))
    deep = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 4))
    with pytest.raises(ValueError, match="1 heads with 2"):
        MLA(network, heads=dict.fromkeys(("audio", "image"), deep))
