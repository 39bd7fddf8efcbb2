import pytest

from agm.training.config import Config
from agm.training.errors import UserError
from agm.training.variants import parse_variant, split_variants


def test_settings_and_options_of_a_variant():
    variant = parse_variant("agm(alpha=0.5, masked=shared, clip_norm=1, smoothing=0.9)")
    assert variant.label == "agm(alpha=0.5,masked=shared,clip_norm=1,smoothing=0.9)"
    config = variant.config(Config(lr=0.1, seed=3))
    assert (config.method, config.alpha, config.masked, config.clip_norm) == ("agm", 0.5, "shared", 1.0)
    assert (config.lr, config.seed, config.options) == (0.1, 3, {"smoothing": 0.9})


def test_alpha_of_another_method_is_its_option():
    variant = parse_variant("ogm-ge(alpha=0.3,lr=0.1,noise=false)")
    assert variant.settings == {"lr": 0.1}
    assert variant.options == {"alpha": 0.3, "noise": False}
    assert variant.config(Config()).alpha == Config().alpha


def test_values_as_in_toml():
    variant = parse_variant("mslr(initial={audio = 1.3, image = 0.7}, stop=none)")
    assert variant.options == {"initial": {"audio": 1.3, "image": 0.7}}
    assert variant.settings == {"stop": None}
    assert parse_variant(" unimodal:audio ").config(Config()).method == "unimodal:audio"


def test_commas_inside_brackets_part_nothing():
    assert split_variants("joint, agm(a=1,b={c=2,d=3}),,mslr ") == ["joint", "agm(a=1,b={c=2,d=3})", "mslr"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agm(alpha)", "written NAME"),
        ("agm(alpha=1", "written NAME"),
        ("agm(alpha=1,alpha=2)", "written NAME"),
        ("agm()x", "written NAME"),
        ("amg(alpha=1)", "to be one of joint, agm"),
        ("joint(alpha=1)", "method 'joint' to be among encoders, width"),
        ("agm(seed=1)", "but got 'seed'"),
        ("mslr(masked=shared)", "but got 'masked'"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=message):
        parse_variant(text)
    with pytest.raises(UserError):
        split_variants("agm(")
