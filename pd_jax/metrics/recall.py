"""Recall: the share of the data within the samples' manifold."""

from pd_jax.metrics._metric import Metric

METRIC = Metric(
    "recall",
    "recall",
    lambda both: both.precision_recall[1],
    lambda run: "as precision",
    needs=("pictures", "features"),
    higher_is_better=True,
    log_axis=False,
    column=6,
    least=4,  # each has a third nearest neighbour
)
