import pytest
import torch

from agm.strategies import Relearning
from agm.strategies.relearning import k_means

from .networks import Loader, batch_of, late, take
from .traces import Recorded, Trace, close, close_parameters

ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


def split(trace, which):
    inputs = {m: trace[f"{which}/{m}"].double() for m in trace.modalities}
    return inputs, trace[f"{which}/target"]


def test_replays_the_recorded_run():
    """Four epochs, two events, with the recorded clusters of the four sets of features."""
    trace = Trace("relearning_a")
    s = trace.settings
    network = Recorded(trace, ENCODERS, lambda net, h: net.head(torch.cat([h["audio"], h["visual"]], 1)))
    asked = []

    def cluster(features, classes):
        # Train audio, train visual, then the same of validation.
        event, place = divmod(len(asked), 4)
        name = f"{'train' if place < 2 else 'validation'}_{trace.modalities[place % 2]}"
        plain = trace[f"feature/{name}"][event]
        low, high = plain.amin(0), plain.amax(0)
        close(features, 2 * (plain - low) / (high - low) - 1, f"scaled features of {name}")
        asked.append(classes)
        return trace[f"clusters/{name}"][event]

    strategy = Relearning(
        network, encoders=ENCODERS, strength=s["lambda"], every=s["every"], times=s["times"], cluster=cluster
    )
    optimizer = trace.sgd(strategy.parameters())
    inputs, target = split(trace, "train")
    events = 0
    for step in range(s["steps"]):
        epoch, place = divmod(step, s["steps_per_epoch"])
        if place == 0:
            strategy.begin_epoch(epoch)
        rows = slice(place * s["batch"], (place + 1) * s["batch"])
        outcome = take(strategy, {m: x[rows] for m, x in inputs.items()}, target[rows])
        close_parameters(network, trace, "grad/", step)
        optimizer.step()
        close(outcome.loss, trace["losses"][step], "loss")
        close(outcome.logits, trace["logits/joint"][step], "logits")
        close_parameters(network, trace, "weight/", step)
        if place == s["steps_per_epoch"] - 1:
            strategy.end_epoch(train=[(inputs, target)], validation=[split(trace, "validation")])
            if int(strategy.count) > events:
                assert trace["event_epoch"][events] == epoch
                close(strategy.strengths, trace["alpha"][events], "strengths")
                close_parameters(network, trace, "after/", events)
                events += 1
    assert events == len(trace["event_epoch"]) == s["times"]
    for name, value in trace.state("final/").items():
        close(network.state_dict()[name], value, name)


def test_k_means_finds_the_classes_and_the_state_resumes():
    centres = 10.0 * torch.eye(4)
    points = centres[torch.arange(20) % 4] + 0.1 * torch.randn(20, 4)
    found = k_means(points, 4)
    assert len({tuple(sorted({int(c) for c in found[k::4]})) for k in range(4)}) == 4

    network = late()
    strategy = Relearning(network, every=1, strength=5.0)
    first = network.encoders["audio"].linear.weight.detach().clone()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    again = Relearning(late(), every=1, strength=5.0)
    again.load_state_dict(strategy.state_dict())
    splits = {"train": Loader(batch_of()), "validation": Loader(batch_of(seed=7))}
    for each in (strategy, again):
        each.begin_epoch(1)
        each.end_epoch(**splits)
        assert torch.equal(each.network.encoders["audio"].linear.weight, network.encoders["audio"].linear.weight)
    share = strategy.strengths[0].item()
    assert 0 < share < 1
    torch.testing.assert_close(network.encoders["audio"].linear.weight.detach(), first + (1 - share))
    take(strategy, *batch_of())


def test_it_needs_both_splits_when_it_is_due():
    strategy = Relearning(late(), every=2)
    for epoch in (0, 1):
        strategy.begin_epoch(epoch)
        strategy.end_epoch()
    strategy.begin_epoch(2)
    with pytest.raises(ValueError, match="Relearning needs the train split"):
        strategy.end_epoch()
