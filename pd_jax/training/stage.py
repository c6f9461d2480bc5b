"""A stage of training, the unit that is checkpointed and handed over."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training run: a teacher's, or one student's.

    Attributes:
      name: unique in a run; names its checkpoints.
      index: place in the run, 0 for the first; part of every random key.
      num_steps: sampling steps N that the stage trains for; 0 for continuous time.
      updates: optimiser updates.
      learning_rate: peak learning rate.
    """

    name: str
    index: int
    num_steps: int
    updates: int
    learning_rate: float
