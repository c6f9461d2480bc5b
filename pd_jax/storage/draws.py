"""Subsets of a set that may be in any order, sorted ones too: drawn from all of it."""

import numpy as np


def rows(num: int, of: int, seed: int) -> np.ndarray:
    """Rows of a set, in random order: any first ones are a draw of their own.

    Args:
      num: how many; all `of` them, in their order, where it is as large.
      of: how many there are.
      seed: of the draw.
    """
    if num >= of:
        return np.arange(of)
    return np.random.default_rng(seed).permutation(of)[:num]


class Draw:
    """A draw of at most so many vectors from all that come by, in their order."""

    def __init__(self, num: int, seed: int = 0):
        """Begins empty; `num` are kept at most."""
        self._num, self._rng = num, np.random.default_rng(seed)
        self._kept: list[np.ndarray] = []
        self._ranks = np.zeros(0)

    def add(self, batch: np.ndarray) -> None:
        """Looks at vectors [B, D]. Of all seen those of the lowest ranks are kept."""
        self._kept.append(np.array(batch))
        self._ranks = np.append(self._ranks, self._rng.random(len(batch)))
        if len(self._ranks) > 2 * self._num:  # seldom: each time costs a copy
            self._choose()

    def _choose(self) -> None:
        lowest = np.sort(np.argsort(self._ranks, kind="stable")[: self._num])
        self._kept = [np.concatenate(self._kept)[lowest]]
        self._ranks = self._ranks[lowest]

    @property
    def drawn(self) -> np.ndarray:
        """The draw, [N, D]; [0, 1] before anything came."""
        if not self._kept:
            return np.zeros((0, 1))
        if len(self._ranks) > self._num:
            self._choose()
        return np.concatenate(self._kept)
