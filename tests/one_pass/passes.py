"""One pass through a module for train rows and eval rows."""

import torch
from torch import Tensor, nn

from agm._module_state.eval_mode import evaluation
from agm._one_pass.layouts import Unsplit
from agm._one_pass.row_split import READS
from agm._one_pass.split_pass import split_pass, what_runs

BATCH, REST = 6, 7


def rows(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(module: nn.Module, train: Tensor, rest: Tensor, serves: bool = False) -> tuple[Tensor, Tensor]:
    """What it makes of train rows and of eval rows, also where it asks for its mode, if that changes nothing."""
    given, more = ((train,), {}), {id(train): rest}
    try:
        return split_pass(module, given, more, len(train), len(rest), serves=serves)
    except Unsplit as error:
        if str(error) != READS:
            raise
    expected = what_runs(module, given, more, len(train), len(rest))
    return split_pass(module, given, more, len(train), len(rest), serves=serves, expected=expected)


def one_pass(module: nn.Module, train: Tensor, rest: Tensor) -> Tensor:
    return torch.cat(both(module, train, rest))


def two_passes(module: nn.Module, train: Tensor, rest: Tensor) -> Tensor:
    first = module(train)
    with evaluation(module):
        return torch.cat([first, module(rest)])


class Twice(nn.Module):
    """One norm and one dropout, each called twice and reached by two paths."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.same = self.norm
        self.drop = nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.drop(self.same(x)) + x * 2.0))
