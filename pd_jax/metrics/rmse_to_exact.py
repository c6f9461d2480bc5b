"""Distance to where the exact probability flow takes the same noise."""

from pd_jax.metrics._metric import Metric
from pd_jax.metrics.rmse import rmse_to

METRIC = Metric(
    "rmse_to_exact",
    "RMSE to the exact probability-flow map",
    rmse_to("reference_exact"),
    lambda run: (
        f"root mean squared difference of {run.num_paired} samples to where the exact "
        "probability flow takes the same noise"
    ),
    needs=("reference_exact",),
    main=4,
    column=8,
)
