import pytest
import torch
from torch import nn

from agm import models
from agm.competition import alone, fused_features, mono_modal_concept

SHAPES = {"audio": (6,), "image": (1, 4, 4)}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(5, *shape, generator=generator) for name, shape in SHAPES.items()}


def network(fusion: str, names=("audio", "image")) -> nn.Module:
    torch.manual_seed(0)
    return models.build(fusion, {name: SHAPES[name] for name in names}, 3, width=8)


@pytest.mark.parametrize("fusion", sorted(models.fusions))
def test_fused_features_of_the_fusions(inputs, fusion):
    net = network(fusion)
    net(**inputs)
    net.train()
    net.encoders["audio"].eval()  # frozen
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    features = fused_features(net, inputs)
    assert not features.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    expected = net.fused_features({name: net.encoders[name](x) for name, x in inputs.items()})
    assert torch.equal(features, expected)
    if hasattr(net, "classifier"):
        assert torch.equal(features, fused_features(net, inputs, layer="classifier"))
        torch.testing.assert_close(net.classifier(features), net(**inputs))


class Plain(nn.Module):
    """Takes its modalities by position, and calls parts of itself in all sorts of ways."""

    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(16, 4)})
        self.act = nn.ReLU(inplace=True)
        self.twice = nn.Identity()
        self.unused = nn.Identity()
        self.to_scalar = nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, x, y):
        hidden = torch.stack([self.twice(self.body["a"](x)), self.twice(self.body["b"](y.flatten(1)))], 1)
        self.to_scalar(hidden.sum())
        return self.head(self.act(input=hidden).flatten(1))


def test_a_layer_of_any_network(inputs):
    net = Plain()
    features = fused_features(net, inputs, layer="head")
    hidden = torch.stack([net.body["a"](inputs["audio"]), net.body["b"](inputs["image"].flatten(1))], 1)
    assert torch.equal(features, hidden.relu().flatten(1))
    # By keyword, with dimensions of its own, before it works in place.
    assert torch.equal(fused_features(net, inputs, layer="act"), hidden.flatten(1))
    assert not net.head._forward_pre_hooks


def test_layers_that_do_not_fit(inputs):
    net = Plain()
    for layer, message in [
        (None, r"`layer` to name the module of Plain"),
        ("haed", r"path of a module in Plain, but got 'haed'"),
        ("twice", r"'twice'.*run once.*ran 2 times"),
        ("unused", r"'unused'.*ran 0 times"),
        ("to_scalar", r"one row for each of the 5 samples, but got \(\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            fused_features(net, inputs, layer=layer)
    assert not any(module._forward_pre_hooks for module in net.modules())
    with pytest.raises(ValueError, match="image"):
        fused_features(network("late"), {"audio": inputs["audio"]})


def test_inputs_with_the_others_absent(inputs):
    only = alone(inputs, "audio")
    assert only["audio"] is inputs["audio"]
    assert torch.equal(only["image"], torch.zeros(5, 1, 4, 4))
    row = torch.rand(1, 4, 4)
    assert torch.equal(alone(inputs, "audio", {"image": row})["image"], row.expand(5, 1, 4, 4))
    assert torch.equal(alone(inputs, "audio", {"image": lambda x: -x})["image"], -inputs["image"])
    text = {"ids": torch.ones(5, 7, dtype=torch.int64), "mask": torch.rand(5, 7) > 0.5}
    absent = alone({**inputs, "text": text}, "image", {"text": {"ids": 3, "mask": None}})["text"]
    assert torch.equal(absent["ids"], torch.full((5, 7), 3))
    assert torch.equal(absent["mask"], text["mask"])
    with pytest.raises(ValueError, match=r"`modality` to be one of \('audio', 'image'\), but got 'text'"):
        alone(inputs, "text")
    with pytest.raises(ValueError, match=r"`absent`.*'text'"):
        alone(inputs, "audio", {"text": 0})
    with pytest.raises(ValueError, match="same number of samples"):
        alone({**inputs, "image": inputs["image"][:4]}, "audio")


def test_concepts(inputs):
    whole = network("early").train()
    concept = mono_modal_concept(whole, inputs, "audio", absent={"image": 0.5})
    assert whole.training
    assert not concept.requires_grad
    whole.eval()
    expected = whole(audio=inputs["audio"], image=torch.full_like(inputs["image"], 0.5))
    assert torch.equal(concept, expected)
    single = network("late", ("image",))
    assert torch.equal(
        mono_modal_concept(single, {"image": inputs["image"]}, "image"), single.eval()(image=inputs["image"])
    )
    with pytest.raises(ValueError, match=r"Identity to return logits \(B, p\), but got \(5, 1, 4, 4\)"):
        mono_modal_concept(nn.Identity(), {"input": inputs["image"]}, "input")
