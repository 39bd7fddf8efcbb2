import numpy as np
import pytest
import torch

from agm.strategies import Draws, Valuation
from agm.strategies.valuation import modality_values

from .networks import batch_of, late, take
from .traces import Recorded, Trace, close

ENCODERS = {"audio": "audio_net.net", "visual": "visual_net.net"}


class Recordings(Draws):
    """The recorded subset and samples; and the permutation that gives the recorded order of the list."""

    def __init__(self, trace, strategy):
        self.trace, self.strategy, self.asked = trace, strategy, []

    def with_replacement(self, count, drawn, device):
        kind, epoch = ("subset", "drawn")[len(self.asked) % 2], len(self.asked) // 2
        self.asked.append(kind)
        found = self.trace[f"{kind}{epoch}"]
        assert len(found) == drawn
        return found

    def permutation(self, count, device):
        listed, epoch = self.strategy._list, self.strategy.epoch
        drops = torch.where(listed.present.all(1), 0, torch.where(listed.present[:, 1], 1, 2))
        rows = [*zip(listed.index.tolist(), drops.tolist(), strict=True)]
        wanted = zip(self.trace[f"epoch{epoch}/order"].tolist(), self.trace[f"epoch{epoch}/drop"].tolist(), strict=True)
        places = []
        for row in wanted:
            places.append(rows.index(row))
            rows[places[-1]] = None
        return torch.tensor(places)


@pytest.mark.parametrize("level", ["sample", "modality"])
def test_replays_the_recorded_epochs(level):
    trace = Trace(f"smv_{level}_a")
    s = trace.settings
    network = Recorded(
        trace, ENCODERS, lambda net, h: net.fusion_module.fc_out(torch.cat([h["audio"], h["visual"]], 1))
    )
    settings = {"part_ratio": s["part_ratio"], "alpha": s["alpha"]} if level == "modality" else {}
    strategy = Valuation(network, encoders=ENCODERS, level=level, warmup=s["warmup"], **settings)
    strategy.draws = Recordings(trace, strategy)
    optimizer = trace.sgd(strategy.parameters())
    inputs, target = {m: trace[m].double() for m in trace.modalities}, trace["target"]
    everything, step, row = [(inputs, target, torch.arange(s["samples"]))], 0, 0
    for epoch in range(s["epochs"]):
        strategy.begin_epoch(epoch)
        draw = strategy.draw(trace["epoch0/order"])
        assert torch.equal(draw.index, trace[f"epoch{epoch}/order"])
        for places in torch.arange(len(draw.index)).split(s["batch"]):
            rows = draw.take(places)
            picked = {m: x[rows.index] for m, x in inputs.items()}
            outcome = take(strategy, picked, target[rows.index], index=rows.index, present=rows.present)
            optimizer.step()
            close(outcome.loss, trace["losses"][step], f"loss of step {step}")
            close(outcome.logits, trace["logits/joint"][row : row + len(places)], f"logits of step {step}")
            for name, p in network.named_parameters():
                close(p.grad, trace[f"grad/{name}"][step], f"grad of {name}")
                close(p.detach(), trace[f"weight/{name}"][step], f"weight of {name}")
            step, row = step + 1, row + len(places)
        strategy.end_epoch(train=everything)
        close(strategy.values, trace["value"][epoch], "values")
        listed = strategy._list
        assert torch.equal(listed.index, trace[f"list{epoch}/index"])
        dropped = trace[f"list{epoch}/drop"]
        assert torch.equal(listed.present, torch.stack([dropped != 1, dropped != 2], 1))
        if level == "modality":
            close(strategy.mean_values, trace[f"subset_mean{epoch}"], "means of the subset")
    assert step == len(trace["losses"])


def test_values_of_three_modalities():
    with np.load(Trace.folder / "smv_three_values_paper.npz") as arrays:
        correct, expected = torch.from_numpy(arrays["correct"]), torch.from_numpy(arrays["value"])
    close(modality_values(correct.T), expected, "values")


def test_three_modalities_and_a_state_that_resumes():
    (inputs, target), strategy = batch_of(3), Valuation(late(3), warmup=1)
    order = torch.randperm(8)
    assert strategy.draw(order).present is None
    strategy.begin_epoch(0)
    strategy.end_epoch(train=[(inputs, target, torch.arange(8))])
    again = Valuation(late(3), warmup=1)
    again.load_state_dict(strategy.state_dict())
    for each in (strategy, again):
        each.begin_epoch(1)
        torch.manual_seed(3)
        each.drawn = each.draw(order)
    assert torch.equal(strategy.drawn.index, again.drawn.index)
    assert torch.equal(strategy.drawn.present, again.drawn.present)
    assert len(strategy.drawn.index) > 8
    assert sorted(strategy.drawn.index[strategy.drawn.present.all(1)].tolist()) == list(range(8))


def test_what_it_cannot_value_is_refused():
    (inputs, target), strategy = batch_of(), Valuation(late(), warmup=1)
    with pytest.raises(ValueError, match=r"\(inputs, target, index\)"):
        strategy.end_epoch(train=[(inputs, target)])
    with pytest.raises(ValueError, match="gaps or repetitions"):
        strategy.end_epoch(train=[(inputs, target, torch.arange(8) + 1)])
    with pytest.raises(ValueError, match="two modalities for level 'modality'"):
        Valuation(late(3), level="modality")
    with pytest.raises(ValueError, match="one of 'sample', 'modality', but got 'both'"):
        Valuation(late(), level="both")
