"""Narrow Gaussians on a ring in the plane: data whose denoiser is known exactly."""

import numpy as np

from pd_jax import analytic
from pd_jax.data import Dataset, InMemory
from pd_jax.runtime.errors import Refused
from pd_jax.space import POINTS


def load(
    modes: int = 8, radius: float = 1.0, std: float = 0.05, num_points: int = 65_536
) -> Dataset:
    """Points [N, 2] of a mixture of `modes` round Gaussians, equally likely.

    Args:
      modes: how many, evenly around the ring.
      radius: of the ring.
      std: standard deviation of each.
      num_points: how many are drawn.

    Raises:
      Refused: unless all four are positive.
    """
    for key, value in dict(
        modes=modes, radius=radius, std=std, num_points=num_points
    ).items():
        if value <= 0:
            raise Refused(f"data.{key}={value}: must be positive")
    angle = 2.0 * np.pi * np.arange(modes) / modes
    means = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rng = np.random.default_rng(0)
    mode = rng.integers(modes, size=num_points)
    points = means[mode] + std * rng.standard_normal((num_points, 2))
    return InMemory(
        points.astype(np.float32),
        denoise=analytic.mixture(means.astype(np.float32), std),
        kind=POINTS,
    )
