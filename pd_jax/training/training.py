"""A training: one compiled step, and the stages that it runs."""

import dataclasses

import jax

from pd_jax.data import Dataset
from pd_jax.training.method import Method
from pd_jax.training.plateau import Plateau
from pd_jax.training.stage import Stage
from pd_jax.training.step import Measure, Step


@dataclasses.dataclass(eq=False)
class Training:
    """One compiled step and the stages that it runs, in order.

    Attributes:
      name: its config section, such as "teacher" or "ladder".
      method: the objective.
      step: its update on all devices.
      stages: the stages.
      dataset: what its batches come from.
      batch: examples per update.
      key: base random key of the updates, placed.
      start_key: of what is random before them.
      seed: base seed of the data order.
      init: name of the training that hands over its first weights: "" for the one
        before, "fresh" for new ones.
      taught_by: name of the training whose model teaches; "" for the one before.
      plateau: when a stage ends early.
      measure: the validation loss of what a stage would hand over; None for no checks.
    """

    name: str
    method: Method
    step: Step
    stages: list[Stage]
    dataset: Dataset
    batch: int
    key: jax.Array
    start_key: jax.Array
    seed: tuple[int, ...]
    init: str
    taught_by: str
    plateau: Plateau
    measure: Measure | None

    @property
    def work(self) -> int:
        """An update's, in forward passes of one example, for the time left.

        What comes beside the network (optimizer, averages, data) counts as two more:
        on two CPU cores it is 2.7 with digits' small network, which is evaluated for
        a third of a run, and little with large ones, which are evaluated for less.
        """
        return self.batch * (self.method.forwards + 2)
