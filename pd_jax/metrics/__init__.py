"""Figures of merit that need no download."""

from pd_jax.metrics.frechet import Moments, frechet_distance
from pd_jax.metrics.rmse import rmse

__all__ = ["Moments", "frechet_distance", "rmse"]
