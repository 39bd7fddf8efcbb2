from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Data = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def data() -> Callable[..., Data]:
    """fit_features, fit_concepts, features, concepts: a part of each concept can be read from the features."""

    def draw(fit: int = 300, test: int = 200, width: int = 12, outputs: int = 5, noise: float = 1.0) -> Data:
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "dtype": torch.float64}
        weight, mixing = torch.randn(width, outputs, **options), torch.randn(outputs, outputs, **options)
        parts = []
        for count in (fit, test):
            features = torch.randn(count, width, **options) * torch.linspace(0.2, 2, width, dtype=torch.float64)
            parts += [features, features @ weight + noise * torch.randn(count, outputs, **options) @ mixing]
        return tuple(parts)

    return draw
