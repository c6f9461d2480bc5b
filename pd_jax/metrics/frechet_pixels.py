"""Frechet distance on raw values, which needs no network."""

import math

from pd_jax.metrics._metric import Metric, Procedure
from pd_jax.metrics._summary import SIDE, VALUES
from pd_jax.metrics.frechet import frechet_distance


def _sentence(run: Procedure) -> str:
    small = run.space.has_areas and max(run.space.shape[:2]) > SIDE
    averaged = f", averaged down to at most {SIDE} pixels a side" * small
    sides = [min(n, SIDE) for n in run.space.shape[:2]] if run.space.has_areas else []
    if math.prod([*sides, *run.space.shape[len(sides) :]]) > VALUES:
        averaged += f", as {VALUES} seeded sums of them with random signs"
    return (
        f"Frechet distance of {run.num_samples} samples to {run.num_examples} "
        f"{run.kind} examples, on their raw values{averaged}"
    )


METRIC = Metric(
    "frechet_pixels",
    "Frechet distance on raw values",
    lambda both: frechet_distance(both.samples.pixels, both.data.pixels),
    _sentence,
    main=2,
    column=1,
)
