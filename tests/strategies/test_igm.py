import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import IGM, Draws, linear_heads
from agm.strategies.measuring import macro_f1
from agm.strategies.projectors import soft_projector

from .networks import batch_of, late
from .traces import Recorded, Trace, close, close_parameters


class Recordings(Draws):
    def __init__(self, trace):
        self.numbers, self.orders = iter(trace["mix_lambda"].tolist()), iter(trace["mix_permutation"])

    def beta(self, concentration):
        return next(self.numbers)

    def permutation(self, count, device):
        return next(self.orders)


class Head(nn.Module):
    """Linear, ReLU, linear, linear."""

    def __init__(self, layers):
        super().__init__()
        first, second, third = layers.children()
        self.first, self.second, self.third = first, second, third

    def forward(self, x):
        return self.third(self.second(torch.relu(self.first(x))))


@pytest.mark.parametrize("name", ["igm_a", "igm_c"])
def test_replays_the_released_stages(name):
    trace = Trace(name)
    s = trace.settings
    paths = {"audio": "audio_encoder.net", "visual": "video_encoder.net"}
    network = Recorded(trace, paths, lambda net, h: None, start="start0/")
    for path in paths.values():
        # Mixed in the inputs' float32, as recorded.
        network.get_submodule(path).register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    strategy = IGM(
        network,
        encoders=paths,
        heads={"audio": Head(network.cls_a), "visual": Head(network.cls_v)},
        stages=s["stages"],
        rho=s["rho_encoder"],
        rho_head=s["rho_head"],
        flat=s["flat"],
        temperature=s["temperature"],
        released=True,
    )
    strategy.draws = Recordings(trace)
    strategy.optimizer = trace.sgd(strategy.parameters())
    inputs = {m: trace[m] for m in trace.modalities}
    validation = [({m: trace[f"test/{m}"] for m in trace.modalities}, trace["test/target"])]

    def batches(order):
        return [({m: x[rows] for m, x in inputs.items()}, trace["target"][rows]) for rows in order.split(s["batch"])]

    step, names = 0, {id(module): path for path, module in network.named_modules()}
    for epoch in range(sum(s["stages"])):
        stage, since = strategy._stage_of(epoch)
        train = batches(trace["covariance_order"][stage - 1]) if stage else None
        strategy.begin_epoch(epoch, train=train, validation=validation)
        if not since:
            for key, value in trace.state(f"start{stage}/").items():
                close(network.state_dict()[key], value, f"{key} at the start of stage {stage}")
            expected = trace.state(f"projector{stage}/")
            found = {f"{names[id(strategy.get_submodule(p))]}.weight": v for p, v in strategy.projectors.items()}
            assert found.keys() == expected.keys()
            for key, value in expected.items():
                close(found[key], value, f"projector of {key}")
        for picked, target in batches(trace["order"][epoch]):
            assert trace.modalities[int(trace["modality"][step])] == strategy.trained
            for _ in strategy.steps(picked, target):
                close_parameters(network, trace, "grad/", step)
                for key, p in network.named_parameters():
                    close(p.detach(), trace[f"perturbed/{key}"][step], f"perturbed {key}")
                strategy.optimizer.step()
            close_parameters(network, trace, "weight/", step)
            close(strategy.statistics()["terms"], trace["terms"][step], "losses")
            step += 1
        close(macro_f1(strategy._predicted, validation), trace["score"][epoch, 2], "score")
        strategy.end_epoch(validation=validation)
    assert step == s["steps"]


def test_replays_the_steps_of_the_paper():
    trace = Trace("igm_a_paper")
    s = trace.settings
    paths = {m: f"{m}_net" for m in trace.modalities}
    network = Recorded(trace, paths, lambda net, h: None)
    strategy = IGM(
        network,
        encoders=paths,
        heads={"audio": network.audio_head, "visual": network.visual_head},
        rho=s["rho"],
        temperature=s["temperature"],
    )
    optimizer = trace.sgd(strategy.parameters())
    batches = [(trace.inputs(step), trace["target"][step]) for step in range(s["steps_per_epoch"])]
    for step in range(s["steps"]):
        epoch, place = divmod(step, len(batches))
        if not place:
            strategy.begin_epoch(epoch, train=batches)
        for _ in strategy.steps(*batches[place]):
            close_parameters(network, trace, "grad/", step)
            optimizer.step()
        close_parameters(network, trace, "weight/", step)
        close(strategy.statistics()["terms"], trace["terms"][step], "losses")
        if place == len(batches) - 1:
            name = strategy.trained
            strategy.end_epoch(train=batches)
            close(strategy.covariances[name], trace["covariance"][epoch], "covariance")
            close(strategy.projectors[name], trace["projector"][epoch], "projector")


def test_the_prediction_is_the_mean_of_the_softmaxes():
    network, (inputs, target) = late(3).eval(), batch_of(3)
    strategy = IGM(network, heads=linear_heads(network.widths, 4))
    alone = [strategy.heads[m](network.encoders[m](inputs[m])).softmax(1) for m in inputs]
    found = strategy.predictor(**inputs)
    torch.testing.assert_close(found.exp(), sum(alone) / 3, rtol=1e-4, atol=1e-6)
    hits = found.argmax(1)
    rows = []
    for k in set(target.tolist()) | set(hits.tolist()):
        both = ((hits == k) & (target == k)).sum()
        rows.append(float(2 * both / ((hits == k).sum() + (target == k).sum())))
    assert macro_f1(strategy._predicted, [(inputs, target)]) == pytest.approx(sum(rows) / len(rows))
    (outcome,) = strategy.steps(inputs, target)
    own = F.cross_entropy(alone[0].log(), target).detach()
    torch.testing.assert_close(outcome.loss, own, rtol=1e-4, atol=1e-6)


def test_only_the_modality_of_the_stage_is_trained():
    network, (inputs, target) = late(), batch_of()
    strategy = IGM(network, heads=linear_heads(network.widths, 4), stages=(2, 1))
    trained = []
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    for epoch in range(4):
        strategy.begin_epoch(epoch)
        trained.append(strategy.trained)
        list(strategy.steps(inputs, target))
        moved = {name for name, p in network.named_parameters() if p.grad is not None}
        assert moved
        assert all(strategy.trained in name for name in moved)
        for name, buffer in network.named_buffers():
            if trained == ["audio"] and "image" in name:
                assert torch.equal(buffer, before[name])
        strategy.end_epoch(train=[(inputs, target)])
    assert trained == ["audio", "audio", "image", "audio"]
    again = IGM(late(), heads=linear_heads(network.widths, 4))
    again.load_state_dict(strategy.state_dict())
    assert torch.equal(again.projectors["audio"], strategy.projectors["audio"])


def test_equal_eigenvalues_leave_the_identity():
    torch.testing.assert_close(soft_projector(torch.zeros(3, 3), 0.4), torch.eye(3))


def test_heads_are_needed():
    with pytest.raises(ValueError, match="`heads` to map each modality to its head"):
        IGM(late())
