import pytest
import torch
from torch import nn

from agm.models import LSTMEncoder

both = pytest.mark.parametrize("bidirectional", [False, True])
depths = pytest.mark.parametrize("layers", [1, 2, 3])


def encoder(bidirectional, layers, **options):
    torch.manual_seed(0)
    return LSTMEncoder(3, hidden=4, num_layers=layers, bidirectional=bidirectional, **options).double()


def sequences():
    x = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.tensor([6, 3, 1, 0])


def twin(net):
    """torch's own LSTM with the same weights."""
    layers, two = len(net.forwards), len(net.backwards) > 0
    lstm = nn.LSTM(3, 4, layers, batch_first=True, bidirectional=two).double()
    state = {}
    for suffix, direction in (("", net.forwards), ("_reverse", net.backwards)):
        for index, layer in enumerate(direction):
            state |= {name.replace("_l0", f"_l{index}{suffix}"): p for name, p in layer.state_dict().items()}
    lstm.load_state_dict(state)
    return lstm


@both
@depths
def test_without_lengths_it_is_torchs_lstm(bidirectional, layers):
    net = encoder(bidirectional, layers)
    x, _ = sequences()
    _, (h, _) = twin(net)(x)
    expected = torch.cat([h[-2], h[-1]], dim=1) if bidirectional else h[-1]
    torch.testing.assert_close(net(x), expected)
    assert net.num_features == expected.shape[1]


@both
@depths
def test_with_lengths_every_row_is_what_it_is_alone(bidirectional, layers):
    net = encoder(bidirectional, layers)
    x, lengths = sequences()
    out = net({"x": x, "lengths": lengths})
    for row, length in enumerate(lengths.tolist()):
        if length:
            torch.testing.assert_close(out[row : row + 1], net(x[row : row + 1, :length]))
        else:
            assert torch.equal(out[row], torch.zeros_like(out[row]))
    packed = nn.utils.rnn.pack_padded_sequence(x[:3], lengths[:3], batch_first=True)
    _, (h, _) = twin(net)(packed)
    torch.testing.assert_close(out[:3], torch.cat([h[-2], h[-1]], dim=1) if bidirectional else h[-1])


@both
@depths
def test_padding_influences_nothing(bidirectional, layers):
    net = encoder(bidirectional, layers)
    x, lengths = sequences()
    padding = torch.arange(6) >= lengths.unsqueeze(1)
    expected = net({"x": x, "lengths": lengths})
    for junk in (1e6, float("nan"), float("inf")):
        inputs = {"x": x.masked_fill(padding.unsqueeze(-1), junk), "lengths": lengths.int()}
        torch.testing.assert_close(net(inputs), expected, rtol=0, atol=0)
    x.requires_grad_()
    net({"x": x, "lengths": lengths}).square().sum().backward()
    assert torch.equal(x.grad[padding], torch.zeros_like(x.grad[padding]))
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@both
def test_gradcheck(bidirectional):
    net = encoder(bidirectional, 2)
    x, lengths = sequences()
    x = x[:, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: net({"x": x, "lengths": lengths.clamp(max=3)}), x)


@both
def test_modes_agree_without_dropout_and_differ_with_it(bidirectional):
    net = encoder(bidirectional, 2)
    x, _ = sequences()
    trained = net.train()(x)
    torch.testing.assert_close(net.eval()(x), trained, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(net(x), trained)
    net = encoder(bidirectional, 2, dropout=0.5)
    assert not torch.equal(net(x), net(x))
    torch.testing.assert_close(net.eval()(x), trained)


def test_bad_arguments():
    for options in ({"in_features": 0}, {"hidden": 0}, {"num_layers": 0}, {"dropout": 1.0}):
        with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
            LSTMEncoder(**{"in_features": 3, **options})


def test_bad_inputs():
    net = encoder(False, 1)
    x, lengths = sequences()
    for bad in (x[..., :2], x[0], x[:, :0]):
        with pytest.raises(ValueError, match=r"to be \(B, T, 3\) with T >= 1, but got"):
            net(bad)
    for bad in (lengths[:2], lengths.double(), lengths.unsqueeze(1)):
        with pytest.raises(ValueError, match=r"`lengths` to be int64 \(4,\)"):
            net({"x": x, "lengths": bad})
    for bad in (-1, 7):
        with pytest.raises(ValueError, match=f"`lengths` from 0 to 6, but got {bad}"):
            net({"x": x, "lengths": torch.tensor([6, bad, 1, 0])})
    with pytest.raises(ValueError, match="'x' and 'lengths'"):
        net({"x": x, "padding_mask": lengths})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both
def test_on_a_gpu_eval_mode_differentiates_and_nothing_synchronises(bidirectional):
    net = encoder(bidirectional, 2).float().cuda().eval()
    x, lengths = sequences()
    inputs = {"x": x.float().cuda(), "lengths": lengths.cuda()}
    net(inputs).sum().backward()  # the first call sets cuDNN up
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = net(inputs)
        out.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    expected = net.cpu()({"x": x.float(), "lengths": lengths})
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-3, atol=1e-4)
