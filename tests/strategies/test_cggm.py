import pytest
import torch
from torch import nn

from agm.strategies import CGGM, hidden_heads

from .networks import batch_of, early, gradients, late, take
from .traces import Recorded, Trace, close, replay


class Classifier(nn.Module):
    """A recorded classifier: two layers of the network's own."""

    def __init__(self, layers):
        super().__init__()
        self.proj1, self.out_layer = layers.proj1, layers.out_layer

    def forward(self, x):
        return self.out_layer(torch.tanh(self.proj1(x)))


class Renamed(Trace):
    """The classifiers, recorded as a network of their own, under names that a module can have."""

    def __init__(self, name):
        super().__init__(name)
        self.arrays = {key.replace("/classifier/", "/guides."): value for key, value in self.arrays.items()}


def recorded(name, **settings):
    trace = Renamed(name)
    three = len(trace.modalities) == 3
    paths = {m: f"encoders.{place}" if three else f"{m}_encoder" for place, m in enumerate(trace.modalities)}

    def fuse(net, h):
        return net.out_layer(torch.tanh(net.fusion(torch.cat([h[m] for m in trace.modalities], 1))))

    network = Recorded(trace, paths, fuse)
    guides = network.guides.classifiers
    heads = {m: Classifier(getattr(guides, str(place))) for place, m in enumerate(trace.modalities)}
    s = trace.settings
    strategy = CGGM(
        network,
        encoders=paths,
        heads=heads,
        last_layer="out_layer",
        rho=s["rho"],
        direction=s["lambda"],
        **settings,
    )
    guided = {id(p) for p in guides.parameters()}
    plain = [p for p in network.parameters() if id(p) not in guided]
    groups = [
        {"params": plain},
        {"params": list(guides.parameters()), "lr": s["classifier_lr"], "momentum": s["classifier_momentum"]},
    ]
    optimizer = torch.optim.SGD(groups, lr=s["lr"], momentum=s["momentum"])
    if "clip" in s:
        optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(plain, s["clip"]) and None)
    return trace, strategy, optimizer


@pytest.mark.parametrize(
    ("name", "released"), [("cggm_three_a", True), ("cggm_two_a", True), ("cggm_three_a_paper", False)]
)
def test_replays_the_recorded_steps(name, released):
    trace, strategy, optimizer = recorded(name, released=released)
    for step, outcome in replay(trace, strategy, optimizer):
        close(outcome.loss, trace["task_loss"][step], "joint loss")
        close(strategy.accuracies, trace["accuracy"][step], "accuracies")
        told = strategy.statistics()
        close(told["coefficient"], trace["coefficient"][step] * trace.settings["rho"], "coefficients")
        close(told["improvement"], trace["improvement"][step], "improvements")
        close(told["cosine"], trace["cosine"][step], "cosines")
        close(told["direction_loss"][0], trace["direction_loss"][step], "direction loss")


def test_improvements_that_cancel_scale_no_encoder_by_millions():
    trace, strategy, optimizer = recorded("cggm_two_a")
    largest = 0.0
    for step in range(trace.steps):
        for _ in strategy.steps(trace.inputs(step), trace["target"][step]):
            optimizer.step()
        largest = max(largest, float(strategy.statistics()["coefficient"].abs().max()))
    assert trace["coefficient"].abs().max() > 1e7
    assert largest <= 13


def test_the_classifiers_do_not_reach_the_encoders():
    network, (inputs, target) = early(), batch_of()
    heads = hidden_heads(network.widths, network.classifier.in_features, 4)
    strategy = CGGM(network, heads=heads, start=1)
    take(strategy, inputs, target)
    joint = {name: value for name, value in gradients(strategy).items() if name.startswith("module.")}
    network.zero_grad()
    torch.nn.functional.cross_entropy(network(**inputs), target).backward()
    for name, value in gradients(network).items():
        torch.testing.assert_close(joint[f"module.{name}"], value, rtol=1e-4, atol=1e-5)
    assert all(p.grad.any() for p in strategy.heads.parameters())


def test_what_it_cannot_do_is_refused():
    network = late(combine="sum")
    with pytest.raises(ValueError, match="`heads` to map each modality to its classifier"):
        CGGM(network)
    with pytest.raises(ValueError, match="or direction=0"):
        CGGM(network, heads=hidden_heads(network.widths, 6, 4))
    strategy = CGGM(network, heads=hidden_heads(network.widths, 6, 4), direction=0.0)
    take(strategy, *batch_of())
    assert strategy.statistics()["coefficient"].shape == (2,)
