"""Small strategies of every shape that the field has, written against the interface alone, so that it holds them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from agm.strategies import Draw, LinearHead, Outcome, Strategy, build, options_of, strategies

from .networks import Loader, assert_same, batch_of, belongs, early, gradients, gradients_of, late, take


def test_gradient_surgery_with_several_backward_passes():
    """Per encoder the joint and the unimodal gradient are combined, as Pareto methods do."""

    class Surgery(Strategy):
        trains_heads = True

        def backward(self, batch):
            groups = dict(zip(self.modalities, self.parts.parameters(), strict=True))
            alone = {
                name: torch.autograd.grad(batch.unimodal_losses[name], group, retain_graph=True)
                for name, group in groups.items()
            }
            batch.joint_loss.backward()
            for name, group in groups.items():
                joint = torch.cat([p.grad.flatten() for p in group])
                own = torch.cat([g.flatten() for g in alone[name]])
                conflict = (joint @ own < 0).to(joint.dtype)
                for p, g in zip(group, alone[name], strict=True):
                    p.grad.add_(g * (1 - conflict))

    network, (inputs, target) = late(), batch_of()
    expected = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    strategy = Surgery(network)
    for name in inputs:
        own = gradients_of(network, lambda name=name: strategy.batch(inputs, target).unimodal_losses[name])
        own = {key: value for key, value in own.items() if belongs(key, name)}
        if sum((expected[key] * value).sum() for key, value in own.items()) >= 0:
            expected |= {key: expected[key] + value for key, value in own.items()}
    take(strategy, inputs, target)
    assert_same(gradients(network), expected, rtol=1e-4, atol=1e-6)


def test_alternating_unimodal_updates_with_a_memory():
    """One modality's loss and step at a time; the head's gradient is projected by a running matrix."""

    class Alternating(Strategy):
        trains_heads = True

        def __init__(self, network, **common):
            super().__init__(network, **common)
            self.register_buffer("projection", torch.eye(5))

        def steps(self, inputs, target, *, index=None, present=None):
            for name in self.modalities:
                batch = self.batch(inputs, target)
                self.zero_grad(set_to_none=True)
                batch.unimodal_losses[name].backward()
                with torch.no_grad():
                    (weight,) = self.parts.head_gradients()[self.modalities.index(name)]
                    weight.copy_(weight @ self.projection)
                    mean = batch.features[name].mean(0)
                    ahead = self.projection @ mean
                    self.projection -= torch.outer(ahead, ahead) / (1 + mean @ ahead)
                yield Outcome(batch.joint_loss.detach(), batch.logits.detach())

    network, (inputs, target) = late(), batch_of()
    strategy = Alternating(network)
    optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    before, moved = network.state_dict(), []
    before = {name: value.clone() for name, value in before.items()}
    for _ in strategy.steps(inputs, target):
        moved.append({name for name, p in network.named_parameters() if p.grad is not None})
        optimizer.step()
    assert len(moved) == 2
    assert not any(belongs(name, "image") for name in moved[0])
    assert not any(belongs(name, "audio") for name in moved[1])
    assert any(belongs(name, "image") for name in moved[1])
    assert not torch.equal(strategy.projection, torch.eye(5))
    assert torch.linalg.eigvalsh(strategy.projection).min() > 0


def test_resampling_with_dropped_modalities():
    class Resampling(Strategy):
        def draw(self, order):
            present = torch.ones(2 * len(order), 2, dtype=torch.bool)
            present[len(order) :, 0] = False
            return Draw(torch.cat([order, order]), present)

    network, (inputs, target) = late(), batch_of()
    strategy = Resampling(network)
    draw = strategy.draw(torch.arange(8))
    rows = draw.take(torch.tensor([3, 11, 5, 13]))
    assert rows.index.tolist() == [3, 3, 5, 5]
    network.eval()  # so that a sample's logits do not depend on its neighbours
    picked = {name: values[rows.index] for name, values in inputs.items()}
    (outcome,) = strategy.steps(picked, target[rows.index], index=rows.index, present=rows.present)
    features = {name: network.encoders[name](inputs[name]) for name in inputs}
    whole = network.fuse(features)
    without = network.fuse({**features, "audio": torch.zeros_like(features["audio"])})
    torch.testing.assert_close(outcome.logits, torch.stack([whole[3], without[3], whole[5], without[5]]).detach())


def test_features_dropped_in_the_forward_pass():
    class Dropping(Strategy):
        def feature(self, name, feature, batch):
            return feature * (name != "audio")

    network, (inputs, target) = late(), batch_of()
    take(Dropping(network), inputs, target)
    found = gradients(network)
    assert all(not value.any() for name, value in found.items() if belongs(name, "audio"))
    assert all(value.any() for name, value in found.items() if name.startswith("encoders.image.linear"))


def test_surgery_on_weights_between_epochs():
    """Encoders go back towards their first weights by how much worse they do on new samples."""

    class Relearning(Strategy):
        needs = frozenset({"train", "validation"})

        def __init__(self, network, **common):
            super().__init__(network, **common)
            self.first = [[p.detach().clone() for p in group] for group in self.parts.parameters()]

        @torch.no_grad()
        def end_epoch(self, *, train=None, validation=None):
            seen = self.measure(self.required(train, "train")).losses
            new = self.measure(self.required(validation, "validation")).losses
            for name, group, first in zip(self.modalities, self.parts.parameters(), self.first, strict=True):
                share = torch.tensor(new[name] - seen[name]).abs().tanh()
                torch._foreach_lerp_(group, first, share.item())

    network, (inputs, target) = late(), batch_of()
    strategy = Relearning(network)
    first = {name: p.detach().clone() for name, p in network.named_parameters()}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    train, new = Loader((inputs, target)), Loader(batch_of(seed=5))
    gap = {name: abs(strategy.measure(new).losses[name] - strategy.measure(train).losses[name]) for name in inputs}
    strategy.end_epoch(train=train, validation=new)
    for name, p in network.named_parameters():
        share = next((torch.tensor(value).tanh() for m, value in gap.items() if belongs(name, m)), 0.0)
        torch.testing.assert_close(p.detach(), first[name] + (1 - share) * 1.0, rtol=1e-4, atol=1e-5)


def test_losses_on_prototypes_that_are_kept_between_epochs():
    class Prototypes(Strategy):
        def __init__(self, network, classes, width, **common):
            super().__init__(network, **common)
            self.register_buffer("centres", torch.zeros(len(self.modalities), classes, width))

        @torch.no_grad()
        def begin_epoch(self, epoch, *, train=None, validation=None):
            super().begin_epoch(epoch)
            totals, counts = torch.zeros_like(self.centres), torch.zeros(self.centres.shape[1], 1)
            for inputs, target in self.required(train, "train"):
                features, _ = self.parts.run(inputs)
                hot = F.one_hot(target, len(counts)).float()
                totals += torch.stack([hot.T @ features[name] for name in self.modalities])
                counts += hot.sum(0).unsqueeze(1)
            self.centres.copy_(totals / counts.clamp_min(1))

        def loss(self, batch):
            total = batch.joint_loss
            for centres, name in zip(self.centres, self.modalities, strict=True):
                total = total + F.cross_entropy(-torch.cdist(batch.features[name], centres), batch.target)
            return total

    network, (inputs, target) = late(), batch_of()
    network.eval()
    strategy = Prototypes(network, 4, 5)
    strategy.begin_epoch(0, train=Loader((inputs, target)))
    feature = network.encoders["image"](inputs["image"])
    kind = int(target[0])
    torch.testing.assert_close(strategy.centres[1, kind], feature[target == kind].mean(0).detach())
    joint = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    take(strategy, inputs, target)
    assert not torch.allclose(gradients(network)["encoders.image.linear.weight"], joint["encoders.image.linear.weight"])


def test_parameters_that_are_added_while_it_trains():
    class Growing(Strategy):
        def __init__(self, network, **common):
            super().__init__(network, **common)
            self.more = nn.ModuleList()

        def end_epoch(self, *, train=None, validation=None):
            self.more.append(nn.Linear(5, 4))
            self.optimizer.add_param_group({"params": list(self.more[-1].parameters())})

        def loss(self, batch):
            extra = sum(head(batch.features["audio"]) for head in self.more)
            return F.cross_entropy(batch.logits + extra, batch.target)

    network, (inputs, target) = late(), batch_of()
    strategy = Growing(network)
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    strategy.end_epoch()
    before = strategy.more[0].weight.detach().clone()
    take(strategy, inputs, target)
    strategy.optimizer.step()
    assert not torch.equal(strategy.more[0].weight, before)


def test_a_part_of_the_modalities_may_be_trained_and_handed_on():
    """What a federated server needs of a client: one encoder's gradients, and training on that modality alone."""

    class OneEncoder(Strategy):
        def modulate(self, batch):
            self.scale(torch.tensor([1.0, 0.0]))

    network, (inputs, target) = late(), batch_of()
    strategy = OneEncoder(network)
    batch = strategy.batch(inputs, target, present=torch.tensor([[True, False]]).expand(8, 2))
    strategy.backward(batch)
    traces = batch.gradient_traces
    expected = sum(p.grad.double().square().sum() for p in network.encoders["audio"].parameters())
    torch.testing.assert_close(traces[0], expected)
    assert traces[1] == 0
    take(strategy, inputs, target)
    assert all(not p.grad.any() for p in network.encoders["image"].parameters())


