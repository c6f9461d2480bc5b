"""Distance between samples of two models from the same noise."""

from collections.abc import Callable

import numpy as np

from pd_jax.metrics._summary import Comparison


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean squared difference of two arrays of one shape, over all axes."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}: both need the same")
    return float(np.sqrt(np.mean(np.square(np.subtract(a, b, dtype=np.float64)))))


def rmse_to(name: str) -> Callable[[Comparison], float]:
    """RMSE of the first samples of a comparison to the reference of that name."""

    def compute(both: Comparison) -> float:
        reference = both.references[name]
        return rmse(both.first[: len(reference)], reference)

    return compute
