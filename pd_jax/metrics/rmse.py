"""Distance between samples of two models from the same noise."""

import numpy as np


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean squared difference of two arrays of one shape, over all axes."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}: both need the same")
    return float(np.sqrt(np.mean(np.square(np.subtract(a, b, dtype=np.float64)))))
