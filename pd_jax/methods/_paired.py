"""What methods share that learn from pairs of a noise and a teacher's sample of it."""

import dataclasses

from pd_jax import samplers
from pd_jax.methods._single import Compared
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import setting
from pd_jax.training.stage import Stage


@dataclasses.dataclass(frozen=True)
class Paired(Compared):
    """A method that learns from pairs, made before a stage's first update.

    Attributes:
      pairs: how many are made; kept in the run's folder.
      teacher_steps: sampling steps of the teacher for each.
      teacher_sampler: its sampler; "" for the config's.
    """

    pairs: int = setting(100_000, least=1, below=2**31)
    teacher_steps: int = setting(64, least=1, below=2**23)
    teacher_sampler: str = ""

    data = "pairs"
    places = 1  # kept of a pair's path, data last
    taught = False  # but by its pairs
    sampler = "ddim"
    forwards = 3  # beside pairs x teacher_steps before

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        if self.teacher_sampler:
            samplers.get(self.teacher_sampler)
        if self.check_updates:
            raise Refused(
                f"{self.parts.name}.check_updates={self.check_updates}: no pairs are "
                "held back to measure on; give 0"
            )
        return super().plan()
