"""fused_modulate_cross_entropy: loss, gradient and what it refuses."""

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor

import agm

from .batches import batch


class TestCrossEntropy:
    def test_loss_and_gradient(self) -> None:
        masked, target = batch(2, 10, 4)
        masked.requires_grad_()
        weight = torch.rand(4, dtype=torch.float64)
        state, other = agm.ModulationState(2), agm.ModulationState(2)
        loss, logits = agm.fused_modulate_cross_entropy(
            masked, target, state, alpha=2.0, weight=weight, label_smoothing=0.2
        )
        expected = F.cross_entropy(masked[-1], target, weight=weight, label_smoothing=0.2)
        torch.testing.assert_close(loss, expected)
        assert torch.equal(logits, masked[-1])
        loss.backward()
        fused, masked.grad = masked.grad, None
        logits = agm.fused_modulate(masked, target, other, alpha=2.0)
        F.cross_entropy(logits, target, weight=weight, label_smoothing=0.2).backward()
        torch.testing.assert_close(fused, masked.grad)

    def test_the_logits_carry_gradient_too(self) -> None:
        masked, target = batch(2, 10, 4)
        masked.requires_grad_()
        state = agm.ModulationState(2)
        _, logits = agm.fused_modulate_cross_entropy(masked, target, state, alpha=2.0)
        logits.sum().backward()
        scales = state.coefficients @ agm.subset_weights(2)
        torch.testing.assert_close(masked.grad[:, 0, 0], scales)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
    @pytest.mark.parametrize("backend", ["reference", "auto"])
    def test_without_modulation_the_gradient_is_the_derivative(self, label_smoothing: float, backend: str) -> None:
        masked, target = batch(2, 5, 4)
        target[1] = -100
        weight = torch.rand(4, dtype=torch.float64) + 0.1
        state = agm.ModulationState(2)

        def function(masked: Tensor) -> tuple[Tensor, Tensor]:
            settings = {"weight": weight, "label_smoothing": label_smoothing, "backend": backend}
            return agm.fused_modulate_cross_entropy(masked, target, state, alpha=0.0, update=False, **settings)

        assert torch.autograd.gradcheck(function, masked.requires_grad_())

    def test_no_softmax_is_kept_for_the_backward(self) -> None:
        masked, target = batch(2, 10, 400)
        masked.requires_grad_()
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            agm.fused_modulate_cross_entropy(masked, target, agm.ModulationState(2), label_smoothing=0.1)
        own = [tensor for tensor in kept if tensor.untyped_storage().data_ptr() != masked.untyped_storage().data_ptr()]
        assert len(own) == len(kept) - 1
        assert max(tensor.numel() for tensor in own) == 20  # the normalizers, (2, B)

    def test_half_precision_loss_is_float32(self) -> None:
        masked, target = batch(2, 64, 4)
        loss, _ = agm.fused_modulate_cross_entropy(masked.half(), target, agm.ModulationState(2))
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, F.cross_entropy(masked.half()[-1].float(), target))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"weight": torch.ones(3, dtype=torch.float64)}, "`weight`"),
            ({"weight": torch.ones(4, dtype=torch.int64)}, "`weight`"),
            ({"label_smoothing": 1.5}, "`label_smoothing`"),
            ({"label_smoothing": "a"}, "`label_smoothing`"),
            ({"weight": [1.0] * 4}, "`weight`"),
            ({"state": None}, "`state`"),
        ],
    )
    def test_bad_arguments(self, changed: dict[str, object], message: str) -> None:
        masked, target = batch(2, 10, 4)
        state = agm.ModulationState(2)
        arguments = {"masked_logits": masked, "target": target, "state": state} | changed
        with pytest.raises((TypeError, ValueError), match=message):
            agm.fused_modulate_cross_entropy(**arguments)  # type: ignore[arg-type]
        assert state.step.item() == 0
