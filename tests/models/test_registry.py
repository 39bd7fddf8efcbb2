import pytest

from agm.models import (
    CrossAttentionFusion,
    EarlyFusion,
    FiLMFusion,
    GatedFusion,
    GuidedAttentionFusion,
    LateFusion,
    MLPEncoder,
    SmallCNN,
    TransformerEncoder,
    build,
    fusions,
)

SHAPES = {"image": (3, 8, 8), "text": (5, 6), "table": (7,), "video": (4, 1, 8, 8)}


def test_the_names():
    assert list(fusions) == ["late", "late-sum", "early", "film", "gated", "cross-attention", "guided-attention"]
    kinds = [LateFusion, LateFusion, EarlyFusion, FiLMFusion, GatedFusion]
    kinds += [CrossAttentionFusion, GuidedAttentionFusion]
    for (name, fusion), kind in zip(fusions.items(), kinds, strict=True):
        assert issubclass(fusion, kind)
        assert type(build(name, SHAPES, 3, width=8)) is fusion
    assert build("late-sum", SHAPES, 3).combine == "sum"
    assert build("late", SHAPES, 3).combine == "concat"


@pytest.mark.parametrize("fusion", fusions)
@pytest.mark.parametrize("width", [4, 6, 64])
def test_encoders_go_by_the_sample_shape(fusion, width):
    net = build(fusion, SHAPES, 3, width=width)
    image, text, table, video = net.encoders.values()
    pool = None if fusion in ("cross-attention", "guided-attention") else "mean"
    assert [type(e) for e in net.encoders.values()] == [SmallCNN, TransformerEncoder, MLPEncoder, SmallCNN]
    assert (image.in_channels, image.pool, video.in_channels) == (3, pool, 1)
    assert (text.embedding.in_features, len(text.positions), text.pool) == (6, 5, pool)
    assert table.layers[0].in_features == 7
    assert set(net.widths.values()) == {width}


def test_early_keeps_the_papers_proportions():
    net = build("early", {"a": (3,), "b": (4,)}, 5, width=512)
    assert net.trunk[1].linear.in_features == 1024
    assert net.trunk[1].linear.out_features == 2 * 2048
    assert net.classifier.in_features == 1024


def test_errors_name_what_is_known():
    with pytest.raises(ValueError, match=r"one of late, .* cross-attention, guided-attention, but got 'mid'"):
        build("mid", SHAPES, 3)
    for shape in ((), (1, 2, 3, 4, 5), (0,), (3, 0, 8)):
        with pytest.raises(ValueError, match=r"sample shape of modality 'x' to be \(D,\), \(T, D\)"):
            build("late", {"x": shape}, 3)
    with pytest.raises(ValueError, match="`width`"):
        build("late", SHAPES, 3, width=2)
    with pytest.raises(ValueError, match="at least one modality"):
        build("late", {}, 3)
