import pytest
import torch

from agm.strategies import MMPareto

from .networks import batch_of, gradients, late, take
from .traces import Recorded, Trace, close, replay

ENCODERS = {"audio": "audio_net", "visual": "visual_net"}


def recorded(name: str, **settings: object) -> tuple[Trace, MMPareto]:
    trace = Trace(name)
    network = Recorded(trace, ENCODERS, lambda net, h: net.head(torch.cat([h["audio"], h["visual"]], 1)))
    heads = {"audio": network.head_audio, "visual": network.head_video}
    return trace, MMPareto(network, encoders=ENCODERS, heads=heads, gamma=trace.settings["gamma"], **settings)


@pytest.mark.parametrize(("name", "released"), [("mmpareto_a", True), ("mmpareto_a_paper", False)])
def test_replays_the_recorded_steps(name, released):
    trace, strategy = recorded(name, released=released)
    for step, outcome in replay(trace, strategy, trace.sgd(strategy.parameters())):
        close(outcome.loss, trace["losses"][step, 0], "joint loss")
        close(outcome.logits, trace["logits/joint"][step], "logits")
        close(strategy.statistics()["coefficient"], 2 * trace["alpha"][step, :, 0], "weight of the joint gradient")
    assert (trace["cosine"] < 0).any()
    assert (trace["cosine"] > 0).any()


def test_a_tensor_that_cancels_is_no_nan_but_in_the_released_form():
    """Opposite gradients: the shortest vector between them is 0."""

    class Opposite(MMPareto):
        def batch(self, *args, **kwargs):
            batch = super().batch(*args, **kwargs)
            batch.unimodal_losses = {name: -batch.joint_loss for name in self.modalities}
            return batch

    for released in (False, True):
        network, (inputs, target) = late(), batch_of()
        strategy = Opposite(network, released=released)
        take(strategy, inputs, target)
        assert strategy.statistics()["coefficient"].tolist() == pytest.approx([1.0, 1.0])
        found = gradients(network)["encoders.audio.linear.weight"]
        assert not found.any() or (released and found.isnan().all())


def test_outside_the_window_it_is_multi_loss_and_three_modalities_serve():
    network, (inputs, target) = late(3), batch_of(3)
    strategy = MMPareto(network, start=1)
    take(strategy, inputs, target)
    plain = gradients(network)
    strategy.begin_epoch(1)
    take(strategy, inputs, target)
    balanced = gradients(network)
    ratios = {name: float((balanced[name] / plain[name]).median()) for name in plain if "linear.weight" in name}
    assert torch.allclose(balanced["classifier.weight"], plain["classifier.weight"])
    assert ratios["encoders.audio.linear.weight"] == pytest.approx(1.5, rel=1e-3)  # these do not conflict
    assert strategy.statistics()["coefficient"].shape == (3,)
