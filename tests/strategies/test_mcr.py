import pytest
import torch
from torch import nn

from agm.strategies import MCR, Draws, linear_heads

from .networks import batch_of, early, gradients, late, take
from .traces import Recorded, Trace, close, replay


class Recordings(Draws):
    def __init__(self, trace):
        self.left = list(trace["permutation"].flatten(0, -2))

    def permutation(self, count, device):
        return self.left.pop(0)


def recorded(name, **settings):
    trace = Trace(name)
    s = trace.settings
    places = dict(enumerate(trace.modalities))
    paths = {m: f"enc_{place}.net" for place, m in places.items()}

    def alone(net, h):
        blocks = {m: getattr(net, f"fc_{place}_lin") for place, m in places.items()}
        return {m: block(h[m]) + net.bias_lin / len(places) for m, block in blocks.items()}

    def fuse(net, h):
        return sum(getattr(net, f"fc_{place}_lin")(h[m]) for place, m in places.items()) + net.bias_lin

    network = Recorded(trace, paths, fuse, alone)
    if "init/enc_0.cls.weight" in trace:
        settings["heads"] = {m: getattr(network, f"enc_{place}").cls for place, m in places.items()}
        weights = s["weight_unimodal"]
        assert len(set(weights)) == 1
        settings |= {"unimodal": weights[0], "contrastive": s["weight_con"], "bottleneck": s["weight_ceb"]}
        settings["temperature"] = s["temperature"]
        if s["weight_ceb"]:
            first, second = dict(network.fc_yz.named_children()).values()
            settings["conditional"] = nn.Sequential(first, nn.ReLU(), second)
    else:
        settings |= {"unimodal": 0.0, "contrastive": 0.0}
    strategy = MCR(
        network,
        encoders=paths,
        game=s["game"],
        strength=s["weight_mipd"],
        samples=s["samples"],
        shuffle=s["shuffle"],
        **settings,
    )
    strategy.draws = Recordings(trace)
    return trace, strategy


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mcr_greedy_a", {"released": True}),
        ("mcr_independent_a", {"released": True}),
        ("mcr_collaborative_a", {"released": True}),
        ("mcr_greedy_a_paper", {}),
        ("mcr_three_a_paper", {"target_graph": False}),
    ],
)
def test_replays_the_recorded_steps(name, settings):
    trace, strategy = recorded(name, **settings)
    for step, outcome in replay(trace, strategy, trace.sgd(strategy.parameters())):
        task = trace.settings["terms"].index("ce_joint" if "ce_joint" in trace.settings["terms"] else "task")
        close(outcome.loss, trace["terms"][step, task], "joint loss")
        jsd = trace["jsd"][step]
        shape = {"mcr_greedy_a_paper": jsd, "mcr_three_a_paper": jsd[0] if jsd.dim() == 2 else None}
        close(strategy.statistics()["score"], shape.get(name, jsd[:, 0] if jsd.dim() == 2 else jsd), "divergences")
    assert not strategy.draws.left


@pytest.mark.parametrize("game", ["greedy", "independent", "collaborative"])
def test_a_fusion_that_does_not_split(game):
    """Each encoder's gradient is that of the game with the others' features held fixed."""
    network, (inputs, target) = early(3), batch_of(3)
    heads = linear_heads(network.widths, 4)
    strategy = MCR(network, heads=heads, game=game, joint=0.0, unimodal=0.0, contrastive=0.0, strength=1.0, samples=2)
    network.eval()
    torch.manual_seed(1)
    take(strategy, inputs, target)
    found = gradients(network)
    torch.manual_seed(1)
    orders = torch.stack([torch.randperm(8) for _ in range(6)]).view(2, 3, 8)
    names = list(inputs)

    def divergence(features, shuffled, place):
        rows = []
        for order in orders[:, place]:
            p = network.fuse(features).softmax(1)
            q = network.fuse({**features, shuffled: features[shuffled][order]}).softmax(1)
            m = (p + q) / 2
            rows.append(((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)) / 2)
        return torch.cat(rows).mean()

    for own in names:
        network.zero_grad()
        features = {name: network.encoders[name](inputs[name]) for name in names}
        if game != "collaborative":
            features = {name: value if name == own else value.detach() for name, value in features.items()}
        loss = 0.0
        for place, name in enumerate(names):
            sign = -1 if name == own or game == "collaborative" else {"greedy": 1, "independent": 0}[game]
            loss = loss + sign * divergence(features, name, place)
        loss.backward()
        key = f"encoders.{own}.linear.weight"
        torch.testing.assert_close(found[key], gradients(network)[key], rtol=1e-3, atol=1e-7)


def test_rows_that_do_not_count():
    """A batch of one class has no row with another label: the game is 0, and nothing is NaN."""
    network, (inputs, _) = late(), batch_of()
    strategy = MCR(network, shuffle="different label", contrastive=0.0, samples=2)
    take(strategy, inputs, torch.zeros(8, dtype=torch.long))
    assert strategy.statistics()["score"].tolist() == [0, 0]
    assert all(value.isfinite().all() for value in gradients(network).values())


def test_the_bottleneck_is_made_where_the_widths_are_known():
    network, (inputs, target) = late(), batch_of()
    strategy = MCR(network, bottleneck=1.0, samples=2)
    take(strategy, inputs, target)
    assert [tuple(p.shape) for p in strategy.conditional.parameters()] == [(5, 4), (10, 5)]
    assert all(p.grad.any() for p in strategy.conditional.parameters())
    with pytest.raises(ValueError, match="`conditional` to be a module"):
        MCR(nn.Sequential(nn.Linear(2, 2)), encoders={"a": "0"}, modalities=("a",), unimodal=0.0, bottleneck=1.0)
