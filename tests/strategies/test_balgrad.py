import pytest
import torch
import torch.nn.functional as F

from agm.strategies import BalGrad, linear_heads

from .networks import assert_same, batch_of, early, gradients, late, take


def by_hand(strategy, inputs, target, kl):
    """Whole vectors, from three backward passes."""
    batch = strategy.batch(inputs, target)
    first, second = (batch.unimodal[m] for m in inputs)
    p, q = first.softmax(1), second.softmax(1)
    own = [F.cross_entropy(u, target) for u in (first, second)]
    weights = [2 * float((own[k] / sum(own)).detach()) for k in (0, 1)]
    k_first = (q.detach() * (q.detach() / p).log()).sum(1).mean()
    k_second = (p.detach() * (p.detach() / q).log()).sum(1).mean()
    terms = [batch.joint_loss, own[0] + own[1], kl * (weights[0] * k_first + weights[1] * k_second)]
    parameters = dict(strategy.named_parameters())
    found = []
    for term in terms:
        grads = torch.autograd.grad(term, list(parameters.values()), retain_graph=True, allow_unused=True)
        found.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), grads, strict=True)}
        )
    task, unimodal, agree = found
    product = sum(float((task[n] * agree[n]).sum()) for n in parameters)
    size = sum(float(agree[n].square().sum()) for n in parameters)
    back = min(product, 0.0) / size
    return {n: task[n] - back * agree[n] + unimodal[n] + agree[n] for n in parameters}, product


@pytest.mark.parametrize("build", [late, early])
def test_agreement_never_costs_the_task(build):
    signs = set()
    for seed in range(8):
        torch.manual_seed(seed)
        network, (inputs, target) = build(), batch_of(seed=seed)
        strategy = BalGrad(network, kl=3.0, heads=None if build is late else linear_heads(network.widths, 4))
        expected, product = by_hand(strategy, inputs, target, 3.0)
        take(strategy, inputs, target)
        assert_same(gradients(strategy), expected, rtol=1e-3, atol=1e-5)
        assert strategy.statistics()["product"].item() == pytest.approx(product, rel=1e-2, abs=1e-5)
        signs.add(product > 0)
    assert signs == {True, False}


def test_modalities_that_agree_leave_no_nan():
    network, (inputs, target) = late(), batch_of()
    for source, copied in zip(*(network.encoders[m].parameters() for m in inputs), strict=True):
        copied.data.copy_(source.data)
    network.classifier.weight.data[:, 5:] = network.classifier.weight.data[:, :5]
    take(BalGrad(network), {"audio": inputs["audio"], "image": inputs["audio"]}, target)
    assert all(g.isfinite().all() for g in gradients(network).values())


def test_three_modalities_are_refused():
    with pytest.raises(ValueError, match="two modalities, which are to agree, but got 3"):
        BalGrad(late(3))
