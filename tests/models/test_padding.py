import torch

from agm.models.padding import masked_attention_inputs, masked_mean


def test_no_row_of_an_attention_mask_is_all_padding():
    mask = torch.tensor([[False, True], [True, True], [False, False]])
    attended, empty = masked_attention_inputs(mask)
    assert attended.tolist() == [[False, True], [False, False], [False, False]]
    assert empty.flatten().tolist() == [False, True, False]
    assert empty.shape == (3, 1, 1)


def test_masked_mean_against_a_loop():
    x = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = [4, 1, 0]
    mask = torch.arange(4) >= torch.tensor(lengths).unsqueeze(1)
    expected = [x[i, :n].mean(0) if n else torch.zeros(2, dtype=torch.float64) for i, n in enumerate(lengths)]
    torch.testing.assert_close(masked_mean(x, mask), torch.stack(expected))
    torch.testing.assert_close(masked_mean(x, None), x.mean(1))
    assert masked_mean(x.half(), mask).dtype == torch.float16
