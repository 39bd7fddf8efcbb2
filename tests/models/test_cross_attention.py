import pytest
import torch
from torch import nn
from torch.nn import functional as F

from agm.models import CrossAttentionFusion, LSTMEncoder, TransformerEncoder

WIDTHS = {"a": 3, "b": 5, "c": 2}


def fusion(names="abc", **options):
    torch.manual_seed(0)
    widths = {n: WIDTHS[n] for n in names}
    options = {"width": 8, "num_heads": 2, "depth": 2, "dropout": 0.0} | options
    return CrossAttentionFusion({n: nn.Identity() for n in names}, 4, num_features=widths, **options).double()


def tokens(names="abc"):
    generator = torch.Generator().manual_seed(0)
    lengths = {"a": 5, "b": 3, "c": 4}
    return {n: torch.randn(4, lengths[n], WIDTHS[n], generator=generator, dtype=torch.float64) for n in names}


def padded(names="abc"):
    """Rows with all, some and no valid tokens of "a"; "c" has some in each row but the last; "b" no mask."""
    features: dict = tokens(names)
    valid = {"a": [5, 2, 0, 0], "c": [4, 1, 3, 0]}
    for name in set(names) & set(valid):
        x = features[name]
        mask = torch.arange(x.shape[1]) >= torch.tensor(valid[name]).unsqueeze(1)
        features[name] = {"tokens": x, "padding_mask": mask}
    return features


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_against_its_equation(names):
    """Two layers, two heads, in plain torch."""
    net = fusion(names)
    for p in net.parameters():
        nn.init.normal_(p, std=0.5)
    features = tokens(names)

    def norm(x, layer):
        return F.layer_norm(x, (8,), layer.weight, layer.bias)

    x = {
        n: F.linear(features[n], net.projections[n].weight, net.projections[n].bias) + net.modality_embedding[i]
        for i, n in enumerate(names)
    }
    for layer in net.layers:
        n = {m: norm(x[m], layer[m].norm) for m in names}
        new = {}
        for m in names:
            others = torch.cat([n[j] for j in names if j != m or len(names) == 1], dim=1)
            attention = layer[m].attention
            wq, wk, wv = attention.in_proj_weight.chunk(3)
            bq, bk, bv = attention.in_proj_bias.chunk(3)
            q, k, v = F.linear(n[m], wq, bq), F.linear(others, wk, bk), F.linear(others, wv, bv)
            heads = [(q[..., h] @ k[..., h].mT / 2.0).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
            y = x[m] + F.linear(torch.cat(heads, -1), attention.out_proj.weight, attention.out_proj.bias)
            up, down = layer[m].mlp[1], layer[m].mlp[4]
            hidden = F.gelu(F.linear(norm(y, layer[m].mlp[0]), up.weight, up.bias))
            new[m] = y + F.linear(hidden, down.weight, down.bias)
        x = new
    pooled = torch.cat([norm(x[m], net.norms[m]).mean(1) for m in names], 1)
    torch.testing.assert_close(net.fuse(features), pooled @ net.classifier.weight.T + net.classifier.bias)


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_padding_influences_nothing(names, training, grad):
    net = fusion(names).train(training)
    features = padded(names)
    with torch.set_grad_enabled(grad):
        expected = net.fuse(features)
        for junk in (1e6, float("nan"), float("inf")):
            dirty = {
                n: {**f, "tokens": f["tokens"].masked_fill(f["padding_mask"].unsqueeze(-1), junk)}
                if isinstance(f, dict)
                else f
                for n, f in features.items()
            }
            torch.testing.assert_close(net.fuse(dirty), expected, rtol=0, atol=0)
    assert expected.isfinite().all()


def test_a_padded_row_is_the_row_alone():
    net = fusion()
    features = padded()
    out = net.fuse(features)
    alone = {"a": features["a"]["tokens"][1:2, :2], "b": features["b"][1:2], "c": features["c"]["tokens"][1:2, :1]}
    torch.testing.assert_close(out[1:2], net.fuse(alone))
    # All masks False is no mask.
    clear = {n: {"tokens": x, "padding_mask": x.new_zeros(x.shape[:2]).bool()} for n, x in tokens().items()}
    torch.testing.assert_close(net.fuse(clear), net.fuse(tokens()))


def test_a_fully_padded_modality_says_nothing():
    """The others see what they would see without it, and it is pooled to zeros."""
    net = fusion("abc", depth=1)
    fused = net.fused_features(padded())
    assert torch.equal(fused[2, :8], torch.zeros(8, dtype=torch.float64))
    moved = padded()
    moved["a"]["tokens"] = moved["a"]["tokens"] + 1
    torch.testing.assert_close(net.fused_features(moved)[2:], fused[2:], rtol=0, atol=0)
    # Row 3: "b" has nobody to attend to, so its attention adds nothing.
    block = net.layers[0]["b"]
    x = F.linear(padded()["b"][3:], net.projections["b"].weight, net.projections["b"].bias)
    x = x + net.modality_embedding[1]
    torch.testing.assert_close(fused[3:, 8:16], net.norms["b"](x + block.mlp(x)).mean(1))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_finite_under_padding(training):
    net = fusion().train(training)
    net.fuse(padded()).square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_a_vector_is_one_token():
    net = fusion("ab")
    features = tokens("ab")
    vector = features["b"][:, 0]
    torch.testing.assert_close(
        net.fuse({"a": features["a"], "b": vector}), net.fuse({"a": features["a"], "b": vector.unsqueeze(1)})
    )


def test_modalities_meet():
    net = fusion("abc", depth=1)
    features = tokens()
    before = net.fused_features(features)
    after = net.fused_features({**features, "c": features["c"] + 1})
    assert (before[:, :16] != after[:, :16]).any(dim=1).all()


def test_masks_of_the_encoders_reach_the_fusion():
    torch.manual_seed(0)
    encoders = {
        "text": TransformerEncoder(vocab_size=9, width=8, num_heads=2, pool=None, padding_id=0),
        "audio": LSTMEncoder(3, hidden=6),
    }
    net = CrossAttentionFusion(encoders, 4, width=8, num_heads=2).double().eval()
    audio = torch.randn(2, 5, 3, dtype=torch.float64)
    ids = torch.tensor([[3, 4, 5], [6, 0, 0]])
    out = net(text=ids, audio=audio)
    torch.testing.assert_close(out[1:], net(text=ids[1:, :1], audio=audio[1:]))
    traced = torch.compile(net, backend="eager")
    torch.testing.assert_close(traced(text=ids, audio=audio), out)


def test_bad_arguments_and_features():
    with pytest.raises(ValueError, match=r"`width` to be a multiple of `num_heads` \(3\), but got 8"):
        fusion(num_heads=3)
    with pytest.raises(ValueError, match="`depth`"):
        fusion(depth=0)
    net, good = fusion("ab"), tokens("ab")
    for bad in (good["a"][..., :2], good["a"][0, 0], good["a"][:, :0]):
        with pytest.raises(ValueError, match=r"modality 'a' to be tokens \(B, T, 3\) .*but got \("):
            net.fuse({**good, "a": bad})
    mask = torch.zeros(4, 5)
    with pytest.raises(ValueError, match=r"`padding_mask` to be bool \(4, 5\)"):
        net.fuse({**good, "a": {"tokens": good["a"], "padding_mask": mask}})
    with pytest.raises(ValueError, match="'tokens' and 'padding_mask'"):
        net.fuse({**good, "a": {"x": good["a"]}})
