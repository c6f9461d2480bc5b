"""A metric: what a file of this folder defines as `METRIC`."""

import dataclasses
from collections.abc import Callable

from pd_jax.metrics._summary import KEPT, Comparison
from pd_jax.space import Space


@dataclasses.dataclass(frozen=True)
class Procedure:
    """How the samples of a run are measured, for the sentences of its report.

    Attributes:
      num_samples: in each row.
      num_paired: of them, those compared one by one with a reference's.
      num_examples: of the data.
      kind: of these examples: "training" or "held-back".
      data: the data set's name.
      space: what one example is.
      reference_steps: sampling steps of the teacher's own best samples.
      network: what makes features, in words; empty without one.
      statistics: file of the data's features; empty if they are computed.
      perceptual_size: that smaller pictures are enlarged to for LPIPS.
    """

    num_samples: int
    num_paired: int
    num_examples: int
    kind: str
    data: str
    space: Space
    reference_steps: int
    network: str
    statistics: str
    perceptual_size: int = 0

    @property
    def sets(self) -> str:
        """The two sets whose features are kept, in words."""
        samples, examples = (
            min(n, KEPT) for n in (self.num_samples, self.num_examples)
        )
        return f"{samples} samples and {examples} {self.kind} examples"


@dataclasses.dataclass(frozen=True)
class Metric:
    """A figure of merit of a row's samples.

    Attributes:
      name: in rows and files.
      label: in tables and plots.
      compute: the figure of a comparison.
      sentence: how the figure is made, for the report's protocol.
      needs: of "pictures", "features", "perceptual", "reference_teacher" and
        "reference_exact" (samples from the same noise); the metric is left out of runs
        without them.
      higher_is_better: the direction.
      log_axis: whether plots have a log axis; not for figures that can be 0 or less.
      main: rank among the metrics of summaries, from 1; 0 for the others.
      column: place in tables, from the left; those of one column go by name.
      least: the fewest samples, and examples, that it can be computed of.
    """

    name: str
    label: str
    compute: Callable[[Comparison], float]
    sentence: Callable[[Procedure], str]
    needs: tuple[str, ...] = ()
    higher_is_better: bool = False
    log_axis: bool = True
    main: int = 0
    column: int = 100
    least: int = 2
