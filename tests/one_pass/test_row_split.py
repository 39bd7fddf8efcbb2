"""Train rows and eval rows in one pass, against one pass after the other: norms, dropouts, attention."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import agm.models
from agm._one_pass.layouts import Unsplit

from .passes import BATCH, REST, Twice, both, one_pass, rows, two_passes


def record(run: Callable[..., Tensor], module: nn.Module, train: Tensor, rest: Tensor) -> dict[str, Any]:
    """All that a pass changes, with two forwards before the backward of both."""
    train, rest = (x.clone(memory_format=torch.preserve_format).requires_grad_() for x in (train, rest))
    torch.manual_seed(3)
    outputs = [run(module, train * 1.0, rest * 1.0) for _ in range(2)]  # not leaves, which no layer may write to
    upstream = [rows(*output.shape, seed=seed) for seed, output in enumerate(outputs, 5)]
    torch.autograd.backward(outputs, upstream)
    return {
        "outputs": [output.detach() for output in outputs],
        "buffers": dict(module.named_buffers()),
        "generator": torch.get_rng_state(),
        "gradients": [train.grad, rest.grad, *(p.grad for p in module.parameters())],
    }


def assert_same(module: nn.Module, train: Tensor, rest: Tensor, exact: bool = True) -> None:
    """Bit for bit, or to rounding; gradients are summed in another order."""
    module = module.double()
    two, one = record(two_passes, copy.deepcopy(module), train, rest), record(one_pass, module, train, rest)
    assert torch.equal(two["generator"], one["generator"])
    tolerance = 0.0 if exact else 1e-12
    for name in ("outputs", "buffers"):
        torch.testing.assert_close(one[name], two[name], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one["gradients"], two["gradients"], rtol=1e-12, atol=1e-12)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.BatchNorm1d(4))
    module[0].running_mean.fill_(0.3)
    module[0].eval()
    return module


def trained(norm: nn.Module) -> nn.Module:
    """With parameters and statistics that are not those of the start."""
    for value in (*norm.parameters(), *norm.buffers()):
        if value.is_floating_point():
            value.data.uniform_(0.5, 1.5)
    return norm


def without_bias(norm: nn.Module) -> nn.Module:
    """As `bias=False` makes it where torch has that: 2.11 does not."""
    norm.register_parameter("bias", None)
    return norm


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "1d of sequences": (lambda: nn.BatchNorm1d(4), (4, 5)),
    "2d": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (4, 3, 2, 2)),
    "synchronised, by itself": (lambda: nn.SyncBatchNorm(4), (4, 3)),
    "cumulative": (lambda: nn.BatchNorm1d(4, momentum=None), (4,)),
    "without parameters": (lambda: nn.BatchNorm2d(4, affine=False), (4, 3, 2)),
    "without bias": (lambda: without_bias(nn.BatchNorm2d(4)), (4, 3, 2)),
    "without statistics": (lambda: nn.BatchNorm1d(4, track_running_stats=False), (4,)),
    "momentum 1": (lambda: nn.BatchNorm1d(4, momentum=1.0), (4,)),
    "of samples 1d": (lambda: nn.InstanceNorm1d(4), (4, 5)),
    "of samples 2d": (lambda: nn.InstanceNorm2d(4, affine=True), (4, 3, 2)),
    "of samples 1d with statistics": (lambda: nn.InstanceNorm1d(4, track_running_stats=True), (4, 5)),
    "of samples 2d with statistics": (lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 3, 2)),
    "of samples 3d with statistics": (lambda: nn.InstanceNorm3d(4, track_running_stats=True), (4, 3, 2, 2)),
    "of groups": (lambda: nn.GroupNorm(2, 4), (4, 3)),
    "of layers": (lambda: nn.LayerNorm(4), (4,)),
}
DROPOUTS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "elements": (lambda: nn.Dropout(0.4), (4, 3)),
    "elements in place": (lambda: nn.Dropout(0.4, inplace=True), (4, 3)),
    "channels 1d": (lambda: nn.Dropout1d(0.4), (4, 3)),
    "channels 1d in place": (lambda: nn.Dropout1d(0.4, inplace=True), (4, 3)),
    "channels 2d": (lambda: nn.Dropout2d(0.4), (4, 3, 2)),
    "channels 2d in place": (lambda: nn.Dropout2d(0.4, inplace=True), (4, 3, 2)),
    "channels 3d": (lambda: nn.Dropout3d(0.4), (4, 3, 2, 2)),
    "alpha": (lambda: nn.AlphaDropout(0.4), (4,)),
    "alpha in place": (lambda: nn.AlphaDropout(0.4, inplace=True), (4,)),
    "alpha channels": (lambda: nn.FeatureAlphaDropout(0.4), (4, 3)),
    "none": (lambda: nn.Dropout(0.0), (4,)),
    "all": (lambda: nn.Dropout(1.0), (4,)),
}
COMPOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "nested": (lambda: nn.Sequential(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), nn.Dropout(0.3)), (4,)),
    "in place after a norm": (lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.3, True), nn.ReLU(True)), (4,)),
    "shared": (lambda: Twice(nn.BatchNorm1d(4, track_running_stats=False)), (4,)),
    "frozen and shared": (lambda: Twice(trained(nn.BatchNorm1d(4)).eval()), (4,)),
    "frozen": (frozen, (4,)),
    "folded frames": (lambda: nn.Sequential(nn.Flatten(1), nn.Unflatten(1, (4, 3)), nn.BatchNorm1d(4)), (12,)),
}


@pytest.mark.parametrize("kind", [*NORMS])
def test_norms(kind: str) -> None:
    make, shape = NORMS[kind]
    assert_same(trained(make()), rows(BATCH, *shape), rows(REST, *shape, seed=1), exact=False)


@pytest.mark.parametrize("kind", [*DROPOUTS])
def test_dropouts(kind: str) -> None:
    make, shape = DROPOUTS[kind]
    assert_same(make(), rows(BATCH, *shape), rows(REST, *shape, seed=1))


@pytest.mark.parametrize("kind", [*COMPOSED])
def test_composed(kind: str) -> None:
    make, shape = COMPOSED[kind]
    assert_same(make(), rows(BATCH, *shape), rows(REST, *shape, seed=1), exact=False)


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(4), nn.Dropout(0.4), nn.Dropout2d(0.4), nn.Dropout(0.4, True)])
def test_channels_last(layer: nn.Module) -> None:
    train, rest = (x.to(memory_format=torch.channels_last) for x in (rows(BATCH, 4, 3, 2), rows(REST, 4, 3, 2, seed=1)))
    assert_same(layer, train, rest, exact=False)
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in both(layer, train, rest))


def test_eval_mode_changes_nothing() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5)).double().eval()
    x = rows(BATCH + REST, 4)
    assert torch.equal(one_pass(module, x[:BATCH], x[BATCH:]), module(x))


class Frames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(0, 1)).unflatten(0, (len(x), -1)).mean(1)


def test_several_rows_a_sample() -> None:
    assert_same(Frames(), rows(BATCH, 3, 2, 5, 4), rows(REST, 3, 2, 5, 4, seed=1), exact=False)


class Attending(nn.Module):
    """Self-attention, with what may go with it."""

    def __init__(self, mask: Callable[[Tensor], Tensor] | None = None, padding: bool = False, **options: Any) -> None:
        super().__init__()
        self.call = {key: options.pop(key) for key in ("need_weights", "average_attn_weights") if key in options}
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **{"dropout": 0.4, **options})
        self.mask, self.padding = mask, padding

    def forward(self, x: Tensor) -> Tensor:
        mask = None if self.mask is None else self.mask(x)
        padding = x[:, :, 0] > 1.0 if self.padding else None
        out, weights = self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding, **self.call)
        return out if weights is None else torch.cat([out.flatten(1), weights.flatten(1)], 1)


def causal(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)


def of_each_head(x: Tensor) -> Tensor:
    return (x[:, :, 0:1] - x[:, None, :, 1]).repeat_interleave(2, 0)


ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "weights": Attending,
    "weights of each head": lambda: Attending(average_attn_weights=False),
    "without weights": lambda: Attending(need_weights=False),
    "causal": lambda: Attending(causal, need_weights=False),
    "a mask of each head": lambda: Attending(of_each_head, need_weights=False),
    "a mask of each head, weights": lambda: Attending(of_each_head),
    "padding": lambda: Attending(padding=True, need_weights=False),
    "padding and weights": lambda: Attending(padding=True),
    "extra keys": lambda: Attending(need_weights=False, add_bias_kv=True, add_zero_attn=True),
    "other widths": lambda: Attending(need_weights=False, kdim=4, vdim=4, bias=False),
    "no dropout": lambda: Attending(dropout=0.0),
    "all dropped": lambda: Attending(dropout=1.0, need_weights=False),
    "a layer": lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True),
    "layers": lambda: agm.models.TransformerEncoder(4, width=4, num_heads=2, dropout=0.3),
    "layers with a token": lambda: agm.models.TransformerEncoder(4, width=4, num_heads=2, dropout=0.3, pool="cls"),
}


@pytest.mark.parametrize("kind", [*ATTENTIONS])
def test_attention(kind: str) -> None:
    """The projections of all rows are one product, so that their numbers are those of two passes to rounding."""
    assert_same(ATTENTIONS[kind](), rows(BATCH, 5, 4), rows(REST, 5, 4, seed=1), exact=False)


class Kernel(nn.Module):
    """Torch's kernel by itself, of query, key and value that one function makes of the input."""

    def __init__(self, inputs: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], p: float = 0.4) -> None:
        super().__init__()
        self.inputs, self.p = inputs, p
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x * self.scale)
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, dropout_p=p) * self.scale