@pytest.mark.parametrize("build_network", [late, early])
def test_statistics_of_a_batch_are_computed_once(build_network):
    network, (inputs, target) = build_network(), batch_of()
    calls = []
    network.encoders["audio"].conv.register_forward_hook(lambda *_: calls.append(1))
    batch = Strategy(network).batch(inputs, target)
    assert not calls
    for _ in range(2):
        assert batch.logits is batch.logits
        assert batch.confidences is batch.confidences
        assert batch.cross_entropies is batch.cross_entropies
        assert batch.joint_loss is batch.joint_loss
    assert len(calls) == 1
    masked = batch.masked_logits
    assert masked is batch.masked_logits
    network.eval()
    absent = {**inputs, "audio": torch.zeros_like(inputs["audio"])}
    torch.testing.assert_close(masked[1], network(**absent).detach())
    torch.testing.assert_close(masked[2], network(**inputs).detach())


@pytest.mark.parametrize("first", ["confidences", "cross_entropies", "probes"])
def test_a_statistic_that_is_asked_for_first_does_not_cut_the_graph(first):
    network, (inputs, target) = late(), batch_of()
    batch = Strategy(network).batch(inputs, target)
    with torch.no_grad():
        getattr(batch, first)
    (batch.joint_loss + sum(batch.unimodal_losses.values())).backward()
    assert all(p.grad is not None for p in network.parameters())


