"""How many kernels Triton has to compile in a run whose batches are not all of one size."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

MULTIPROCESSORS = 132
BATCHES = (1, 7, 64, 264, 265, 512, 600)  # 528 programs run at once: 264 is half of them


class Recorder:
    """Stands in for a kernel, and notes what it would be compiled for."""

    def __init__(self, found: set[Any], name: str) -> None:
        self.found, self.name = found, name

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)

        def launch(*args: Any, **kwargs: Any) -> None:
            constants = {key: value for key, value in kwargs.items() if key.isupper()}
            none = tuple(place for place, value in enumerate(args) if value is None)
            self.found.add((self.name, none, *sorted((key, str(value)) for key, value in constants.items())))

        return launch


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> set[Any]:
    """What kernels would be compiled for on a large GPU."""
    pytest.importorskip("triton")
    from agm.kernels import modulate, modulate_additive

    variants: set[Any] = set()
    for room in (modulate, modulate_additive):
        for name in ("_score", "_score_shares", "_finish", "_finish_shares"):
            if hasattr(room, name):
                monkeypatch.setattr(room, name, Recorder(variants, name))
        monkeypatch.setattr(room, "resident_programs", lambda device, programs=4: MULTIPROCESSORS * programs)
    for name in ("_score_additive", "_score_additive_shares"):
        monkeypatch.setattr(modulate_additive, name, Recorder(variants, name))
    return variants


@pytest.mark.parametrize("classes", [10, 309, 8191, 8192, 32768])
@pytest.mark.parametrize("modalities", [2, 3])
def test_no_batch_of_another_size_compiles_another_kernel(found: set[Any], modalities: int, classes: int) -> None:
    from agm.kernels import modulate, modulate_additive

    values = torch.empty(5, modalities, dtype=torch.float64)
    counts = torch.empty(modalities + 4, dtype=torch.int64)
    settings = (values, counts, 1.0, 10.0, 1e-8, -100, True)
    for batch in BATCHES:
        target = torch.zeros(batch, dtype=torch.int64)
        modulate.modulate(torch.empty(2**modalities - 1, batch, classes), target, *settings)
        parts = torch.empty(modalities, batch, classes), torch.empty(modalities, classes), None
        modulate_additive.modulate_additive(*parts, torch.empty(batch, classes), target, *settings)
    # One that scores and one that finishes, of each op: the two ops have constants of their own.
    assert len(found) == 4, sorted(found, key=str)
