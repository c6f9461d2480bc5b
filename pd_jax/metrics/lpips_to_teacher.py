"""How different samples look from the teacher's own best ones of the same noise."""

import numpy as np

from pd_jax.metrics._metric import Metric
from pd_jax.metrics._summary import Comparison


def _compute(both: Comparison) -> float:
    reference = both.references["reference_teacher"]
    return float(np.mean(both.perceptual(both.first[: len(reference)], reference)))


METRIC = Metric(
    "lpips_to_teacher",
    "LPIPS to the teacher's own best samples",
    _compute,
    lambda run: (
        f"mean LPIPS of {run.num_paired} samples to the teacher's own of "
        f"{run.reference_steps} steps from the same noise, enlarged to "
        f"{run.perceptual_size} pixels where smaller"
    ),
    needs=("pictures", "reference_teacher", "perceptual"),
    column=8,
)