class NothingIsRead(TorchDispatchMode):
    """Refuses what would wait for a GPU: a number or a condition from a tensor, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("build_network", [late, early])
@pytest.mark.parametrize("name", [name for name in strategies if name != "agm"])
def test_no_step_reads_from_the_device(name, build_network):
    """All but AGM, whose checks of the target read it on the CPU alone."""
    network, (inputs, target) = build_network(), batch_of()
    if name == "mmcosine" and build_network is early:
        with pytest.raises(ValueError, match="that of EarlyFusion does not split"):
            build(name, network)
        return
    heads = strategies[name].default_heads(network, 4)
    strategy = build(name, network, heads=heads)
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    numbers = (torch.arange(8),) if "index" in strategy.needs else ()
    splits = {"train": Loader((inputs, target, *numbers)), "validation": Loader((inputs, target))}
    for epoch in range(3):
        strategy.begin_epoch(epoch, **splits)
        with NothingIsRead():
            list(strategy.steps(inputs, target))
            strategy.statistics()
        strategy.end_epoch(**splits)


def test_the_registry():
    network = late()
    assert isinstance(build("ogm-ge", network, alpha=0.5), strategies["ogm-ge"])
    assert options_of("mlb") == {"alpha": 0.8, "beta_max": 2.0, "weight": 1.0, "moments": "gradient"}
    with pytest.raises(ValueError, match=r"one of joint, agm, .*, but got 'ogmge'"):
        build("ogmge", network)
    with pytest.raises(TypeError, match="Joint has, but got alpha"):
        build("joint", network, alpha=3)


class Paths(nn.Module):
    """A network whose encoders are known by path alone, with one bias and no `unimodal_logits`."""

    def __init__(self, modalities):
        super().__init__()
        parts = late(modalities)
        self.parts = nn.ModuleDict(parts.encoders)
        self.out = parts.classifier

    def forward(self, **inputs):
        return self.out(torch.cat([encoder(inputs[name]) for name, encoder in self.parts.items()], 1))


OF_TWO = ("lfm", "pmr", "aug", "balgrad", "g2d")


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("name", list(strategies))
def test_networks_by_path_train_under_autocast(name, modalities):
    """Every strategy takes a step that changes encoders, or refuses the number of modalities with words."""
    network, (inputs, target) = Paths(modalities), batch_of(modalities)
    settings = {"encoders": {m: f"parts.{m}" for m in inputs}}
    template = early(modalities)
    template.widths = dict.fromkeys(inputs, 5)
    heads = strategies[name].default_heads(template, 4)
    if heads is not None:
        settings["heads"] = heads
    if "widths" in options_of(name):
        settings |= {"widths": template.widths, "num_classes": 4}
    if name == "cggm":
        settings["direction"] = 0.0
    if modalities == 3 and name in OF_TWO:
        with pytest.raises(ValueError, match="two modalities"):
            build(name, network, **settings)
        return
    strategy = build(name, network, **settings)
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.1)
    numbers = (torch.arange(8),) if "index" in strategy.needs else ()
    splits = {"train": Loader((inputs, target, *numbers)), "validation": Loader((inputs, target))}
    before = [p.detach().clone() for p in network.parts.parameters()]
    for epoch in range(2):
        strategy.begin_epoch(epoch, **splits)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for outcome in strategy.steps(inputs, target):
                assert outcome.loss.isfinite()
                strategy.optimizer.step()
        strategy.end_epoch(**splits)
    after = list(network.parts.parameters())
    assert all(p.isfinite().all() for p in after)
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    for kind, value in strategy.statistics().items():
        assert value.shape == (modalities,) or kind not in ("score", "ratio", "coefficient")


@pytest.mark.parametrize("name", [name for name in strategies if name not in ("joint", "agm")])
def test_state_is_where_the_network_is(name):
    """On the meta device, as on a GPU, without moving the strategy."""
    network = late().to("meta")
    heads = strategies[name].default_heads(network, 4)
    heads = heads and {m: head.to("meta") for m, head in heads.items()}
    assert {buffer.device.type for buffer in build(name, network, heads=heads).buffers()} == {"meta"}


class Distributed(nn.parallel.DistributedDataParallel):
    """Its kind alone: no processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize("name", list(strategies))
def test_processes_that_would_decide_alone_are_refused(name):
    network, paths = Distributed(Paths(2)), {m: f"module.parts.{m}" for m in ("audio", "image")}
    if strategies[name].distributed:
        heads = {"heads": {m: LinearHead(5, 4) for m in paths}} if strategies[name].trains_heads else {}
        strategy = build(name, network, encoders=paths, **heads)
        assert strategy.network is network.module
        assert (strategy.module.module if name == "agm" else strategy.module) is network
    else:
        with pytest.raises(ValueError, match="but got a DistributedDataParallel"):
            build(name, network, encoders=paths)


def test_which_train_in_several_processes():
    """Those whose statistics can be summed over the processes; tests/distributed trains them."""
    found = [name for name, kind in strategies.items() if kind.distributed]
    assert found == ["joint", "agm", "ogm", "mslr", "mses", "multi-loss", "hybrid-loss", "mlb", "inforeg", "pmr"]
