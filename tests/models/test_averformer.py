import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import agm
from agm.models import GuidedAttentionFusion
from agm.models.averformer import DualBranchAudioEncoder, averformer
from agm.strategies import HybridLoss, linear_heads


def network(**settings):
    torch.manual_seed(0)
    return averformer(3, bins=9, coefficients=5, channels=1, width=8, num_heads=2, dropout=0.0, **settings)


def batch(samples: int = 12) -> tuple[dict[str, object], Tensor]:
    """A tone whose pitch, and a bar whose place, tell the class."""
    draw = torch.Generator().manual_seed(1)
    target = torch.randint(3, (samples,), generator=draw)
    wave = torch.sin(torch.arange(128) * 0.2 * (target.view(-1, 1) + 1)) + 0.2 * torch.randn(
        samples, 128, generator=draw
    )
    spectrogram = torch.stft(wave, 16, 16, window=torch.ones(16), return_complex=True).abs().log1p()  # (B, 9, 9)
    mfcc = torch.stack([(spectrogram * w.view(1, 9, 1)).sum(1) for w in torch.randn(5, 9, generator=draw)], 1) / 3
    frames = 0.3 * torch.randn(samples, 3, 1, 8, 8, generator=draw)
    for row, place in enumerate(target.tolist()):
        frames[row, :, :, 2 * place : 2 * place + 2] += 1
    return {"audio": {"waveform": wave, "spectrogram": spectrogram, "mfcc": mfcc}, "visual": frames}, target


def test_guided_attention_against_plain_loops():
    torch.manual_seed(0)
    widths = {"a": 3, "b": 5}
    encoders = {n: torch.nn.Identity() for n in widths}
    net = GuidedAttentionFusion(encoders, 4, width=8, depth=2, num_heads=2, dropout=0.0, num_features=widths).double()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    features = {"a": torch.randn(3, 4, 3, dtype=torch.float64), "b": torch.randn(3, 2, 5, dtype=torch.float64)}

    def norm(x, layer):
        return F.layer_norm(x, (8,), layer.weight, layer.bias)

    def linear(x, layer):
        return x @ layer.weight.T + layer.bias

    x = {n: linear(features[n], net.projections[n]) + net.modality_embedding[i] for i, n in enumerate(features)}
    for number, layer in enumerate(net.layers):
        n = {m: norm(x[m], layer[m].norm) for m in x}
        guide = linear(torch.cat([n["a"].mean(1), n["b"].mean(1)], 1), net.guides[number])
        new = {}
        for m, other in (("a", "b"), ("b", "a")):
            attention = layer[m].attention
            wq, wk, wv = attention.in_proj_weight.chunk(3)
            bq, bk, bv = attention.in_proj_bias.chunk(3)
            q = F.linear(n[m] + guide.unsqueeze(1), wq, bq)
            k, v = F.linear(n[other], wk, bk), F.linear(n[other], wv, bv)
            heads = [(q[..., h] @ k[..., h].mT / 2.0).softmax(-1) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
            y = x[m] + linear(torch.cat(heads, -1), attention.out_proj)
            new[m] = y + linear(F.gelu(linear(norm(y, layer[m].mlp[0]), layer[m].mlp[1])), layer[m].mlp[4])
        x = new
    pooled = torch.cat([norm(x[m], net.norms[m]).mean(1) for m in x], 1)
    torch.testing.assert_close(net.fuse(features), linear(pooled, net.classifier))


def test_the_two_branches_of_sound_read_each_other():
    torch.manual_seed(0)
    encoder = DualBranchAudioEncoder(9, 5, width=8, num_heads=2, local_tokens=4).eval()
    sound = batch(2)[0]["audio"]
    found = encoder(sound)
    assert found.shape == (2, 4 + 9, 8)
    for name in sound:  # every representation reaches the tokens of both branches
        moved = encoder({**sound, name: sound[name] + torch.linspace(0, 1, sound[name].shape[-1])})
        assert ((moved - found)[:, :4].abs().amax(2) > 1e-6).any(1).all()
        assert ((moved - found)[:, 4:].abs().amax(2) > 1e-6).any(1).all()
    local = encoder.local_norm(F.adaptive_avg_pool1d(encoder.local(sound["waveform"].unsqueeze(1)), 4).transpose(1, 2))
    frames = encoder.globally(torch.cat([sound["spectrogram"], sound["mfcc"]], 1).transpose(1, 2))
    read, _ = encoder.to_local(local, frames, frames)
    torch.testing.assert_close(found[:, :4], encoder.norms[0](local + read))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"waveform": s["waveform"]}, r"mapping of waveform, spectrogram, mfcc .*but got \['waveform'\]"),
        (lambda s: s["waveform"], "but got Tensor"),
        (lambda s: {**s, "waveform": s["waveform"][:, :40]}, r"S >= 41.*\(12, 40\)"),
        (lambda s: {**s, "mfcc": s["mfcc"][:, :, :3]}, r"\(12, 5, 3\)"),
        (lambda s: {**s, "spectrogram": s["spectrogram"][:, :8]}, r"spectrogram \(B, 9, T\)"),
    ],
)
def test_what_sound_must_be(change, message):
    inputs, _ = batch()
    with pytest.raises(ValueError, match=message):
        network()(audio=change(inputs["audio"]), visual=inputs["visual"])


@pytest.mark.parametrize("masked", ["exact", "shared"])
def test_under_agm(masked):
    inputs, target = batch()
    model = agm.AGM(network().double(), alpha=1.0, masked=masked, absent_gradient=False)
    inputs = torch.utils._pytree.tree_map(lambda x: x.double(), inputs)
    if masked == "shared":  # batch norm in the visual encoder
        model.module.encoders["visual"].eval()
    found = agm.verify(model, inputs, target)
    assert found.ok, found
    F.cross_entropy(model(**inputs, target=target), target).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_hybrid_loss():
    inputs, target = batch()
    net = network()
    heads = linear_heads(net.widths, 3)
    strategy = HybridLoss(net, heads=heads, weight=0.5, divergence=2.0, margin=0.3)
    torch.manual_seed(0)
    found = strategy.loss(strategy.batch(inputs, target))
    torch.manual_seed(0)
    features = {name: net.encoders[name](inputs[name]) for name in net.encoders}
    expected = F.cross_entropy(net.fuse(features), target)
    rows = []
    for name, head in heads.items():
        logits = features[name].mean(1) @ head.linear.weight.T + head.linear.bias
        rows.append(logits.softmax(1).tolist())
        expected = expected + 0.5 * F.cross_entropy(logits, target)
    apart = 0.0
    for p, q in zip(*rows, strict=True):
        both = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
        apart += abs(both / 2 - 0.3) / len(target)
    assert found.item() == pytest.approx(expected.item() + 2 * apart, rel=1e-5)


def test_it_learns():
    inputs, target = batch(24)
    net = network()
    strategy = HybridLoss(net, heads=linear_heads(net.widths, 3))
    optimizer = torch.optim.Adam(strategy.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        for outcome in strategy.steps(inputs, target):
            optimizer.step()
            losses.append(float(outcome.loss))
    assert losses[-1] < 0.2 * losses[0]
    assert (strategy.predictor.eval()(**inputs).argmax(1) == target).float().mean() > 0.9
