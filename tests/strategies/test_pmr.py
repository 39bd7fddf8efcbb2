import pytest
import torch

from agm.strategies import PMR

from .networks import batch_of, gradients, late, take
from .traces import Recorded, Trace, close, close_parameters

ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


def recorded(name, **settings):
    trace = Trace(name)
    network = Recorded(
        trace, ENCODERS, lambda net, h: net.fusion_module.fc_out(torch.cat([h["audio"], h["visual"]], 1))
    )
    strategy = PMR(network, encoders=ENCODERS, alpha=trace.settings["alpha"], **settings)
    batches = [(trace.inputs(step), trace["target"][step]) for step in range(trace.settings["steps_per_epoch"])]
    return trace, strategy, batches


def steps(trace, strategy, batches, given=False):
    """Compares gradients and weights of every step; `given`: the recorded prototypes are put in."""
    optimizer = trace.sgd(strategy.parameters())
    for step in range(trace.steps):
        epoch, place = divmod(step, len(batches))
        if place == 0:
            strategy.begin_epoch(epoch, train=batches)
            for name in trace.modalities:
                if given:
                    strategy.prototypes[name] = trace[f"prototype/{name}"][epoch]
                close(strategy.prototypes[name], trace[f"prototype/{name}"][epoch], f"prototypes of {name}")
        outcome = take(strategy, *batches[place])
        close_parameters(strategy.network, trace, "grad/", step)
        optimizer.step()
        close_parameters(strategy.network, trace, "weight/", step)
        yield step, outcome, strategy.statistics()


def test_replays_the_released_steps():
    trace, strategy, batches = recorded("pmr_a", released=True)
    for step, outcome, told in steps(trace, strategy, batches):
        close(outcome.loss, trace["terms"][step, 0], "joint loss")
        close(told["score"], trace["score"][step], "scores")
        first, second = trace["score"][step]
        assert told["coefficient"].tolist() == [float(first < second), float(first > second)]


def test_replays_the_steps_of_the_paper():
    s = Trace("pmr_a_paper").settings
    trace, strategy, batches = recorded("pmr_a_paper", entropy=s["mu"], regulated=s["regulated_epochs"])
    for step, outcome, told in steps(trace, strategy, batches, given=True):
        close(outcome.loss, trace["terms"][step, 1], "joint loss")
        close(told["ratio"][0], trace["coefficient"][step, 0], "ratio")
        close(told["coefficient"], trace["coefficient"][step, 1:], "coefficients")


def test_a_class_without_a_sample_gives_no_nan():
    network, (inputs, _) = late(), batch_of()
    missing = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    strategy = PMR(network)
    strategy.begin_epoch(0, train=[(inputs, missing)])
    target = torch.tensor([0, 1, 2, 3, 3, 0, 1, 2])
    take(strategy, inputs, target)
    assert all(value.isfinite().all() for value in gradients(network).values())
    before = strategy.prototypes["audio"].clone()
    # Class 3 comes, and class 2 has gone: it keeps what it had.
    strategy.begin_epoch(1, train=[(inputs, torch.tensor([0, 1, 3, 0, 1, 3, 0, 1]))])
    network.eval()
    feature = network.encoders["audio"](inputs["audio"]).detach()
    now = strategy.prototypes["audio"]
    assert torch.equal(now[2], before[2])
    torch.testing.assert_close(now[3], feature[[2, 5]].mean(0))
    torch.testing.assert_close(now[0], 0.8 * feature[[0, 3, 6]].mean(0) + 0.2 * before[0])
    again = PMR(late())
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.prototypes["audio"], now)
    released = PMR(late(), released=True)
    released.begin_epoch(0, train=[(inputs, missing)])
    assert released.prototypes["audio"][3].isnan().all()


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="two modalities, between which PMR decides, but got 3"):
        PMR(late(3))
    with pytest.raises(ValueError, match="`train` to have a length"):
        PMR(late()).begin_epoch(0, train=iter([batch_of()]))
    with pytest.raises(ValueError, match="`share` to be a number above 0"):
        PMR(late(), share=0)
    with pytest.raises(RuntimeError, match="`begin_epoch`"):
        take(PMR(late()), *batch_of())
