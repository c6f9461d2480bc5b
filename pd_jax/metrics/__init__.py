"""Figures of merit of samples.

None needs a download; `pd_jax.metrics.inception`, imported when asked for, turns images
into the features of published FIDs with weights that you give.
"""

from pd_jax.metrics.frechet import frechet_distance, shrink
from pd_jax.metrics.kernel import kernel_distance
from pd_jax.metrics.manifold import precision_recall
from pd_jax.metrics.moments import (
    Moments,
    RunningMoments,
    load_statistics,
    save_statistics,
)
from pd_jax.metrics.rmse import rmse
from pd_jax.metrics.score import inception_score

__all__ = [
    "Moments",
    "RunningMoments",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_statistics",
    "precision_recall",
    "rmse",
    "save_statistics",
    "shrink",
]
