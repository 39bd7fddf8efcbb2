import pytest
import torch
import torch.nn.functional as F
from torch import nn

from agm.models import LateFusion
from agm.strategies import UMT, Teacher, build

from .networks import Encoder, Loader, batch_of, late, take


def settings(name):
    return {"prioritise": False} if name == "g2d" else {}


@pytest.mark.parametrize("name", ["umt", "g2d", "irm"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_a_teacher_is_what_a_loop_on_its_modality_makes_of_the_encoder(name, modalities):
    network, (inputs, target) = late(modalities), batch_of(modalities)
    strategy = build(name, network, teacher_epochs=3, **settings(name))
    expected = {}
    for m in inputs:
        encoder, head = Encoder(), nn.Linear(5, 4)
        encoder.load_state_dict(network.encoders[m].state_dict())
        head.load_state_dict(strategy.teachers[m].head.linear.state_dict())
        optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.01, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(head(encoder(inputs[m])), target).backward()
            optimizer.step()
        expected[m] = head.eval()(encoder.eval()(inputs[m]))
    assert strategy.extra_epochs == 0
    split = Loader((inputs, target))
    strategy.begin_epoch(0, train=split)
    assert split.passes == 3 * modalities
    assert strategy.extra_epochs == 3
    strategy.train()
    for m in inputs:
        torch.testing.assert_close(strategy.teachers[m](inputs[m]), expected[m])
        assert not any(p.requires_grad for p in strategy.teachers[m].parameters())


def test_what_is_frozen_in_the_network_is_frozen_in_its_teacher():
    network, (inputs, target) = late(), batch_of()
    network.encoders["audio"].conv.requires_grad_(False)
    strategy = UMT(network, teacher_epochs=2)
    strategy.begin_epoch(0, train=[(inputs, target)])
    own, like = strategy.teachers["audio"].encoder, network.encoders["audio"]
    assert torch.equal(own.conv.weight, like.conv.weight)
    assert not torch.equal(own.linear.weight, like.linear.weight)


def test_teachers_that_are_given():
    """A `Teacher` and a network of one modality; they cost no epochs and need no split."""
    network, (inputs, target) = late(), batch_of()
    audio, image = Encoder(), LateFusion({"image": Encoder()}, 4)
    strategy = UMT(network, teachers={"audio": Teacher(audio, nn.Linear(5, 4)), "image": image})
    assert strategy.needs == frozenset()
    strategy.begin_epoch(0)
    strategy.train()
    features, logits = strategy.taught(strategy.batch(inputs, target))
    torch.testing.assert_close(features["audio"], audio(inputs["audio"]))
    torch.testing.assert_close(logits[1], image(image=inputs["image"]))
    assert strategy.extra_epochs == 0
    before = {name: value.clone() for name, value in strategy.teachers.state_dict().items() if name.endswith("weight")}
    take(strategy, inputs, target)
    assert all(torch.equal(strategy.teachers.state_dict()[name], value) for name, value in before.items())


def test_teachers_that_cannot_be():
    network, (inputs, target) = late(), batch_of()
    with pytest.raises(ValueError, match=r"`teachers` to map each of \('audio', 'image'\)"):
        UMT(network, teachers={"audio": Teacher(Encoder(), nn.Linear(5, 4))})
    with pytest.raises(ValueError, match=r"teacher of 'audio' to be a Teacher\(encoder, head\).*got Encoder. UMT"):
        UMT(network, teachers={m: Encoder() for m in inputs})
    wide = {m: Teacher(nn.Flatten(), nn.Linear(25, 4)) for m in inputs}
    with pytest.raises(ValueError, match=r"shape of the network's, \(8, 5\), but got \(8, 25\)"):
        take(UMT(network, teachers=wide), inputs, target)
    plain = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    plain.forward = lambda a, b: None
    with pytest.raises(ValueError, match="`teachers`, or `widths` and `num_classes`"):
        UMT(plain, encoders={"a": "a", "b": "b"})
    with pytest.raises(ValueError, match="`teacher_epochs` to be an integer >= 1"):
        UMT(network, teacher_epochs=0)
    with pytest.raises(ValueError, match="UMT needs the train split"):
        UMT(network).begin_epoch(0)


def test_the_state_has_the_teachers():
    network, (inputs, target) = late(), batch_of()
    strategy = UMT(network, teacher_epochs=2)
    strategy.begin_epoch(0, train=[(inputs, target)])
    torch.manual_seed(1)
    again = UMT(late(), teacher_epochs=2)
    again.load_state_dict(strategy.state_dict())
    again.begin_epoch(1)  # needs no split
    assert again.extra_epochs == 2
    for one, other in zip(strategy.teachers.parameters(), again.teachers.parameters(), strict=True):
        assert torch.equal(one, other)
