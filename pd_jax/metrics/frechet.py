"""Frechet distance between two Gaussians fitted to data, in float64 on the host.

    d^2 = |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2)

Source: Dowson & Landau 1982; Heusel et al. 2017 (1706.08500) for features of images.
"""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Mean [D] and covariance [D, D] of a set of vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, data: np.ndarray) -> "Moments":
        """Moments of examples [N, ...], flattened; N >= 2, unbiased covariance."""
        if len(data) < 2:
            raise ValueError(f"{len(data)} examples: a covariance needs at least 2")
        flat = np.asarray(data, np.float64).reshape(len(data), -1)
        covariance = np.cov(flat, rowvar=False).reshape(flat.shape[1], -1)
        return cls(flat.mean(axis=0), covariance)


def frechet_distance(a: Moments | np.ndarray, b: Moments | np.ndarray) -> float:
    """Squared Frechet distance (the "FID" form) of two sets.

    Args:
      a, b: examples [N, ...], or their Moments.

    The product of two covariances is not symmetric, and its square root is unstable
    where they are singular (pixels that never change). Its trace is also the sum of the
    singular values of A^1/2 B^1/2, which are never below 0.
    """
    a, b = (s if isinstance(s, Moments) else Moments.of(s) for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"{a.mean.size} and {b.mean.size} dimensions: both sets need the same"
        )
    cross = np.linalg.norm(_root(a.covariance) @ _root(b.covariance), "nuc")
    spread = np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * cross
    return max(0.0, float(np.sum(np.square(a.mean - b.mean)) + spread))


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
