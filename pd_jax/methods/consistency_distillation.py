"""Consistency distillation: from any noise level in one step to the data.

On a grid of K intervals, t = i/K: the teacher goes one interval, to u = t - 1/K, and
the model's own average goes on from there to the data,

    target = join(teacher: t -> u, average: u -> 0),   model(z_t, t) -> target

both arcs joined into the one that the model's prediction at (z_t, t) is held to
(_joined.py). With `segments`, the average goes on to the end of the segment that holds
t, and the student makes as many steps as there are segments.

Source: Song et al. 2023 (2303.01469), algorithm 2; segments: Heek et al. 2024
(2403.06807). Here the boundary condition is that of arcs (an arc of no length stays),
predictions are compared as v (`weighting`), the grid is uniform in the schedule's time,
and segments are taught by the teacher's own step, without that paper's noise
correction (aDDIM).
"""

import dataclasses

from pd_jax.methods._joined import SOLVERS
from pd_jax.methods._jumps import Jumps
from pd_jax.training.method import setting


@dataclasses.dataclass(frozen=True)
class Method(Jumps):
    """Consistency distillation.

    Attributes:
      solver: of the teacher's step, "ddim" or "heun".
    """

    solver: str = setting("heun", choices=tuple(SOLVERS))

    @property
    def forwards(self) -> int:
        """The teacher's step, the average's, the student's forward and backward."""
        return (2 if self.solver == "heun" else 1) + 4
