"""CMU-MOSEI's sentiments as numbers, and AVE's features by seconds and by clips."""

import numpy as np
import pytest
import torch

import agm.data
from agm.data.layouts import LayoutDataset, collate, convert, load_layout, open_layout, sentiment_figures
from agm.data.layouts.ave import event_shares

from . import trees
from .test_sets import opened


@pytest.mark.parametrize(("name", "test"), [("mosei", [-2.8, -1.8, -0.8, 0.0]), ("mosei-words", [-2.5, -2.0, 0.0])])
def test_a_sentiment_is_a_number_too(name, test, tmp_path):
    layout = opened(name, tmp_path / "set", labels="score")
    assert (layout.task, layout.class_names) == ("numbers", ("sentiment",))
    samples = layout.arrange()["test"]
    expected = torch.tensor(test).unsqueeze(1)
    torch.testing.assert_close(LayoutDataset(layout, samples).targets, expected)
    batch = collate([LayoutDataset(layout, samples)[place] for place in range(len(samples))])
    torch.testing.assert_close(batch[1], expected)
    convert(layout, tmp_path / "x.npz")
    for data in (agm.data.load(tmp_path / "x.npz"), load_layout(layout)):
        assert (data.task, data.class_names) == ("numbers", ("sentiment",))
        torch.testing.assert_close(data.test.target, expected)


def test_figures_of_sentiments():
    target = torch.tensor([[-3.0], [-1.0], [0.0], [0.0], [1.0], [2.0], [3.0], [-0.4]])
    guess = torch.tensor([-2.4, 0.2, 0.6, -0.1, 1.4, 2.6, 9.0, -0.6])
    figures = sentiment_figures(guess, target)
    assert figures["mae"] == pytest.approx((0.6 + 1.2 + 0.6 + 0.1 + 0.4 + 0.6 + 6 + 0.2) / 8)
    assert figures["correlation"] == pytest.approx(np.corrcoef(guess, target[:, 0])[0, 1])
    # Rounded: -2|-3, 0|-1, 1|0, 0|0, 1|1, 3|2, 3|3 and -1|0.
    assert figures["accuracy_7"] == pytest.approx(3 / 8)
    # From 0 on, or below: wrong are the second and the fourth. Positive: TP 4, FP 1, FN 1; negative: TP 2, FP 1, FN 1.
    assert figures["accuracy_2"] == pytest.approx(6 / 8)
    assert figures["f1"] == pytest.approx(5 / 8 * 8 / 10 + 3 / 8 * 4 / 6)
    # Without the zeros: six, of which the second is wrong.
    assert figures["accuracy_2_nonzero"] == pytest.approx(5 / 6)
    assert figures["f1_nonzero"] == pytest.approx(3 / 6 * 6 / 7 + 3 / 6 * 4 / 5)
    with pytest.raises(ValueError, match="Expected arguments `guess` and `target` to hold one number a sample"):
        sentiment_figures(guess[:3], target)


def test_ave_by_segments_and_by_clips(tmp_path):
    segments = opened("ave", tmp_path)
    assert len(segments.class_names) == 29
    assert segments.class_names[28] == "background"
    first = segments.listed()["train"][:10]  # clip 7: event 2 in seconds 2 to 5
    assert [sample.label for sample in first] == [28, 28, 2, 2, 2, 2, 28, 28, 28, 28]
    import h5py

    with h5py.File(tmp_path / "visual_feature.h5") as file:
        stored = file["avadataset"][7, 3]
    assert stored.shape == (7, 7, 8)
    np.testing.assert_array_equal(segments.read(first[3])["visual"], stored.reshape(49, 8))
    for form, values in (("grid", stored), ("mean", stored.reshape(49, 8).mean(0))):
        made = open_layout(tmp_path, visual=form).read(first[3])["visual"]
        np.testing.assert_allclose(made, values, rtol=0, atol=1e-6)
    clips = open_layout(tmp_path, unit="clips")
    assert [sample.name for sample in clips.listed()["train"]] == ["7", "0", "3", "5", "2"]
    assert [skipped.name for skipped in clips.skipped] == ["clip 11"]
    assert len(clips.class_names) == 28
    assert clips.read(clips.samples[0])["visual"].shape == (490, 8)  # a second's places after those of the one before
    np.testing.assert_array_equal(clips.read(clips.samples[0])["visual"][3 * 49 : 4 * 49], stored.reshape(49, 8))
    assert open_layout(tmp_path, unit="clips", visual="mean").read(clips.samples[0])["visual"].shape == (10, 8)
    assert open_layout(tmp_path, unit="clips", visual="grid").read(clips.samples[0])["visual"].shape == (10, 7, 7, 8)
    shares = event_shares(segments.segments)
    assert shares[7].tolist() == [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]
    assert shares[11].tolist() == [np.float32(0.1)] * 10  # as AGM's loader has it


def test_ave_without_places_in_frames(tmp_path):
    pytest.importorskip("h5py")
    trees.ave(tmp_path)
    (tmp_path / "visual_feature.h5").unlink()
    trees.write_h5(tmp_path / "visual_feature.h5", {"avadataset": np.zeros((12, 10, 8), np.float32)})
    with pytest.raises(ValueError, match=r"Expected .*visual_feature\.h5 to hold features of places in frames"):
        open_layout(tmp_path)