KERNELS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "one input": lambda x: (x[:, None],) * 3,
    "without heads": lambda x: (x, x + 1, x - 1),
    "cut from one": lambda x: tuple(torch.cat([x, x * 2, x * 3], -1)[:, :, None].transpose(1, 2).chunk(3, -1)),
    "a key without a gradient": lambda x: (x[:, None], x.detach()[:, None], x[:, None] * 2),
    "only a value with a gradient": lambda x: (x.detach()[:, None], x.detach()[:, None], x[:, None]),
}


@pytest.mark.parametrize("kind", [*KERNELS])
def test_the_kernel_of_attention(kind: str) -> None:
    assert_same(Kernel(KERNELS[kind]), rows(BATCH, 5, 4), rows(REST, 5, 4, seed=1), exact=False)


def test_one_train_row_is_the_error_that_it_is_in_two_passes() -> None:
    with pytest.raises(Unsplit, match="more than 1 value per channel"):
        one_pass(nn.BatchNorm1d(4).double(), rows(1, 4), rows(2, 4, seed=1))
    assert_same(nn.BatchNorm2d(4), rows(1, 4, 3, 2), rows(2, 4, 3, 2, seed=1), exact=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 4))
    train, rest = rows(BATCH, 4).float(), rows(REST, 4, seed=1).float()
    outputs = []
    for run in (two_passes, one_pass):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=dtype):
            outputs.append(run(copy.deepcopy(network), train, rest))
    assert outputs[1].dtype == dtype
    torch.testing.assert_close(outputs[1], outputs[0])


