import copy
import io

import pytest
import torch

import agm


def trained_state() -> agm.ModulationState:
    state = agm.ModulationState(2)
    for seed in range(3):
        torch.manual_seed(seed)
        agm.fused_modulate(torch.randn(3, 6, 4), torch.randint(4, (6,)), state)
    return state


def test_fresh_state() -> None:
    state = agm.ModulationState(3)
    assert state.running_scores.tolist() == [0.0] * 3
    assert state.running_scores.dtype == torch.float64
    assert state.coefficients.tolist() == [1.0] * 3
    assert state.step.item() == 0
    assert state.step.dtype == torch.int64
    assert state.step.shape == state.joint_correct.shape == ()


def test_round_trip_through_a_file_continues_exactly() -> None:
    state = trained_state()
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    loaded = agm.ModulationState(2)
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    assert sorted(state.state_dict()) == ["running_scores", "skipped", "step"]
    masked, target = torch.randn(3, 5, 4), torch.randint(4, (5,))
    agm.fused_modulate(masked, target, state, alpha=2.0)
    agm.fused_modulate(masked, target, loaded, alpha=2.0)
    assert torch.equal(state.values, loaded.values)
    assert torch.equal(state.counts, loaded.counts)


def test_loading_reports_what_does_not_fit() -> None:
    saved = trained_state().state_dict()
    with pytest.raises(RuntimeError, match="as many modalities"):
        agm.ModulationState(3).load_state_dict(saved)
    with pytest.raises(RuntimeError, match="Missing key"):
        agm.ModulationState(2).load_state_dict({"step": saved["step"]})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        agm.ModulationState(2).load_state_dict({**saved, "extra": saved["step"]})
    with pytest.raises(RuntimeError, match="Missing key"):
        agm.Modulator(("a", "b")).load_state_dict({})


def test_casts_do_not_round_the_running_scores() -> None:
    modulator = agm.Modulator(("a", "b"))
    modulator.state.load_state_dict(trained_state().state_dict())
    before = copy.deepcopy(modulator.state)
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float, torch.nn.Module.double):
        cast(modulator)
        assert torch.equal(modulator.state.running_scores, before.running_scores)
        assert modulator.state.running_scores.dtype == torch.float64
        assert modulator.state.step.dtype == torch.int64


def test_moving_takes_everything_along() -> None:
    state = trained_state().to("meta")
    assert {state.scores.device.type, state.step.device.type, state.running_scores.device.type} == {"meta"}
    assert state.to(torch.bfloat16).running_scores.dtype == torch.float64


def test_writing_through_an_attribute_is_seen_by_the_next_step() -> None:
    state = trained_state()
    state.running_scores.fill_(1.0)
    state.step.fill_(9)
    agm.fused_modulate(torch.zeros(3, 6, 4), torch.zeros(6, dtype=torch.int64), state)
    expected = 1.0 * 9 / 10 + torch.log(torch.tensor(4.0, dtype=torch.float64)) / 10
    torch.testing.assert_close(state.running_scores, expected.expand(2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("wrong", [1, 0, 17, "2", 2.0, True])
def test_wrong_number_of_modalities(wrong: object) -> None:
    with pytest.raises(ValueError, match="`num_modalities`"):
        agm.ModulationState(wrong)  # type: ignore[arg-type]


def test_the_tables_of_the_kernels_follow_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step may run inside a CUDA graph, whose memory must not hold them."""
    prepared = []
    monkeypatch.setattr("agm.ops.prepare", lambda *arguments: prepared.append(arguments))
    agm.ModulationState(3).to("meta")
    assert prepared == [(3, torch.device("cpu")), (3, torch.device("meta"))]
