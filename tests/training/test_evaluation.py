import itertools

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score

from agm import models
from agm.data import Split
from agm.training import evaluate, measure_contributions, train

SHAPES = {"audio": (6,), "image": (1, 4, 4), "text": (5,)}


def network_and_split(names: tuple[str, ...]) -> tuple[torch.nn.Module, Split]:
    torch.manual_seed(0)
    shapes = {name: SHAPES[name] for name in names}
    network = models.build("early", shapes, 4, width=8)
    inputs = {name: torch.randn(41, *shape) for name, shape in shapes.items()}
    with torch.no_grad():
        network(**inputs)  # running statistics other than their initial ones
    return network, Split(inputs, torch.randint(4, (41,)))


def by_hand(network: torch.nn.Module, split: Split, present: set[str]) -> torch.Tensor:
    """Logits with the other modalities' inputs put to zero."""
    inputs = {name: values if name in present else torch.zeros_like(values) for name, values in split.inputs.items()}
    with torch.no_grad():
        return network(**inputs)


def accuracy(logits: torch.Tensor, split: Split) -> float:
    return (logits.argmax(-1) == split.target).double().mean().item()


@pytest.mark.parametrize("batch_size", [256, 7])
def test_three_modalities_against_zeroed_inputs(batch_size):
    names = ("audio", "image", "text")
    network, split = network_and_split(names)
    figures = evaluate(network, split, names, batch_size)

    network.eval()
    z = {
        frozenset(group): by_hand(network, split, set(group))
        for size in (1, 2, 3)
        for group in itertools.combinations(names, size)
    }
    full = z[frozenset(names)]
    assert figures.samples == 41
    assert figures.accuracy == pytest.approx(accuracy(full, split))
    assert figures.loss == pytest.approx(F.cross_entropy(full, split.target).item(), rel=1e-5)
    for name in names:
        b, c = (other for other in names if other != name)
        # The responses of three modalities, written out as in the paper's code.
        phi = (full - z[frozenset({b, c})] + z[frozenset({name})]) / 3 + (
            z[frozenset({name, b})] - z[frozenset({b})] + z[frozenset({name, c})] - z[frozenset({c})]
        ) / 6
        assert figures.responses[name] == pytest.approx(accuracy(phi, split))
        assert figures.absent[name] == pytest.approx(accuracy(z[frozenset({b, c})], split))
    assert list(figures.columns()) == [
        *("loss", "accuracy", "response_audio", "response_image", "response_text"),
        *("absent_audio", "absent_image", "absent_text", "macro_f1"),
    ]
    expected = f1_score(split.target, full.argmax(-1), average="macro", labels=range(4), zero_division=0)
    assert figures.further == pytest.approx({"macro_f1": expected})


def test_one_modality_is_its_own_response_and_cannot_be_absent():
    network, split = network_and_split(("image",))
    figures = evaluate(network, split, ("image",))
    network.eval()
    assert figures.accuracy == pytest.approx(accuracy(by_hand(network, split, {"image"}), split))
    assert figures.responses == {"image": figures.accuracy}
    assert figures.absent == {}


def test_modes_and_weights_are_left_alone():
    network, split = network_and_split(("audio", "image"))
    network.train()
    network.encoders["image"].eval()
    modes = [module.training for module in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    evaluate(network, split, ("audio", "image"))
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_contributions_of_a_run_are_those_of_its_test_split(settings, tmp_path, data):
    result = train(settings(epochs=1, method="joint"), tmp_path / "run")
    figures = measure_contributions(result, batch_size=7)
    assert figures.samples == 30
    assert figures.accuracy == pytest.approx(result.evaluation.accuracy)
    assert figures.responses == pytest.approx(result.evaluation.responses)
    assert figures.alone["image"] == pytest.approx(result.evaluation.absent["audio"])
    assert figures.empty == max(torch.bincount(data.test.target).tolist()) / 30
    assert sum(figures.contributions.values()) == pytest.approx(figures.accuracy - figures.empty)


@pytest.mark.parametrize("names", [("image",), ("audio", "image")])
def test_logits_that_are_no_numbers_are_wrong(names):
    network, split = network_and_split(names)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    figures = evaluate(network, Split(split.inputs, torch.zeros(41, dtype=torch.long)), names)  # argmax gives class 0
    assert figures.accuracy == 0.0
    assert set(figures.responses.values()) | set(figures.absent.values()) == {0.0}


def test_modalities_in_another_order_than_in_the_split():
    network, split = network_and_split(("audio", "image"))
    present = torch.ones(41, 2, dtype=torch.bool)
    present[:20, 0], present[30:, 1] = False, False
    lacking = Split(split.inputs, split.target, present)
    one, two = (evaluate(network, lacking, names) for names in (("audio", "image"), ("image", "audio")))
    assert one.accuracy == two.accuracy
    assert one.responses == two.responses
    assert one.absent == two.absent
