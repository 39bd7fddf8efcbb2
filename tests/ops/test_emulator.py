"""The emulator that runs the CUDA kernels on the CPU (emulated/): it finds what would be wrong on a GPU."""

import pytest
import torch

from . import defects
from .building import EMULATED, Library

NUMBERS = torch.arange(256.0)


@pytest.fixture(scope="module")
def library() -> Library:
    return defects.library()


def test_a_correct_kernel(library: Library) -> None:
    for _ in range(20):
        assert torch.equal(library.op("reverse")(NUMBERS), NUMBERS.flip(0))


@pytest.mark.parametrize("name", ["missing_barrier", "overtaken"])
def test_a_missing_barrier_gives_wrong_numbers(library: Library, name: str) -> None:
    for _ in range(5):
        assert not torch.equal(library.op(name)(NUMBERS), NUMBERS.flip(0))


def test_shared_memory_is_poisoned(library: Library) -> None:
    """Whatever a block before has left there."""
    library.op("reverse")(NUMBERS)
    result = library.op("unwritten_shared")(NUMBERS)
    assert result.isnan().nonzero().tolist() == [[250]]


@pytest.mark.parametrize("name", defects.STOPPED)
def test_what_would_hang_or_fail_is_an_error(library: Library, name: str) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError, match=defects.STOPPED[name]):
            library.op(name)(NUMBERS)
        assert torch.equal(library.op("reverse")(NUMBERS), NUMBERS.flip(0))


def test_it_runs_the_kernels_of_the_package() -> None:
    assert {"modulate", "modulate_backward"} <= EMULATED.registered()
