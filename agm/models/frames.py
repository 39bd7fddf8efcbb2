"""Video as rows: encoders of images read (B, T, C, H, W) by folding the frames into the batch."""

from torch import Tensor

__all__ = ["fold_frames", "gather_maps"]


def fold_frames(x: Tensor, channels: int) -> tuple[Tensor, int]:
    """Images (B, C, H, W) or frames (B, T, C, H, W) -> rows (B * T, C, H, W), and T (1 for images).

    Raises:
        ValueError: another rank, or another number of channels.
    """
    if x.ndim not in (4, 5) or x.shape[-3] != channels:
        raise ValueError(
            f"Expected images (B, {channels}, H, W) or frames (B, T, {channels}, H, W), but got {tuple(x.shape)}."
        )
    return (x, 1) if x.ndim == 4 else (x.flatten(0, 1), x.shape[1])


def gather_maps(maps: Tensor, frames: int, pool: str | None) -> Tensor:
    """Feature maps (B * T, D, H, W) -> their mean over T, H and W (B, D), or all tokens (B, T * H * W, D)."""
    tokens = maps.flatten(2).transpose(1, 2)  # (B * T, H * W, D)
    if frames != 1:
        tokens = tokens.unflatten(0, (-1, frames)).flatten(1, 2)
    return tokens.mean(dim=1) if pool == "mean" else tokens
