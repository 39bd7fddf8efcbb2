"""Balanced modality selection, its parts followed by hand and its rounds over clients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agm.federated import Client, Federation, LocalClients, ModalEnhancement, average, merge_prototypes, select
from agm.models import LateFusion
from agm.strategies import OGM


class Encoder(nn.Module):
    num_features = 4

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(inputs, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x)))


def network() -> LateFusion:
    torch.manual_seed(0)
    return LateFusion({"audio": Encoder(3), "image": Encoder(5)}, 3)


def batches(seed: int, count: int = 2, samples: int = 8) -> list[tuple[dict[str, Tensor], Tensor]]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        target = torch.randint(3, (samples,), generator=random)
        audio = torch.eye(3)[target] + 0.3 * torch.randn(samples, 3, generator=random)
        image = torch.eye(5)[target] + 0.7 * torch.randn(samples, 5, generator=random)
        found.append(({"audio": audio, "image": image}, target))
    return found


def test_each_tensor_is_averaged_over_those_that_sent_it():
    current = {"a": torch.zeros(2), "b": torch.full((1,), 5.0), "n": torch.tensor(1)}
    updates = [{"a": torch.ones(2), "n": torch.tensor(4)}, {"a": torch.full((2,), 3.0), "n": torch.tensor(2)}]
    merged = average(current, updates, [10, 30])
    assert merged["a"].tolist() == [2.5, 2.5]
    assert merged["b"].tolist() == [5.0]
    assert merged["n"] == 4
    with pytest.raises(ValueError, match="that the network has, but got c"):
        average(current, [{"c": torch.ones(1)}], [1])
    with pytest.raises(ValueError, match="one number of samples"):
        average(current, updates, [1])


def test_prototypes_are_weighted_by_the_samples_of_their_class():
    first, second = torch.tensor([[1.0], [7.0], [0.0]]), torch.tensor([[4.0], [0.0], [0.0]])
    counts = [torch.tensor([1, 2, 0]), torch.tensor([2, 0, 0])]
    merged, known = merge_prototypes({}, None, [{"m": first}, {"m": second}], counts)
    assert merged["m"][:2].flatten().tolist() == [3.0, 7.0]
    assert known.tolist() == [True, True, False]
    later, known = merge_prototypes(merged, known, [{"m": torch.full((3, 1), 9.0)}], [torch.tensor([0, 0, 4])])
    assert later["m"].flatten().tolist() == [3.0, 7.0, 9.0]
    assert known.all()


def by_hand(joint, own, ratios, samples, count, threshold):
    """Of all clients at once, in plain loops."""
    names = list(own)
    overall = sum(r * n for r, n in zip(ratios, samples, strict=True)) / sum(samples)
    kinds = {None: joint, **own}
    nearest = {kind: [1e11] * (len(joint) + 1) for kind in kinds}
    chosen = []

    def gap(kind, k, i):
        rows = kinds[kind]
        return float(((rows.mean(0) if k == len(rows) else rows[k]) - rows[i]).norm())

    def best(kind):
        left = [i for i in range(len(joint)) if i not in [c for c, _ in chosen]]
        return min(
            left, key=lambda i: round(sum(min(nearest[kind][k], gap(kind, k, i)) for k in range(len(joint) + 1)), 8)
        )

    for _ in range(count):
        pick, kind = best(None), None
        if overall != 1:
            behind = names[1] if overall > 1 else names[0]
            other = best(behind)
            if (overall > 1 and ratios[other] > threshold) or (overall < 1 and ratios[other] < 1 / threshold):
                pick, kind = other, behind
        nearest[kind] = [min(now, gap(kind, k, pick)) for k, now in enumerate(nearest[kind])]
        chosen.append((pick, kind))
    return chosen


@pytest.mark.parametrize("ahead", [1.3, 0.7, None])
def test_clients_and_modalities_are_selected_by_the_greedy_rule(ahead):
    random = torch.Generator().manual_seed(3)
    own = {"audio": torch.randn(9, 3, generator=random), "image": torch.randn(9, 4, generator=random)}
    joint = torch.cat(list(own.values()), 1).double()
    own = {name: rows.double() for name, rows in own.items()}
    ratios = [1.0] * 9 if ahead is None else (ahead + 0.5 * torch.randn(9, generator=random)).tolist()
    samples = torch.randint(5, 50, (9,), generator=random).tolist()
    found = select(joint, own, ratios, samples, 6, share=1.0)  # from all that are left
    expected = by_hand(joint, own, ratios, samples, 6, 1.0)
    assert [(choice.client, choice.modality) for choice in found] == expected
    kinds = {kind for _, kind in expected}
    assert kinds == ({None} if ahead is None else {None, "image" if ahead > 1 else "audio"})


def test_choices_are_made_among_a_random_part():
    joint = torch.randn(30, 2)
    own = {"audio": joint, "image": joint}
    picks = {select(joint, own, [1.0] * 30, [1] * 30, 2)[0].client for _ in range(40)}
    assert len(picks) > 5
    with pytest.raises(ValueError, match="1 <= count <= 30"):
        select(joint, own, [1.0] * 30, [1] * 30, 31)
    with pytest.raises(ValueError, match="two modalities"):
        select(joint, {"audio": joint}, [1.0] * 30, [1] * 30, 2)


def test_a_report_is_the_gradient_of_all_samples_and_changes_nothing():
    net = network()
    client = Client(ModalEnhancement(net), batches(1))
    before = copy.deepcopy(net.state_dict())
    report = client.report(before, {}, None)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    total = torch.zeros_like(net.encoders["audio"].linear.weight)
    for inputs, target in client.batches:
        net.zero_grad()
        F.cross_entropy(net(**inputs), target).backward()
        total += net.encoders["audio"].linear.weight.grad / 2
    torch.testing.assert_close(report.own["audio"][:12], total.flatten(), rtol=1e-4, atol=1e-6)
    assert report.samples == 16
    net.load_state_dict(before)
    net.eval()
    features = torch.cat([net.encoders["audio"](inputs["audio"]) for inputs, _ in client.batches])
    target = torch.cat([t for _, t in client.batches])
    torch.testing.assert_close(report.prototypes["audio"][1], features[target == 1].mean(0).detach())
    assert report.counts.tolist() == [int((target == k).sum()) for k in range(3)]


def test_a_client_of_one_modality_trains_and_sends_it_alone():
    net = network()
    first = {name: value.clone() for name, value in net.state_dict().items()}
    client = Client(ModalEnhancement(net), batches(1), epochs=2)
    report = client.report(first, {}, None)
    update = client.fit(first, report.prototypes, report.counts > 0, "audio")
    assert not any(name.startswith("encoders.image.") for name in update.weights)
    assert {name for name in first if not name.startswith("encoders.image.")} == update.weights.keys()
    assert not torch.equal(update.weights["encoders.audio.linear.weight"], first["encoders.audio.linear.weight"])
    assert torch.equal(net.encoders["image"].linear.weight, first["encoders.image.linear.weight"])
    assert torch.equal(update.weights["classifier.weight"][:, 4:], first["classifier.weight"][:, 4:])


def test_the_loss_of_one_modality_against_the_formula():
    net, ((inputs, target), *_) = network().eval(), batches(2)
    prototypes = {"audio": torch.randn(3, 4), "image": torch.randn(3, 4)}
    strategy = ModalEnhancement(net, alpha=0.7)
    strategy.receive(prototypes, torch.ones(3, dtype=torch.bool), "image")
    feature = net.encoders["image"](inputs["image"])
    logits = net.fuse({"audio": torch.zeros(8, 4), "image": feature})
    distances = -(feature.unsqueeze(1) - prototypes["image"]).norm(dim=2)
    expected = F.cross_entropy(logits, target) + 0.7 * F.cross_entropy(distances, target)
    torch.testing.assert_close(strategy.loss(strategy.batch(inputs, target)), expected)
    strategy.receive(prototypes, torch.ones(3, dtype=torch.bool))
    strategy.loss(strategy.batch(inputs, target))
    assert sorted(strategy.latest["coefficient"].tolist()) == [0.0, 1.0]  # a hard switch


@pytest.mark.parametrize("kind", [ModalEnhancement, OGM])
def test_rounds_learn_with_any_strategy(kind):
    torch.manual_seed(0)
    clients = [
        Client(
            kind(network(), alpha=0.5),
            batches(seed),
            epochs=2,
            make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        )
        for seed in range(6)
    ]
    server = network()
    federation = Federation(
        server.state_dict(), LocalClients(clients), count=3, generator=torch.Generator().manual_seed(0)
    )

    def loss():
        server.load_state_dict(federation.weights)
        server.eval()
        return sum(float(F.cross_entropy(server(**i), t).detach()) for seed in range(6) for i, t in batches(seed)) / 12

    before = loss()
    choices = [choice for _ in range(4) for choice in federation.round()]
    assert len(choices) == 12
    assert {choice.modality for choice in choices} >= {"image"}  # the sound is ahead everywhere
    assert loss() < 0.8 * before
    assert federation.known.all()
    assert set(federation.prototypes) == {"audio", "image"}
