import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.strategies import PDMP

from .networks import Loader, assert_same, batch_of, belongs, early, gradients, gradients_of, late, take


@pytest.mark.parametrize("build", [late, early])
def test_the_given_modality_leads(build):
    network, (inputs, target) = build(3).double(), batch_of(3)
    inputs = {m: x.double() for m, x in inputs.items()}
    plain = gradients_of(network, lambda: F.cross_entropy(network(**inputs), target))
    strategy = PDMP(network, dominant="image", gamma_p=3.0, gamma_r=0.5)
    assert not strategy.needs
    strategy.begin_epoch(0)
    take(strategy, inputs, target)
    factors = {"audio": 0.5, "image": 3.0, "text": 0.5}
    scaled = {n: g * next((k for m, k in factors.items() if belongs(n, m)), 1.0) for n, g in plain.items()}
    assert_same(gradients(network), scaled, rtol=1e-10, atol=1e-14)
    assert strategy.statistics()["coefficient"].tolist() == [0.5, 3.0, 0.5]


def accuracies(network, train, validation, epochs):
    """Of each encoder with a linear layer, trained and counted by hand."""
    layers = {m: nn.Linear(5, 4) for m in network.encoders}
    found = []
    for m, encoder in network.encoders.items():
        model = nn.Sequential(copy.deepcopy(encoder), layers[m]).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for inputs, target in train:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[m]), target).backward()
                optimizer.step()
        model.eval()
        rows = [
            (int(model(inputs[m][i : i + 1]).argmax()) == int(target[i]))
            for inputs, target in validation
            for i in range(8)
        ]
        found.append(sum(rows) / len(rows))
    return found


def test_unimodal_networks_are_ranked_once():
    network = late(3)
    train = Loader(batch_of(3, seed=1), batch_of(3, seed=2))
    validation = Loader(batch_of(3, seed=3), batch_of(3, seed=4))
    torch.manual_seed(7)
    expected = accuracies(network, train, validation, epochs=12)
    best = max(expected)
    assert expected.count(best) == 1
    before = copy.deepcopy(network.state_dict())
    strategy = PDMP(network, ranking_epochs=12)
    torch.manual_seed(7)
    strategy.begin_epoch(0, train=train, validation=validation)
    assert strategy.accuracies.tolist() == pytest.approx(expected)
    assert strategy.extra_epochs == 12
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    take(strategy, *batch_of(3))
    assert strategy.statistics()["coefficient"].tolist() == [2.0 if a == best else 1.0 for a in expected]

    passes = train.passes
    strategy.begin_epoch(1, train=train, validation=validation)
    again = PDMP(late(3))
    again.load_state_dict(strategy.state_dict())
    again.begin_epoch(1, train=train, validation=validation)
    assert train.passes == passes
    assert again.place == strategy.place == expected.index(best)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="`dominant` to be one of 'audio', 'image', but got 'text'"):
        PDMP(late(), dominant="text")
    with pytest.raises(ValueError, match="PDMP needs the validation split"):
        PDMP(late()).begin_epoch(0, train=Loader(batch_of()))
    with pytest.raises(ValueError, match="validation split to hold a sample"):
        PDMP(late(), ranking_epochs=1).begin_epoch(0, train=Loader(batch_of()), validation=[])
    plain = nn.ModuleDict({"ear": nn.Linear(2, 2), "eye": nn.Linear(2, 2)})
    paths = {"audio": "ear", "image": "eye"}
    with pytest.raises(ValueError, match="`dominant`, or `widths` and `num_classes`"):
        PDMP(plain, encoders=paths)
    PDMP(plain, encoders=paths, dominant="audio")
