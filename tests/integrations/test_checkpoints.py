"""Every way in which people save a model brings its modulation back whole."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import agm

MODALITIES = ("x", "y")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x)) * torch.tanh(self.b(y)))


def make() -> agm.AGM:
    return agm.AGM(Net(), MODALITIES, alpha=1.2)


def step(model: nn.Module) -> Tensor:
    target = torch.randint(0, 3, (11,))
    loss = F.cross_entropy(model(x=torch.randn(11, 7), y=torch.randn(11, 3), target=target), target)
    loss.backward()
    return loss


def trained(steps: int = 3) -> agm.AGM:
    model = make()
    for _ in range(steps):
        step(model)
    model.modulator.state.skipped.add_(2)
    return model


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    found = values(model)
    assert found.keys() == expected.keys()
    wrong = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not wrong


def assert_fresh(state: agm.ModulationState) -> None:
    fresh = agm.ModulationState(state.num_modalities)
    assert torch.equal(state.values, fresh.values)
    assert torch.equal(state.counts, fresh.counts)


@pytest.fixture
def accelerate() -> Iterator[Any]:
    module = pytest.importorskip("accelerate")
    yield module
    module.state.AcceleratorState._reset_state(reset_partial_state=True)  # other tests have other settings


def test_accelerate(accelerate: Any, tmp_path: Path) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = accelerator.prepare(trained())
    expected = values(model)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.save_model(model, str(tmp_path / "model"))
    step(model)
    model.modulator.state.skipped.add_(5)
    accelerator.load_state(str(tmp_path / "state"))
    assert_same(model, expected)
    from safetensors.torch import load_model

    fresh = make()
    load_model(fresh, tmp_path / "model/model.safetensors")
    assert_same(fresh, expected)


def test_hub_mixin(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class Published(nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

    published = Published()
    published.model.load_state_dict(trained().state_dict())
    published.save_pretrained(tmp_path)
    assert_same(Published.from_pretrained(tmp_path), values(published))


def test_distributed_checkpoint(tmp_path: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model, fresh = trained(), make()
    checkpoint.save({"model": get_model_state_dict(model)}, checkpoint_id=tmp_path, no_dist=True)
    found = {"model": get_model_state_dict(fresh)}
    checkpoint.load(found, checkpoint_id=tmp_path, no_dist=True)
    set_model_state_dict(fresh, found["model"])
    assert_same(fresh, values(model))


def _through_a_file(model: agm.AGM) -> agm.AGM:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), _through_a_file])
def test_copies(copied: Callable[[agm.AGM], agm.AGM]) -> None:
    model = trained()
    twin = copied(model)
    assert_same(twin, values(model))
    torch.manual_seed(0)
    expected = step(model)
    torch.manual_seed(0)
    assert torch.equal(step(twin), expected)


@pytest.mark.parametrize("use_buffers", [False, True])
def test_averages_of_weights_leave_the_step_alone(use_buffers: bool) -> None:
    for settings in ({}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}, {"avg_fn": lambda a, b, _: (a + b) / 2}):
        model = make()
        averaged = AveragedModel(model, use_buffers=use_buffers, **settings)
        for _ in range(4):
            step(model)
            averaged.update_parameters(model)
        assert model.modulator.state.step == 4
        assert_fresh(averaged.module.modulator.state)
        assert torch.equal(
            averaged.eval()(x=torch.ones(2, 7), y=torch.ones(2, 3)),
            averaged.module.module(x=torch.ones(2, 7), y=torch.ones(2, 3)),
        )


def test_weight_averaging_of_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            target = torch.arange(11) % 3
            return F.cross_entropy(self.model(x=batch[:, :7], y=batch[:, 7:], target=target), target)

        def validation_step(self, batch: Tensor, index: int) -> None:
            assert self.model(x=batch[:, :7], y=batch[:, 7:]).shape == (11, 3)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    loader = torch.utils.data.DataLoader(torch.randn(55, 10), batch_size=11)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            callbacks=[callbacks.EMAWeightAveraging(decay=0.9)],
        )
        trainer.fit(module, loader, loader)
    assert module.model.modulator.state.step == 10
    assert (module.model.modulator.state.running_scores > 0).all()


def _given_memory(model: nn.Module) -> nn.Module:
    torch.use_deterministic_algorithms(True)  # memory that nobody wrote to holds NaN and the largest integer
    try:
        model.to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return model


def _on_meta() -> agm.AGM:
    with torch.device("meta"):
        return make()


def _network_on_meta() -> agm.AGM:
    with torch.device("meta"):
        network = Net()
    return agm.AGM(network, MODALITIES, alpha=1.2)


@pytest.mark.parametrize("built", [_on_meta, _network_on_meta, make])
def test_memory_that_nobody_wrote_to_is_no_state(built: Callable[[], agm.AGM]) -> None:
    model = _given_memory(built())
    assert_fresh(model.modulator.state)
    step(model)
    assert model.modulator.state.step == 1


@pytest.mark.parametrize("assign", [False, True])
def test_a_checkpoint_for_a_model_on_meta(assign: bool) -> None:
    expected = trained()
    model = _on_meta() if assign else _given_memory(_on_meta())
    model.load_state_dict(expected.state_dict(), assign=assign)
    assert_same(model, values(expected))
    report = model.modulator.report()["x"]
    assert report["coefficient"] == 1
    assert report["accuracy"] != report["accuracy"]
    torch.manual_seed(0)
    first = step(expected)
    torch.manual_seed(0)
    assert torch.equal(step(model), first)


def test_a_state_that_is_loaded_on_meta_is_kept_when_the_rest_gets_memory() -> None:
    model = _on_meta()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: of the weights, which stay on meta
        model.load_state_dict(trained().state_dict())
    assert _given_memory(model).modulator.state.step == 3


def test_memory_is_given_to_a_state_with_values_without_losing_them() -> None:
    model = trained()
    expected = copy.deepcopy(model.modulator.state)
    _given_memory(model)
    assert torch.equal(model.modulator.state.values, expected.values)
    assert torch.equal(model.modulator.state.counts, expected.counts)


def test_a_state_dict_has_memory_of_its_own() -> None:
    model = trained()
    saved = model.modulator.state_dict()
    memory = [value.untyped_storage() for value in saved.values()]
    assert len({part.data_ptr() for part in memory}) == len(saved) == 4
    assert [part.nbytes() for part in memory] == [v.numel() * v.element_size() for v in saved.values()]
    assert not list(model.modulator.buffers())


def test_processes_may_share_the_memory_of_a_state() -> None:
    model = trained()
    before = model.modulator.state.values
    model.share_memory()
    assert model.modulator.state.values is before
    assert before.is_shared()
