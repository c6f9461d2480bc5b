"""FID: Frechet distance on features of the Inception network."""

from pd_jax.metrics._metric import Metric, Procedure
from pd_jax.metrics.frechet import frechet_distance


def _sentence(run: Procedure) -> str:
    against = f"{run.num_examples} {run.kind} examples of data {run.data}"
    if run.statistics:
        against = f"statistics {run.statistics}"
    return f"{run.network}: Frechet distance of {run.num_samples} samples to {against}"


METRIC = Metric(
    "fid",
    "FID",
    lambda both: frechet_distance(both.samples.pool, both.data.pool),
    _sentence,
    needs=("pictures", "features"),
    main=1,
    column=2,
)
