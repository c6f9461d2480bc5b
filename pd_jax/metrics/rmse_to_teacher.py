"""Distance to the teacher's own best samples from the same noise."""

from pd_jax.metrics._metric import Metric
from pd_jax.metrics.rmse import rmse_to

METRIC = Metric(
    "rmse_to_teacher",
    "RMSE to the teacher's own best samples",
    rmse_to("reference_teacher"),
    lambda run: (
        f"root mean squared difference of {run.num_paired} samples to the teacher's "
        f"own of {run.reference_steps} steps from the same noise"
    ),
    needs=("reference_teacher",),
    main=3,
    column=7,
)
