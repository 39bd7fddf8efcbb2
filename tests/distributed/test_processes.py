"""What processes that train together compute, with two and with four of them, is what one does by itself."""

from collections.abc import Callable

import pytest

from .checks import CHECKS


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("size", [2, 4])
def test_processes(outcomes: Callable[[int], dict[str, list[str]]], size: int, check: str) -> None:
    wrong = {rank: text for rank, text in enumerate(outcomes(size)[check]) if text}
    assert not wrong, "\n".join(f"process {rank}: {text}" for rank, text in wrong.items())
