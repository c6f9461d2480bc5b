"""The ladder: which students, with how many steps, trained for how long.

Source: Salimans & Ho 2022, algorithm 2 (halving N) and section 5.2 (more updates for
the students of two steps and one).
"""

import dataclasses
import math
from collections.abc import Sequence


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


def step_counts(start: int, end: int, factor: int = 2) -> tuple[int, ...]:
    """The students' step counts, start/factor down to end, e.g. 8 -> (4, 2, 1).

    Raises:
      ValueError: unless start = end * factor^n with n >= 1, end >= 1, factor >= 2.
    """
    if end < 1 or factor < 2:
        raise ValueError(
            f"ladder end={end}, factor={factor}: end is at least 1, factor at least 2"
        )
    counts = [end]
    while counts[-1] * factor < start:
        counts.append(counts[-1] * factor)
    above = counts[-1] * factor
    if above != start:
        below = max(counts[-1], end * factor)
        nearest = min(below, above, key=lambda n: abs(n - start))
        raise ValueError(
            f"ladder start={start} cannot reach end={end} in steps of factor={factor}: "
            f"start must be end times a power of factor, the nearest being {nearest}"
        )
    return tuple(reversed(counts))


@dataclasses.dataclass(frozen=True)
class Plateau:
    """The rule that ends a stage early: its validation loss has stopped improving.

    Attributes:
      check_updates: updates between two measurements of the validation loss; 0: none.
      improvement: share of the best loss before by which a measurement must be lower
        for the stage to go on; 0: the stage never ends early.
    """

    check_updates: int = 0
    improvement: float = 0.0

    def due(self, done: int) -> bool:
        """Whether to measure after `done` updates."""
        return 0 < self.check_updates <= done and done % self.check_updates == 0

    def reached(self, losses: Sequence[float]) -> bool:
        """Whether the last of the losses measured so far says that it is enough."""
        if not self.improvement or len(losses) < 2:
            return False
        return losses[-1] > (1.0 - self.improvement) * min(losses[:-1])

    def end(self, done: int, planned: int, cooldown: float = 0.0) -> int:
        """The update at which a stage ends whose loss stopped improving after `done`.

        Args:
          done: updates done.
          planned: the stage's own number of updates, which is never exceeded.
          cooldown: share of the stage in which the learning rate falls to 0, which is
            still to come; in whole checks.
        """
        checks = math.ceil(done * cooldown / (1.0 - cooldown) / self.check_updates)
        return min(planned, done + checks * self.check_updates)
