"""A training: one compiled step, and the stages that it runs."""

import dataclasses

import jax

from pd_jax.training.plateau import Plateau
from pd_jax.training.stage import Stage
from pd_jax.training.step import Measure, Step


@dataclasses.dataclass
class Training:
    """One compiled step and the stages that it runs, in order.

    Attributes:
      name: "teacher" or "ladder".
      method: the objective.
      step: its update on all devices.
      stages: the stages.
      batch: examples per update.
      key: base random key, placed.
      seed: base seed of the data order.
      plateau: when a stage ends early.
      measure: the validation loss of what a stage would hand over; None for no checks.
    """

    name: str
    method: object
    step: Step
    stages: list[Stage]
    batch: int
    key: jax.Array
    seed: tuple[int, ...]
    plateau: Plateau
    measure: Measure | None
