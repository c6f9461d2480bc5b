"""Two sets of vectors, all pairs of which are looked at a tile at a time."""

import math
from collections.abc import Iterator

import numpy as np

TILE = 1024  # examples: 8 MiB of pairs


def vectors(*sets: np.ndarray, least: int) -> list[np.ndarray]:
    """The sets as finite [N, D] of one D, N at least `least`; ValueError otherwise."""
    flat = [np.reshape(s, (len(s), math.prod(np.shape(s)[1:]))) for s in sets]
    if len({x.shape[1] for x in flat}) > 1:
        sizes = " and ".join(str(x.shape[1]) for x in flat)
        raise ValueError(f"{sizes} dimensions: both sets need the same")
    for x in flat:
        if len(x) < least:
            raise ValueError(f"{len(x)} examples: at least {least} are needed")
        if not np.all(np.isfinite(x)):
            raise ValueError("a set holds values that are not finite")
    return flat


def tiles(x: np.ndarray) -> Iterator[slice]:
    """Slices that cut a set into parts of at most TILE examples."""
    for start in range(0, len(x), TILE):
        yield slice(start, start + TILE)
