"""Figures of merit of samples; one metric a file.

None needs a download; `pd_jax.metrics.inception`, imported when asked for, turns images
into the features of published FIDs with weights that you give.

A metric's file defines `METRIC`, a `Metric`: rows, tables, plots and the report's
protocol ask it for everything that they need.
"""

import importlib
import sys

from pd_jax.metrics._metric import Metric, Procedure
from pd_jax.metrics._moments import (
    Moments,
    RunningMoments,
    load_statistics,
    save_statistics,
)
from pd_jax.metrics._summary import Comparison, Reference, Summary
from pd_jax.metrics.frechet import frechet_distance, shrink
from pd_jax.metrics.inception_score import inception_score
from pd_jax.metrics.kid import kernel_distance
from pd_jax.metrics.manifold import precision_recall
from pd_jax.metrics.rmse import rmse
from pd_jax.runtime import registry

__all__ = [
    "Comparison",
    "Metric",
    "Moments",
    "Procedure",
    "Reference",
    "RunningMoments",
    "Summary",
    "direction",
    "every",
    "frechet_distance",
    "inception_score",
    "is_log",
    "kernel_distance",
    "label",
    "load_statistics",
    "main",
    "precision_recall",
    "rmse",
    "save_statistics",
    "shrink",
]


def every() -> list[Metric]:
    """All metrics, in the order of tables' columns."""
    names = registry.members(sys.modules[__name__])
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    # The other files are functions that metrics share, and networks.
    metrics = [module.METRIC for module in modules if hasattr(module, "METRIC")]
    return sorted(metrics, key=lambda metric: (metric.column, metric.name))


def main() -> list[str]:
    """Names of the metrics of summaries, the first one first."""
    ranked = [metric for metric in every() if metric.main]
    return [metric.name for metric in sorted(ranked, key=lambda metric: metric.main)]


def _by_name(name: str) -> Metric | None:
    return next((metric for metric in every() if metric.name == name), None)


def label(name: str) -> str:
    """A metric in words; an unknown one is called by its name."""
    metric = _by_name(name)
    return name if metric is None else metric.label


def direction(name: str) -> str:
    """Which values of a metric are good, in words; "" for an unknown one."""
    metric = _by_name(name)
    if metric is None:
        return ""
    return f"{'higher' if metric.higher_is_better else 'lower'} is better"


def is_log(name: str) -> bool:
    """Whether a metric's axis is logarithmic, as also an unknown one's."""
    metric = _by_name(name)
    return metric is None or metric.log_axis