def test_gradcheck() -> None:
    """Of each part in its own rows: nothing flows through the running statistics, as in two passes."""
    module = trained(nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.InstanceNorm1d(3, track_running_stats=True)))
    train, rest = rows(3, 3, 2), rows(2, 3, 2, seed=1)

    def of_train(x: Tensor) -> Tensor:
        return one_pass(copy.deepcopy(module).double(), x, rest)[:3]

    def of_rest(x: Tensor) -> Tensor:
        return one_pass(copy.deepcopy(module).double(), train, x)[3:]

    assert torch.autograd.gradcheck(of_train, train.requires_grad_())
    assert torch.autograd.gradcheck(of_rest, rest.requires_grad_())


@pytest.mark.parametrize("run", [two_passes, one_pass])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.BatchNorm1d(4, momentum=None)])
def test_two_forwards_before_a_backward(run: Callable[..., Tensor], norm: nn.Module) -> None:
    """The second forward updates the statistics that the backward of the first one reads."""
    gradients = []
    for together in (False, True):
        module = copy.deepcopy(norm).double()  # new buffers, which nothing that autograd knows has written to
        x = rows(BATCH, 4).requires_grad_()
        losses = []
        for scale in (1.0, 3.0):
            losses.append(run(module, x * scale, x * (2.0 + scale)).square().sum())
            if not together:
                losses[-1].backward()
        if together:
            sum(losses).backward()
        gradients.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    torch.testing.assert_close(*gradients)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_nothing_behind(fails: bool) -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.2), Failing() if fails else nn.ReLU()).double()
    module[1].forward = module[1].forward  # somebody's own, which must come back
    before = [dict(vars(layer)) for layer in module.modules()]
    buffers = [id(buffer) for buffer in module.buffers()]
    keys = list(module.state_dict())
    with pytest.raises(Unsplit, match=r"^one pass raises RuntimeError: no$") if fails else nullcontext():
        one_pass(module, rows(BATCH, 4), rows(REST, 4, seed=1))
    assert [dict(vars(layer)) for layer in module.modules()] == before
    assert [id(buffer) for buffer in module.buffers()] == buffers
    assert list(module.state_dict()) == keys
    assert all(layer.training for layer in module.modules())
