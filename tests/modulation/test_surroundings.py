"""Checkpoints around a step, function transforms, and export of the network inside."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import agm


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.audio, self.visual, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(16, 5)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(torch.cat([self.audio(audio).relu(), self.visual(visual).relu()], 1))


def engine() -> agm.AGM:
    torch.manual_seed(0)
    return agm.AGM(Net(), ("audio", "visual"), alpha=2.0)


def batch() -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(1)
    return {"audio": torch.randn(7, 6), "visual": torch.randn(7, 4)}, torch.randint(5, (7,))


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_step_inside_a_checkpoint_is_refused(reentrant: bool) -> None:
    """It would be taken twice, and the second time with other running scores."""
    model = engine()
    inputs, target = batch()
    audio = inputs["audio"].requires_grad_()
    logits = checkpoint(
        lambda a: model(audio=a, visual=inputs["visual"], target=target), audio, use_reentrant=reentrant
    )
    taken = model.modulator.state.step.item()
    with pytest.raises(RuntimeError, match=r"a backward is running.*checkpoint=True"):
        logits.sum().backward()
    assert model.modulator.state.step == taken


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_an_encoder_changes_nothing(reentrant: bool) -> None:
    model, plain = engine(), engine()
    inputs, target = batch()
    forward = model.module.audio.forward
    model.module.audio.forward = lambda x: checkpoint(forward, x, use_reentrant=reentrant)  # type: ignore[method-assign]
    for network in (model, plain):
        given = {name: x.clone().requires_grad_() for name, x in inputs.items()}
        F.cross_entropy(network(**given, target=target), target).backward()
    for left, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)
    assert model.modulator.state.step == plain.modulator.state.step == 1


def test_functional_call_works() -> None:
    model, other = engine(), engine()
    inputs, target = batch()
    parameters = {name: (p + 0.1).detach().requires_grad_() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    loss = F.cross_entropy(torch.func.functional_call(model, parameters, (), {**inputs, "target": target}), target)
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    F.cross_entropy(other(**inputs, target=target), target).backward()
    for found, p in zip(gradients, other.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad)
    torch.testing.assert_close(model.modulator.state.values, other.modulator.state.values)


def transforms(model: agm.AGM, state: agm.ModulationState) -> dict[str, object]:
    inputs, target = batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    masked = torch.randn(3, 7, 5)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(model, parameters, (), {**inputs, "target": target})
        return F.cross_entropy(logits, target)

    def modulated(masked: Tensor) -> Tensor:
        return agm.fused_modulate(masked, target, state).sum()

    return {
        "grad": lambda: torch.func.grad(loss)(parameters),
        "vjp": lambda: torch.func.vjp(loss, parameters),
        "jvp": lambda: torch.func.jvp(modulated, (masked,), (masked,)),
        "vmap": lambda: torch.func.vmap(modulated)(torch.stack([masked, masked])),
        "grad of the function": lambda: torch.func.grad(modulated)(masked),
    }


@pytest.mark.parametrize("name", ["grad", "vjp", "jvp", "vmap", "grad of the function"])
def test_function_transforms_are_refused_before_anything_changes(name: str) -> None:
    model, state = engine(), agm.ModulationState(2)
    with pytest.raises(RuntimeError, match=r"outside torch\.func\.grad"):
        transforms(model, state)[name]()  # type: ignore[operator]
    for counted in (state, model.modulator.state):
        assert (counted.step.item(), counted.skipped.item()) == (0, 0)
    inputs, target = batch()
    model(**inputs, target=target).sum().backward()  # and it trains as before
    assert model.modulator.state.step == 1


def test_forward_mode_is_refused_before_anything_changes() -> None:
    state, masked = agm.ModulationState(2), torch.randn(3, 7, 5, requires_grad=True)
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"outside torch\.autograd\.forward_ad"):
        agm.fused_modulate(forward_ad.make_dual(masked * 1, masked), batch()[1], state)
    assert state.step.item() == 0


def test_function_transforms_of_a_network_in_eval_mode_work() -> None:
    model = engine().eval()
    inputs, _ = batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def total(parameters: dict[str, Tensor], audio: Tensor, visual: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (audio[None], visual[None])).sum()

    each = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(parameters, *inputs.values())
    model(**inputs).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


def test_export_of_the_network_is_untouched() -> None:
    inputs, target = batch()
    torch.manual_seed(0)
    before = torch.export.export(Net().eval(), (), inputs)
    model = engine()
    untrained = copy.deepcopy(model)
    model(**inputs, target=target).sum().backward()
    model.eval()
    after = torch.export.export(model.module, (), inputs)
    assert str(after.graph) == str(before.graph)
    assert list(after.state_dict) == list(before.state_dict) == list(model.module.state_dict())
    torch.testing.assert_close(after.module()(**inputs), before.module()(**inputs))
    torch.testing.assert_close(after.module()(**inputs), untrained.eval()(**inputs))
    whole = torch.export.export(model, (), inputs)  # in eval mode the wrapper is the network
    torch.testing.assert_close(whole.module()(**inputs), model(**inputs))
