"""Parameter gradients, rescaled in place, with noise if wanted."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from agm.ops.reference.modulate import accumulation_dtype

_MASK = 0xFFFFFFFF


def scale_gradients_(grads: list[Tensor], groups: list[int], coefficients: Tensor, seed: Tensor | None) -> None:
    """g <- k g, k being `coefficients[groups[i]]` for tensor i; with a seed, g <- k g + n.

    n is normal noise with the standard deviation of g before the rescaling (unbiased; 0 for a single element), plus
    1e-8. Its normal numbers are those of `philox_normal` with the number of the tensor in the list. All is computed
    in float32 (float64 for float64) and rounded once.
    """
    if seed is None:
        _scale_(grads, groups, coefficients)
        return
    for number, (grad, group) in enumerate(zip(grads, groups, strict=True)):
        wide = accumulation_dtype(grad.dtype)
        value = grad.to(wide)
        result = value * coefficients[group].to(wide)
        if grad.numel() > 0:
            deviation = value.double().std() if grad.numel() > 1 else value.new_zeros((), dtype=torch.float64)
            noise = philox_normal(seed, number, grad.numel()).view(grad.shape)
            result = result + noise.to(wide) * (deviation + 1e-8).to(wide)
        grad.copy_(result)


def _scale_(grads: list[Tensor], groups: list[int], coefficients: Tensor) -> None:
    """g <- k g: on a GPU a few launches for all tensors of one type and one coefficient."""
    alike: defaultdict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
    for grad, group in zip(grads, groups, strict=True):
        alike[grad.dtype, group].append(grad)
    for (dtype, group), own in alike.items():
        wide = accumulation_dtype(dtype)
        coefficient = coefficients[group].to(wide)
        if dtype == wide:
            torch._foreach_mul_(own, coefficient)
            continue
        # Multiplied as they are, 16-bit tensors would round the coefficient to 16 bits too.
        values = [torch.empty_like(grad, dtype=wide) for grad in own]
        torch._foreach_copy_(values, own)
        torch._foreach_mul_(values, coefficient)
        torch._foreach_copy_(own, values)


def philox_normal(seed: Tensor, stream: int, count: int) -> Tensor:
    """`count` float32 normal numbers of one stream of Philox-4x32-10 (Salmon et al., "Parallel random numbers", 2011).

    Block i has the counter (i mod 2**32, i // 2**32, stream, 0) and the key (seed mod 2**32, seed // 2**32). Its words
    give four numbers by Box and Muller: words 0 and 1 the first two (cosine, sine), words 2 and 3 the others.
    """
    block = torch.arange((count + 3) // 4, device=seed.device)
    words = _philox(
        [block & _MASK, block >> 32, torch.full_like(block, stream), torch.zeros_like(block)],
        [seed.view(()) & _MASK, seed.view(()) >> 32 & _MASK],
    )
    pairs = []
    for first, second in (words[:2], words[2:]):
        uniform = ((first >> 8).float() + 0.5) * 2.0**-24  # in (0, 1]
        radius = (-2 * uniform.log()).sqrt()
        angle = (second >> 8).float() * (2.0**-24 * 2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, 1).flatten()[:count]


def _philox(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Ten rounds on 32-bit words, which are kept in int64."""
    for _ in range(10):
        low, high = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (high >> 32 & _MASK) ^ counter[1] ^ key[0],
            high & _MASK,
            (low >> 32 & _MASK) ^ counter[3] ^ key[1],
            low & _MASK,
        ]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return counter
