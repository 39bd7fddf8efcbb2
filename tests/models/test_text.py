"""The encoder of text."""

import pytest
import torch
import torch.nn.functional as F

import agm
from agm import models
from agm.models import LateFusion, MLPEncoder, TextEncoder


def utf8(*texts, length=24):
    return torch.tensor([list(text.encode().ljust(length, b"\0")) for text in texts], dtype=torch.uint8)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return TextEncoder(num_features=16)


def test_padding_influences_nothing(encoder):
    texts = ("a bee", "日本", "")
    short, long = encoder(utf8(*texts, length=7)), encoder(utf8(*texts, length=40))
    assert torch.equal(short, long)
    assert short.shape == (3, 16)
    assert (short[:2].abs().sum(1) > 0).all()
    assert (short[2] == 0).all()  # no text, and so an absent one
    alone = encoder(utf8("a bee"))
    torch.testing.assert_close(short[:1], alone)


def test_it_is_the_maximum_of_convolutions_over_the_text(encoder):
    text = utf8("abc", length=5)
    embedded = F.embedding(text.long(), encoder.embedding.weight).transpose(1, 2)
    maps = [
        F.relu(F.conv1d(embedded, c.weight, c.bias, padding=kernel // 2))[:, :, :3]
        for c, kernel in zip(encoder.convolutions, (3, 5, 7), strict=True)
    ]
    torch.testing.assert_close(encoder(text), torch.cat(maps, 1).amax(2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtypes_and_gradients(encoder, dtype):
    encoder(utf8("zz").to(dtype)).sum().backward()
    gradient = encoder.embedding.weight.grad.abs().sum(1)
    assert gradient.nonzero().flatten().tolist() == [ord("z")]


def test_tokens_and_their_mask():
    encoder = TextEncoder(num_features=8, pool=None)
    found = encoder(utf8("ab", length=4))
    assert found["tokens"].shape == (1, 4, 8)
    assert found["padding_mask"].tolist() == [[False, False, True, True]]
    assert (found["tokens"][0, 2:] == 0).all()


def test_bad_arguments(encoder):
    for wrong in (torch.zeros(2, 3), torch.zeros(3, dtype=torch.uint8), torch.zeros(2, 0, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"the input to be \(B, T\) uint8, int32 or int64 with T >= 1, but got"):
            encoder(wrong)
    for settings, name in (({"vocab_size": 1}, "vocab_size"), ({"kernels": ()}, "kernels"), ({"pool": "mean"}, "pool")):
        with pytest.raises(ValueError, match=f"argument `{name}`"):
            TextEncoder(**settings)


@pytest.mark.parametrize("fusion", models.fusions)
def test_networks_with_text_under_agm(fusion):
    """Absent text is padding: passes by encoder are those of the whole network, one after the other."""
    torch.manual_seed(1)
    shapes = {"text": (12,), "ids": (5,), "image": (3, 8, 8)}
    network = models.build(fusion, shapes, 4, width=8, vocabularies={"text": 256, "ids": 30}).eval()
    assert sum(isinstance(encoder, TextEncoder) for encoder in network.encoders.values()) == 2
    inputs = {
        "text": utf8("one", "zwei", "三", length=12),
        "ids": torch.randint(1, 30, (3, 5)),
        "image": torch.randn(3, 3, 8, 8),
    }
    found = agm.masked_logits(network, inputs)
    for subset in range(1, 8):
        some = {n: v if subset >> i & 1 else torch.zeros_like(v) for i, (n, v) in enumerate(inputs.items())}
        torch.testing.assert_close(found[subset - 1], network(**some))


def test_vocabularies_are_of_modalities_that_are_there():
    with pytest.raises(ValueError, match="`vocabularies` to name modalities among a, but got b"):
        models.build("late", {"a": (3,)}, 2, vocabularies={"b": 9})
    with pytest.raises(ValueError, match=r"modality 'a', of text or token ids, to be \(T,\), but got \(3, 2\)"):
        models.build("late", {"a": (3, 2)}, 2, vocabularies={"a": 9})


def test_it_learns_words():
    torch.manual_seed(0)
    words = ("red", "grün", "青")
    target = torch.randint(3, (96,))
    filler = torch.randint(3, 9, (96,))
    text = utf8(*("x" * int(n) + " " + words[t] + " y" for n, t in zip(filler, target, strict=True)))
    network = LateFusion({"text": TextEncoder(num_features=16), "noise": MLPEncoder(4, num_features=4)}, 3)
    model = agm.AGM(network, alpha=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    noise = torch.randn(96, 4)
    for _ in range(30):
        loss = F.cross_entropy(model(text=text, noise=noise, target=target), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    assert (network(text=text, noise=noise).argmax(1) == target).float().mean() > 0.95
