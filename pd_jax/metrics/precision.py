"""Precision: the share of samples within the data's manifold."""

from pd_jax.metrics._metric import Metric

METRIC = Metric(
    "precision",
    "precision",
    lambda both: both.precision_recall[0],
    lambda run: f"{run.network}: 3 nearest neighbours, {run.sets}",
    needs=("pictures", "features"),
    higher_is_better=True,
    log_axis=False,
    column=5,
    least=4,  # each has a third nearest neighbour
)
