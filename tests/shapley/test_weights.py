from itertools import permutations

import pytest
import torch

import agm
from agm.ops import reference


@pytest.mark.parametrize("modalities", [2, 3, 4, 5])
def test_weights_are_the_mean_marginal_contribution_over_all_orders(modalities: int) -> None:
    """The definition of the Shapley value, the empty coalition worth 0."""
    worth = torch.randn(2**modalities, dtype=torch.float64)
    worth[0] = 0
    orders = list(permutations(range(modalities)))
    expected = torch.zeros(modalities, dtype=torch.float64)
    for order in orders:
        subset = 0
        for modality in order:
            expected[modality] += worth[subset | 1 << modality] - worth[subset]
            subset |= 1 << modality
    torch.testing.assert_close(agm.subset_weights(modalities) @ worth[1:], expected / len(orders))


def test_two_modalities_as_written_in_the_paper() -> None:
    # columns: audio alone, visual alone, both
    expected = torch.tensor([[0.5, -0.5, 0.5], [-0.5, 0.5, 0.5]], dtype=torch.float64)
    assert torch.equal(agm.subset_weights(2), expected)


@pytest.mark.parametrize("modalities", [2, 3, 6, 16])
def test_responses_sum_to_the_joint_logits(modalities: int) -> None:
    total = agm.subset_weights(modalities).sum(0)
    expected = torch.zeros(2**modalities - 1, dtype=torch.float64)
    expected[-1] = 1
    torch.testing.assert_close(total, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_facts_about_the_subset_scales(modalities: int) -> None:
    kappa = torch.rand(modalities, dtype=torch.float64) * 3
    scales = reference.subset_scales(kappa)
    subset = torch.arange(1, 2**modalities)
    torch.testing.assert_close(scales[-1], kappa.mean())
    for m in range(modalities):
        present = (subset >> m & 1).bool()
        torch.testing.assert_close(scales[present].sum(), kappa[m])
        torch.testing.assert_close(scales[~present].sum(), kappa.mean() - kappa[m])
    torch.testing.assert_close(scales, kappa @ agm.subset_weights(modalities))


@pytest.mark.parametrize("modalities", [2, 3, 6])
def test_unmodulated_scales_are_exact(modalities: int) -> None:
    scales = reference.subset_scales(torch.ones(modalities, dtype=torch.float64))
    assert scales.tolist() == [0.0] * (2**modalities - 2) + [1.0]


def test_the_caller_may_write_to_the_weights() -> None:
    agm.subset_weights(2).zero_()
    assert agm.subset_weights(2)[0, 0] == 0.5


@pytest.mark.parametrize("wrong", [1, 0, -3, 17, 2.0, True, "2"])
def test_wrong_number_of_modalities(wrong: object) -> None:
    with pytest.raises(ValueError, match="`modalities`"):
        agm.subset_weights(wrong)  # type: ignore[arg-type]
