import pytest
import torch
from torch import nn

from agm.models import FactorisedNetwork, LateFusion, fusions


class Width(nn.Identity):
    num_features = 3


@pytest.mark.parametrize("fusion", fusions.values())
def test_width_comes_from_the_encoder_or_the_argument(fusion):
    net = fusion({"a": Width(), "b": nn.Linear(2, 8)}, 4, num_features={"b": 8})
    assert net.widths == {"a": 3, "b": 8}
    assert net.eval()(a=torch.randn(5, 3), b=torch.randn(5, 2)).shape == (5, 4)


def test_argument_wins_over_the_attribute():
    assert LateFusion({"a": Width()}, 2, num_features={"a": 7}).widths == {"a": 7}


@pytest.mark.parametrize("fusion", fusions.values())
def test_unknown_width_says_what_to_do(fusion):
    with pytest.raises(ValueError, match=r"width of modality 'b' .* got None.*num_features=\{'b': \.\.\.\}"):
        fusion({"a": Width(), "b": nn.Linear(2, 8)}, 4)


@pytest.mark.parametrize("name", ["target", "self", "not valid", "1st", "class", "keys", "training", "type", "", 3])
def test_unusable_names_are_refused(name):
    with pytest.raises(ValueError, match=r"modality name to be an identifier .* take letters, digits"):
        LateFusion({"a": Width(), name: Width()}, 4)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="at least one modality"):
        LateFusion({}, 4)
    with pytest.raises(ValueError, match="at least one modality"):
        LateFusion([Width()], 4)
    with pytest.raises(TypeError, match=r"encoder of modality 'a' to be an nn\.Module, but got function"):
        LateFusion({"a": lambda x: x}, 4, num_features={"a": 1})
    with pytest.raises(ValueError, match="`num_features` to name modalities among a, but got 'b'"):
        LateFusion({"a": Width()}, 4, num_features={"b": 1})
    for width in (0, 2.0, True):
        with pytest.raises(ValueError, match="width of modality 'a' to be a positive integer"):
            LateFusion({"a": Width()}, 4, num_features={"a": width})
    for classes in (0, -1, 2.0, True, None):
        with pytest.raises(ValueError, match="`num_classes`"):
            LateFusion({"a": Width()}, classes)


def test_a_feature_of_another_rank_is_refused():
    net = LateFusion({"a": Width()}, 4)
    with pytest.raises(ValueError, match=r"modality 'a' to be \(B, 3\), but got \(2, 5, 3\)"):
        net(a=torch.zeros(2, 5, 3))
    with pytest.raises(ValueError, match="but got dict"):
        net.fuse({"a": {"tokens": torch.zeros(2, 3)}})


def test_the_base_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        FactorisedNetwork({"a": Width()}, 4)
