"""Kernel distance (KID): unbiased for few samples, where a Frechet distance is not."""

import numpy as np

from pd_jax.metrics._metric import Metric
from pd_jax.metrics._pairs import tiles, vectors


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, unbiased.

    Source: Binkowski et al. 2018 (1801.01401), equation 4. Of all pairs, in float64;
    published figures are means over random subsets of 1000, which estimate the same
    with more noise. It can be a little below 0 for equal distributions.

    Args:
      a, b: examples [N, ...] and [M, ...], flattened; N and M at least 2.

    Raises:
      ValueError: for sets of different dimensions, too few examples, or not finite.
    """
    a, b = vectors(a, b, least=2)
    within = sum(_within(x) / (len(x) * (len(x) - 1)) for x in (a, b))
    across = sum(_kernel(a[i], b[j]).sum() for i in tiles(a) for j in tiles(b))
    return float(within - 2.0 * across / (len(a) * len(b)))


def _within(x: np.ndarray) -> float:
    """The kernel summed over all ordered pairs of different examples."""
    total = 0.0
    for i in tiles(x):
        for j in tiles(x):
            if i == j:
                kernel = _kernel(x[i], x[i])
                total += kernel.sum() - np.trace(kernel)
            elif i.start < j.start:
                total += 2.0 * _kernel(x[i], x[j]).sum()
    return total


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1.0
    return base * base * base


METRIC = Metric(
    "kid",
    "KID",
    lambda both: kernel_distance(both.samples.features, both.data.features),
    lambda run: f"{run.network}: cubic kernel distance of {run.sets}",
    needs=("pictures", "features"),
    log_axis=False,
    column=4,
)
