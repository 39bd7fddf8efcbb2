"""Strategies in the trainer: the same as in a loop by hand, resumed exactly, and refused where they cannot be."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm import models
from agm.strategies import MSLR, OGMGE, Draw, Joint, strategies
from agm.training import UserError, methods, schedule, train, training_loop
from agm.training.clipping import clip_gradients_, head_weights
from agm.training.config import Config
from agm.training.run_folder import read_table
from agm.training.samples import Passes, hold_out

SHAPES = {"audio": (6,), "image": (1, 4, 4)}

# Settings under which each of them does something within a few epochs.
ACTIVE = {
    "joint": {},
    "agm": {"smoothing": 0.5, "bound": 0.5},
    "ogm": {"alpha": 0.8},
    "ogm-ge": {"alpha": 0.8},
    "mslr": {"window": 1, "initial": {"audio": 0.5, "image": 1.5}},
    "mses": {"patience": 0, "smoothing": 0.0},
    "hybrid-loss": {"divergence": 0.5},
    "multi-loss": {},
    "g-blending": {"super_epoch": 1},
    "mlb": {"beta_max": 10},
    "inforeg": {"threshold": 0, "multi_loss": True},
    "mmpareto": {},
    "cggm": {},
    "relearning": {"every": 1},
    "valuation": {"warmup": 1},
    "mcr": {"samples": 2},
    "lfm": {},
    "amss-plus": {},
    "amss": {},
    "pmr": {},
    "mla": {},
    "aug": {"check": 1},
    "igm": {},
    "amgb": {},
    "bss": {},
    "dus": {},
    "balgrad": {},
    "irm": {"teacher_epochs": 1},
    "dgl": {},
    "pdmp": {"ranking_epochs": 1},
    "remix": {"warmup": 1},
    "opm": {"p_exe": 1.0},
    "mmcosine": {},
    "cml": {},
    "amco": {"sigma": 0.4},
    "arl": {"warmup": 1},
    "umt": {"teacher_epochs": 1},
    "g2d": {"teacher_epochs": 2},
    "mbsd": {},
    "reconboost": {"stage_epochs": 1, "rectify_epochs": 1},
    "di-mml": {"stage_epochs": 3, "contrast_from": 1},
    "ensemble": {},
    "stacked": {},
}


JOINT = {}


def weights(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same(left, right) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left if isinstance(left[name], torch.Tensor))


class Copying(training_loop.Observer):
    """Keeps what a run leaves that is killed after an epoch."""

    def __init__(self, folder):
        self.folder = folder

    def epoch_finished(self, row):
        shutil.copytree(self.folder, f"{self.folder}-{row['epoch']}")


def test_every_strategy_is_a_method():
    assert set(ACTIVE) == set(strategies), "give each its options in ACTIVE, with which it acts in the first epochs"
    assert {name for name in methods.METHODS if ":" not in name} == set(strategies)


@pytest.mark.parametrize("method", [name for name in ACTIVE if name != "joint"])
def test_a_resumed_run_ends_as_an_uninterrupted_one(settings, tmp_path, method):
    config = settings(method=method, options=ACTIVE[method], validation=0.3, epochs=4, lr=0.2)
    if method == "mmcosine":
        config = replace(config, fusion="late")
    whole = train(config, tmp_path / "whole", observer=Copying(tmp_path / "whole"))
    after = min(3, len(whole.history) - 1)
    cut = tmp_path / f"whole-{after}"
    assert not same(weights(tmp_path / "whole"), weights(cut))
    torch.manual_seed(999)
    parts = train(config, cut, resume=True)
    assert len(parts.history) == len(whole.history)
    assert same(weights(tmp_path / "whole"), weights(cut))
    assert (tmp_path / "whole/steps.csv").read_text() == (cut / "steps.csv").read_text()
    assert (tmp_path / "whole/result.json").read_text() == (cut / "result.json").read_text()
    if config.fusion not in JOINT:  # one run serves for all
        joint = train(replace(config, method="joint", options={}), tmp_path / "joint")
        JOINT[config.fusion] = joint.network.state_dict()
    found = {name: value for name, value in whole.network.state_dict().items() if name.startswith("encoders.")}
    assert found
    assert not same(found, JOINT[config.fusion])


@pytest.mark.parametrize("fusion", ["late-sum", "film", "gated", "cross-attention", "guided-attention"])
def test_every_strategy_takes_a_step_under_every_fusion(settings, data, fusion):
    rows = torch.arange(12)
    inputs, target = {m: x[rows] for m, x in data.train.inputs.items()}, data.train.target[rows]
    for method in strategies:
        if method == "mmcosine" and fusion != "late-sum":
            with pytest.raises(UserError, match=r"does not split\. Use late fusion.*This is method 'mmcosine' with"):
                methods.build_method(settings(method=method, fusion=fusion), SHAPES, 3)
            continue
        options = ACTIVE[method] | ({"direction": 0.0} if (method, fusion) == ("cggm", "late-sum") else {})
        built = methods.build_method(settings(method=method, fusion=fusion, options=options, epochs=4), SHAPES, 3)
        strategy = built.strategy
        strategy.optimizer = methods.new_optimizer(settings(), strategy.parameters())
        numbers = (rows,) if "index" in strategy.needs else ()
        splits = {"train": [(inputs, target, *numbers)], "validation": [(inputs, target)]}
        strategy.begin_epoch(0, **splits)
        for outcome in strategy.steps(inputs, target, index=rows):
            assert outcome.logits.shape == (12, 3), method
            strategy.optimizer.step()
        strategy.end_epoch(**splits)
        logits = built.network.eval()(**inputs)
        assert logits.isfinite().all(), method
        assert all(p.isfinite().all() for p in strategy.parameters()), method


def test_the_trainer_does_what_a_loop_by_hand_does(settings, data, tmp_path):
    config = settings(method="mslr", fusion="late", options=ACTIVE["mslr"], validation=0.3, lr=0.2)
    train(config, tmp_path / "run")
    torch.manual_seed(0)
    network = models.build("late", SHAPES, 3, width=8)
    strategy = MSLR(network, window=1, initial={"audio": 0.5, "image": 1.5})
    optimizer = torch.optim.SGD(strategy.parameters(), lr=config.lr, momentum=0.9, weight_decay=1e-4)
    split = hold_out(data, config)
    for epoch in range(3):
        optimizer.param_groups[0]["lr"] = schedule.learning_rate(config, epoch)
        strategy.begin_epoch(epoch)
        for index in training_loop.batches(len(split.train), 16, 0, epoch):
            inputs = {name: values[index] for name, values in split.train.inputs.items()}
            for _ in strategy.steps(inputs, split.train.target[index]):
                optimizer.step()
        strategy.end_epoch(validation=[(split.validation.inputs, split.validation.target)])
    for name, value in strategy.state_dict().items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-4, atol=1e-6)
    rows = read_table(tmp_path / "run/steps.csv")
    assert [rows[0]["coefficient_audio"], rows[0]["coefficient_image"]] == [0.5, 1.5]
    assert [rows[-1]["coefficient_audio"], rows[-1]["coefficient_image"]] != [0.5, 1.5]


def test_a_refusal_says_where_a_setting_was_given(settings):
    with pytest.raises(UserError, match=r"`alpha`.* It was set for method 'ogm-ge', by --option"):
        methods.build_method(settings(method="ogm-ge", options={"alpha": -1.0}), SHAPES, 3)
    with pytest.raises(UserError, match=r"This is method 'mmcosine' with early fusion\.$"):
        methods.build_method(settings(method="mmcosine", fusion="early"), SHAPES, 3)


def test_a_share_of_the_training_split_is_held_out(settings, data, tmp_path):
    config = settings(validation=0.3)
    parts, again, other = (hold_out(data, c) for c in (config, config, replace(config, seed=1)))
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (34, 15, 30)
    assert torch.equal(parts.validation.inputs["audio"], again.validation.inputs["audio"])
    assert not torch.equal(parts.validation.inputs["audio"], other.validation.inputs["audio"])
    rows = torch.cat([parts.train.inputs["audio"], parts.validation.inputs["audio"]])
    assert sorted(rows.tolist()) == sorted(data.train.inputs["audio"].tolist())
    assert torch.equal(parts.test.inputs["audio"], data.test.inputs["audio"])
    assert hold_out(data, replace(config, validation=0.0)) is data

    result = train(config, tmp_path / "run")
    table = read_table(tmp_path / "run/metrics.csv")
    assert {row["split"] for row in table} == {"validation"}
    assert result.evaluation.samples == 30
    network = result.network.eval()
    with torch.no_grad():
        hits = network(**parts.validation.inputs).argmax(1) == parts.validation.target
    assert table[-1]["accuracy"] == pytest.approx(hits.float().mean().item())


def test_a_share_that_cannot_be_held_out(data):
    with pytest.raises(UserError, match=r"leave 2 or more, but got 0\.99"):
        hold_out(data, Config(validation=0.99))
    with pytest.raises(UserError, match="1 of the 49 training samples or more"):
        hold_out(data, Config(validation=0.001))
    with pytest.raises(UserError, match="validation split of their own"):
        hold_out(hold_out(data, Config(validation=0.3)), Config(validation=0.3))


def test_passes_are_in_another_order_each_time(data):
    first, again = (Passes(data.train, 16, (0, 1)) for _ in range(2))
    orders = [torch.cat([target for _, target in passes]) for passes in (first, first, again, Passes(data.train, 16))]
    assert not torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])
    assert torch.equal(orders[3], data.train.target)
    assert orders[0].sort().values.equal(orders[3].sort().values)


def test_training_ends_when_the_strategy_has_finished(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(strategies["mses"], "finished", property(lambda self: self.epoch >= 1 and self.training))
    result = train(settings(method="mses", validation=0.3, epochs=5), tmp_path / "run")
    assert len(result.history) == 2
    assert len(read_table(tmp_path / "run/metrics.csv")) == 2


def test_a_strategy_draws_the_samples(settings, data, tmp_path, monkeypatch):
    """Every sample twice, the second time without its image."""
    seen = []

    class Resampling(Joint):
        def draw(self, order):
            present = torch.ones(2 * len(order), 2, dtype=torch.bool)
            present[len(order) :, 1] = False
            return Draw(torch.cat([order, order]), present)

        def steps(self, inputs, target, *, index=None, present=None):
            assert torch.equal(target, data.train.target[index])
            seen.extend(zip(index.tolist(), present[:, 1].tolist(), strict=True))
            return super().steps(inputs, target, index=index, present=present)

    monkeypatch.setattr(methods, "strategies", {**strategies, "joint": Resampling})
    result = train(settings(method="joint", epochs=1), tmp_path / "run")
    assert sorted(seen) == sorted((index, image) for index in range(49) for image in (True, False))
    assert result.history[0]["step"] == 7
    assert 0 <= result.history[0]["train_accuracy"] <= 1


def test_no_batch_reaches_across_the_cuts_of_a_draw(settings, data, tmp_path, monkeypatch):
    taken = []

    class Parted(Joint):
        needs = frozenset({"index"})

        def draw(self, order):
            return Draw(torch.arange(49), cuts=(0, 5, 30))

        def steps(self, inputs, target, *, index=None, present=None):
            taken.append(index.tolist())
            return super().steps(inputs, target, index=index, present=present)

    monkeypatch.setattr(methods, "strategies", {**strategies, "joint": Parted})
    result = train(settings(method="joint", epochs=1), tmp_path / "run")  # batches of at most 16
    assert [(rows[0], rows[-1]) for rows in taken] == [(0, 4), (5, 17), (18, 29), (30, 39), (40, 48)]
    assert [row for rows in taken for row in rows] == list(range(49))
    assert result.history[0]["step"] == 5


def clip_case():
    torch.manual_seed(0)
    network = models.build("late", SHAPES, 3, width=8)
    inputs = {"audio": torch.randn(8, 6), "image": torch.randn(8, 1, 4, 4)}
    F.cross_entropy(network(**inputs), torch.randint(3, (8,))).backward()
    return network, head_weights(network)


def norm_of(network) -> float:
    return torch.stack([p.grad.norm() for p in network.parameters()]).norm().item()


def test_clipping_is_that_of_torch():
    network, head = clip_case()
    other, _ = clip_case()
    assert clip_gradients_(network.parameters(), 0.05, head).item() == pytest.approx(norm_of(other))
    nn.utils.clip_grad_norm_(other.parameters(), 0.05)
    for left, right in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)


@pytest.mark.parametrize("clips", [True, False])
def test_the_authors_clip_where_the_gradient_of_the_head_is_large(clips):
    network, head = clip_case()
    assert [p.shape for p in head] == [(3, 16)]
    largest, before = head[0].grad.abs().max().item(), norm_of(network)
    clip_gradients_(network.parameters(), 0.05, head, above=largest * (0.9 if clips else 1.1))
    assert norm_of(network) == pytest.approx(0.05 if clips else before, rel=1e-3)
    summed = models.build("late-sum", SHAPES, 3, width=8)
    assert [p.shape for p in head_weights(summed)] == [(3, 8), (3, 8)]


def test_noise_follows_the_seed(settings, tmp_path):
    config = settings(method="ogm-ge", fusion="late", epochs=1)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        train(replace(config, seed=seed), tmp_path / name)
    assert same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    assert not same(weights(tmp_path / "one"), weights(tmp_path / "three"))
    assert isinstance(methods.build_method(config, SHAPES, 3).strategy, OGMGE)


def test_copies_of_g_blending_train_at_the_present_learning_rate(settings):
    config = settings(method="g-blending", lr=0.1, momentum=0.5)
    strategy = methods.build_method(config, SHAPES, 3).strategy
    assert len(strategy.heads) == 2  # early fusion does not split
    assert strategy.make_optimizer(strategy.parameters()).param_groups[0]["lr"] == 0.1
    strategy.optimizer = torch.optim.SGD(strategy.parameters(), lr=0.003)
    group = strategy.make_optimizer(strategy.parameters()).param_groups[0]
    assert (group["lr"], group["momentum"]) == (0.003, 0.5)
