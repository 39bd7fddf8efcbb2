import pytest
import torch
from torch import nn

from agm.models import TransformerEncoder

POOLS = pytest.mark.parametrize("pool", ["mean", "cls", None])


def encoder(**options):
    torch.manual_seed(0)
    options = {"width": 8, "num_heads": 2, "num_layers": 2, "max_length": 9, "dropout": 0.0} | options
    if "vocab_size" not in options:
        options["in_features"] = 3
    return TransformerEncoder(**options).double()


def padded():
    """Rows of 5, 2 and 0 valid steps of 5."""
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.arange(5) >= torch.tensor([[5], [2], [0]])


def valid(out):
    """The numbers of an output that padding must not move."""
    return out["tokens"][~out["padding_mask"]] if isinstance(out, dict) else out


@POOLS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_padding_influences_nothing(pool, training, grad):
    net = encoder(pool=pool).train(training)
    x, mask = padded()
    with torch.set_grad_enabled(grad):
        expected = valid(net({"x": x, "padding_mask": mask}))
        for junk in (1e6, float("nan"), float("inf")):
            out = net({"x": x.masked_fill(mask.unsqueeze(-1), junk), "padding_mask": mask})
            torch.testing.assert_close(valid(out), expected, rtol=0, atol=0)
    assert expected.isfinite().all()


@POOLS
def test_a_padded_row_is_the_row_alone(pool):
    net = encoder(pool=pool).eval()
    x, mask = padded()
    out = net({"x": x, "padding_mask": mask})
    rows = out["tokens"] if pool is None else out
    for row, length in ((0, 5), (1, 2)):
        alone = net(x[row : row + 1, :length])
        torch.testing.assert_close(rows[row : row + 1, :length] if pool is None else rows[row : row + 1], alone)
    if pool == "mean":
        torch.testing.assert_close(rows[2], torch.zeros(8, dtype=torch.float64), rtol=0, atol=0)


@POOLS
def test_fully_padded_rows_have_finite_gradients(pool):
    net = encoder(pool=pool)
    x, mask = padded()
    out = net({"x": x.requires_grad_(), "padding_mask": mask})
    (out["tokens"] if pool is None else out).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    assert torch.equal(x.grad[mask], torch.zeros_like(x.grad[mask]))
    assert x.grad[:2][~mask[:2]].ne(0).all()


def test_against_attention_written_out():
    """One layer, one head, in plain torch."""
    net = encoder(num_layers=1, num_heads=1)
    x, _ = padded()
    layer = net.layers[0]

    def norm(x, layer_norm):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * layer_norm.weight + layer_norm.bias

    h = x @ net.embedding.weight.T + net.embedding.bias + net.positions[:5]
    attention = layer.self_attn
    q, k, v = (norm(h, layer.norm1) @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, -1)
    read = (q @ k.mT / 8**0.5).softmax(-1) @ v
    h = h + read @ attention.out_proj.weight.T + attention.out_proj.bias
    hidden = (norm(h, layer.norm2) @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    h = h + hidden @ layer.linear2.weight.T + layer.linear2.bias
    torch.testing.assert_close(net(x), norm(h, net.norm).mean(1))


@POOLS
def test_eval_mode_equals_train_mode_without_dropout(pool):
    net = encoder(pool=pool)
    x, mask = padded()
    results = []
    for training in (True, False):
        net.train(training).zero_grad()
        out = valid(net({"x": x, "padding_mask": mask}))
        out.square().sum().backward()
        results.append((out.detach(), [p.grad.clone() for p in net.parameters()]))
    torch.testing.assert_close(results[0], results[1])
    with torch.no_grad():  # torch's fused inference path
        torch.testing.assert_close(valid(net({"x": x, "padding_mask": mask})), results[0][0])


def test_dropout_is_there():
    net = encoder(dropout=0.5)
    x, _ = padded()
    assert not torch.equal(net(x), net(x))


def test_token_ids_and_padding_id():
    net = encoder(vocab_size=11, padding_id=0).eval()
    ids = torch.tensor([[3, 4, 5], [7, 0, 0], [0, 0, 0]])
    out = net(ids)
    torch.testing.assert_close(out[1:2], net(ids[1:2, :1]))
    assert torch.equal(out[2], torch.zeros(8, dtype=torch.float64))
    # A mask wins over the id, and ids outside the vocabulary may hide under it.
    mask = ids == 0
    torch.testing.assert_close(net({"x": ids.masked_fill(mask, 999), "padding_mask": mask}), out)
    mask = torch.zeros_like(mask)
    assert not torch.allclose(net({"x": ids, "padding_mask": mask})[1], out[1])


def test_layers_start_apart():
    net = encoder()
    assert not torch.equal(net.layers[0].linear1.weight, net.layers[1].linear1.weight)


def test_gradcheck():
    net = encoder(num_layers=1)
    x, mask = padded()
    assert torch.autograd.gradcheck(lambda x: net({"x": x, "padding_mask": mask}), x.requires_grad_())


def test_traces_without_graph_breaks():
    net = encoder(pool="cls")
    x, mask = padded()
    inputs = {"x": x, "padding_mask": mask}
    torch.testing.assert_close(torch.compile(net, backend="eager", fullgraph=True)(inputs), net(inputs))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "one of the arguments `in_features`"),
        ({"in_features": 3, "vocab_size": 4}, "one of the arguments `in_features`"),
        ({"in_features": 3, "padding_id": 0}, "`padding_id` with `vocab_size` only"),
        ({"in_features": 3, "pool": "max"}, "`pool` to be 'mean', 'cls' or None"),
        ({"in_features": 3, "width": 6}, r"`width` to be a multiple of `num_heads` \(4\), but got 6"),
        ({"in_features": 0}, "`in_features`"),
        ({"vocab_size": 0}, "`vocab_size`"),
        ({"in_features": 3, "num_layers": 0}, "`num_layers`"),
        ({"in_features": 3, "max_length": 0}, "`max_length`"),
        ({"in_features": 3, "dropout": 1}, "`dropout`"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerEncoder(**options)


def test_bad_inputs():
    net, ids = encoder(), encoder(vocab_size=5)
    x, mask = padded()
    wrong = [x[..., :2], x[:, 0], x.long(), x[:, :0], torch.zeros(1, 10, 3)]
    for bad in wrong:
        with pytest.raises(ValueError, match=r"a float sequence \(B, T, 3\) with 1 <= T <= 9 .* but got torch"):
            net(bad)
    for bad in (x, x[..., 0], torch.zeros(2, 10, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"int64 token ids \(B, T\) with 1 <= T <= 9"):
            ids(bad)
    for bad in (mask.float(), mask[:, :4], mask[0]):
        with pytest.raises(ValueError, match=r"`padding_mask` to be bool \(3, 5\)"):
            net({"x": x, "padding_mask": bad})
    with pytest.raises(ValueError, match=r"'x' and 'padding_mask', but got keys \['mask', 'x'\]"):
        net({"x": x, "mask": mask})
    with pytest.raises(TypeError, match="but got list"):
        net([x])
    assert isinstance(net, nn.Module)
