"""Inception Score: are samples each of one class, and together of many?"""

import itertools

import numpy as np

from pd_jax.metrics._metric import Metric


def inception_score(logits: np.ndarray, splits: int = 1) -> float:
    """exp of the mean of KL(p(y|x) || p(y)) over examples, in float64; 1 to K.

    Source: Salimans et al. 2016 (1606.03498).

    Args:
      logits: [N, K]. Published scores are of logits without the bias of the last layer
        (see `inception.features`) of 50000 images.
      splits: the score is the mean over so many runs of consecutive examples, each
        with its own p(y): published ones have 10, the default is all examples at once.
        Smaller splits score lower.

    Raises:
      ValueError: for another shape, values that are not finite, or more splits than
        examples.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size or not np.all(np.isfinite(logits)):
        raise ValueError(f"logits are {logits.shape}; finite [N, K] are needed")
    if not 1 <= splits <= len(logits):
        raise ValueError(
            f"{splits} splits of {len(logits)} examples: 1 to N are allowed"
        )
    log_p = logits - logits.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    bounds = np.arange(splits + 1) * len(logits) // splits
    return float(np.mean([_score(log_p[i:j]) for i, j in itertools.pairwise(bounds)]))


def _score(log_p: np.ndarray) -> float:
    p = np.exp(log_p)
    # The floor matters only to classes of probability 0, whose terms are 0.
    log_mean = np.log(np.maximum(p.mean(axis=0, keepdims=True), np.finfo(p.dtype).tiny))
    return np.exp(np.mean(np.sum(p * (log_p - log_mean), axis=1)))


METRIC = Metric(
    "inception_score",
    "Inception Score",
    lambda both: inception_score(both.samples.logits),
    lambda run: (
        f"{run.network}: of {run.num_samples} samples, one split, logits without bias"
    ),
    needs=("pictures", "features"),
    higher_is_better=True,
    log_axis=False,
    column=3,
)
