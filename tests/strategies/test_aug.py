import pytest
import torch
from torch import nn

from agm.strategies import AUG, Draws

from .networks import batch_of, late
from .traces import Recorded, Trace, close

ENCODERS = {"audio": "audio_encoder.net", "visual": "video_encoder.net"}


class Recordings(Draws):
    def __init__(self, trace):
        self.left = [trace[f"event{number}/weight"] for number in range(len(trace["event_epoch"]))]

    def xavier(self, weight):
        weight.copy_(self.left.pop(0))


def recorded(name, **settings):
    trace = Trace(name)
    s = trace.settings
    network = Recorded(trace, ENCODERS, lambda net, h: None)
    strategy = AUG(
        network,
        encoders=ENCODERS,
        widths=dict.fromkeys(trace.modalities, s["features"]),
        num_classes=s["classes"],
        hidden=s["hidden"],
        check=s["check"],
        residual=s["residual"],
        **settings,
    )
    with torch.no_grad():
        for own, theirs in parameters(strategy).items():
            theirs.copy_(trace[f"init/{own}"])
    strategy.optimizer = trace.sgd(strategy.parameters())
    strategy.draws = Recordings(trace)
    return trace, strategy


def parameters(strategy):
    """Recorded name -> parameter."""
    found = dict(strategy.network.audio_encoder.named_parameters(prefix="audio_encoder"))
    found |= dict(strategy.network.video_encoder.named_parameters(prefix="video_encoder"))
    found |= dict(strategy.output.named_parameters(prefix="fc_out"))
    for name, letter in (("audio", "a"), ("visual", "v")):
        first, *others = strategy.layers[name]
        found |= dict(first.named_parameters(prefix=f"embedding_{letter}.0"))
        for place, layer in enumerate(others):
            found |= dict(layer.named_parameters(prefix=f"additional_layers_{letter}.{place}"))
    return found


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("aug_a", {"released": True, "train_added": False}),
        ("aug_a_trained", {"released": True}),
        ("aug_a_paper", {}),
    ],
)
def test_replays_the_recorded_epochs(name, settings):
    trace, strategy = recorded(name, **settings)
    each = trace.settings["steps_per_epoch"]
    for step in range(trace.steps):
        epoch, place = divmod(step, each)
        if place == 0:
            strategy.begin_epoch(epoch)
            for m, count in zip(trace.modalities, trace["heads"][epoch].tolist(), strict=True):
                assert len(strategy.layers[m]) == 1 + count
        for m, _ in zip(("audio", "visual"), strategy.steps(trace.inputs(step), trace["target"][step]), strict=True):
            for key, p in parameters(strategy).items():
                expected = trace[f"grad_{m}_step/{key}"][step]
                close(torch.zeros_like(p) if p.grad is None else p.grad, expected, f"{m}: gradient of {key}, {step}")
            strategy.optimizer.step()
        for key, p in parameters(strategy).items():
            close(p.detach(), trace[f"weight/{key}"][step], f"weight of {key} after step {step}")
        close(strategy.statistics()["score"], trace["terms"][step, -2:], "losses")
        if place == each - 1:
            close(strategy.scores[0] / strategy.scores[1], trace["ratio"][epoch], "ratio")
            strategy.end_epoch()
    assert [trace.modalities.index(m) for m in strategy.added] == trace["event_modality"].tolist()
    assert not strategy.draws.left


def test_a_grown_state_resumes():
    """The optimizer's state of new heads too."""
    (inputs, target), states = batch_of(), []

    def new():
        torch.manual_seed(0)
        strategy = AUG(late(), hidden=6, check=1)
        strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1, momentum=0.9)
        return strategy

    def train(strategy, epochs):
        for epoch in epochs:
            torch.manual_seed(epoch)
            strategy.begin_epoch(epoch)
            for _ in strategy.steps(inputs, target):
                strategy.optimizer.step()
            strategy.end_epoch()

    whole, parts = new(), new()
    train(whole, range(6))
    train(parts, range(3))
    states = parts.state_dict(), parts.optimizer.state_dict()
    again = new()
    again.load_state_dict(states[0])
    again.optimizer.load_state_dict(states[1])
    train(again, range(3, 6))
    assert len(parts.added) >= 2
    assert whole.added == again.added
    for name, value in whole.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, again.state_dict()[name]), name
    with pytest.raises(ValueError, match="Load it into a new strategy"):
        whole.load_state_dict(new().state_dict())


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="two modalities, between which AUG decides, but got 3"):
        AUG(late(3))
    plain = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plain.forward = lambda a, b: None
    with pytest.raises(ValueError, match=r"`widths` .* and `num_classes`"):
        AUG(plain, encoders={"a": "a", "b": "b"})
    strategy = AUG(late(), hidden=6)
    list(strategy.steps(*batch_of()))
    with pytest.raises(RuntimeError, match="attribute `optimizer` of AUG"):
        strategy.end_epoch()
