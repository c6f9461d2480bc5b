"""Precision and recall of samples: are they good, and do they cover the data?"""

import numpy as np

from pd_jax.metrics._pairs import tiles, vectors

# What the difference that gives a squared distance loses, at most, relative to the
# vectors' squared lengths: on the edge of a ball is within it.
ROUNDING = 1e-12


def precision_recall(
    real: np.ndarray, generated: np.ndarray, k: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al. 2019, 1904.06991).

    A set's manifold is the union of balls around its examples, each reaching to the
    k-th nearest other example. Precision is the share of generated examples within the
    real manifold, recall the share of real examples within the generated one.

    Args:
      real, generated: examples [N, ...] and [M, ...], flattened; N and M above k. Both
        figures depend on N and M; published ones are for 50000 each.
      k: which neighbour.

    Returns:
      (precision, recall), each in 0..1.

    Raises:
      ValueError: for sets of different dimensions, too few examples, or not finite.
    """
    if k < 1:
        raise ValueError(f"k={k}: neighbours are counted from 1")
    real, generated = vectors(real, generated, least=k + 1)
    centre = real.mean(axis=0, dtype=np.float64, keepdims=True)
    real, generated = real - centre, generated - centre
    reach_real, reach_generated = _reach(real, k), _reach(generated, k)
    precise = np.zeros(len(generated), bool)
    recalled = np.zeros(len(real), bool)
    for rows in tiles(real):
        for columns in tiles(generated):
            squared = _squared(real[rows], generated[columns], ROUNDING)
            precise[columns] |= np.any(squared <= reach_real[rows, None], axis=0)
            recalled[rows] |= np.any(squared <= reach_generated[None, columns], axis=1)
    return float(precise.mean()), float(recalled.mean())


def _reach(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each example to its k-th nearest other [N]."""
    reach = []
    for rows in tiles(x):
        near = np.full((len(x[rows]), 0), 0.0)
        for columns in tiles(x):
            squared = _squared(x[rows], x[columns])
            if rows == columns:
                np.fill_diagonal(squared, np.inf)
            near = np.concatenate([near, squared], axis=1)
            near = np.partition(near, min(k, near.shape[1]) - 1, axis=1)[:, :k]
        reach.append(near[:, -1])
    return np.concatenate(reach)


def _squared(x: np.ndarray, y: np.ndarray, slack: float = 0.0) -> np.ndarray:
    """Squared distances [N, M], less `slack` of the squared lengths."""
    lengths = np.sum(x * x, axis=1)[:, None] + np.sum(y * y, axis=1)[None]
    return (1.0 - slack) * lengths - 2.0 * x @ y.T
