"""The rule that ends a stage early."""

import dataclasses
import math
from collections.abc import Sequence


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
