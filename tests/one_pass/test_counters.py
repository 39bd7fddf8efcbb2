"""Counters of batches, counted all at once: what norms see is what they see one by one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from agm._module_state.replace_forward import answering
from agm._one_pass.counters import CountingTogether, has_counters
from bench.counting import Dispatched

from .passes import Twice, rows


class Reading(nn.Module):
    """Reads a counter right after the norm has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.norm.num_batches_tracked


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)),
        nn.Sequential(nn.BatchNorm1d(4, momentum=None), nn.BatchNorm1d(4).eval()),
        Twice(nn.BatchNorm1d(4)),
        Reading(),
    ],
)
def test_is_what_norms_count_one_by_one(module: nn.Module) -> None:
    module.double()
    other = copy.deepcopy(module)
    for seed in range(3):
        x = rows(6, 4, seed=seed)
        torch.manual_seed(seed)
        with answering({module: CountingTogether(module)}):
            found = module(x)
        torch.manual_seed(seed)
        assert torch.equal(found, other(x))
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_takes_one_operation() -> None:
    module = nn.Sequential(*(nn.BatchNorm1d(4) for _ in range(5)))
    with Dispatched() as counted, answering({module: CountingTogether(module)}):
        module(rows(6, 4).float())
    assert [name for name in counted.names if "add" in name] == ["aten._foreach_add_.Scalar"]


def test_counts_what_ran_before_an_error() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="shapes"), answering({module: CountingTogether(module)}):
        module(rows(6, 4).float())
    assert module[0].num_batches_tracked == 1


def test_which_modules_have_counters() -> None:
    assert has_counters([nn.Linear(2, 2), nn.BatchNorm1d(2)])
    assert not has_counters([nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2, track_running_stats=False)])
