"""Checks of constructor arguments that several networks share."""

__all__ = ["check_count", "check_fraction", "check_heads", "check_pool"]


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value!r}.")


def check_fraction(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a dropout probability, 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"Expected argument `{name}` to be a number with 0 <= {name} < 1, but got {value!r}.")


def check_heads(width: int, num_heads: int) -> None:
    """Raise ValueError unless `width` is a positive multiple of `num_heads`."""
    check_count("width", width)
    check_count("num_heads", num_heads)
    if width % num_heads:
        raise ValueError(f"Expected argument `width` to be a multiple of `num_heads` ({num_heads}), but got {width}.")


def check_pool(pool: str | None) -> None:
    """Raise ValueError unless `pool` is "mean" or None."""
    if pool not in ("mean", None):
        raise ValueError(f"Expected argument `pool` to be 'mean' or None (all tokens), but got {pool!r}.")
