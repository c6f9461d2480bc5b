"""Shortcut models: a jump of any length, which two of half the length make.

The model knows two times, V(z, t, s). Of jumps of the lengths 1/M, 2/M, 4/M, ..., 1 the
shortest learn from data, as in standard training, and every other one from the model's
own average, which goes half of it twice:

    d = 1/M:   V(z_t, t, t - d) -> v of the example
    d > 1/M:   V(z_t, t, t - d) -> join(average: t -> u, average: u -> t - d),
               u = t - d/2

Source: Frans et al. 2024 (2410.12557), who take a share of a batch for the second kind;
here every example draws its kind, and the shortest jumps are told their length.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.arcs import Arc, Denoiser, Mover
from pd_jax.methods import _draws
from pd_jax.methods._joined import line
from pd_jax.methods._two_times import TwoTimes
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(TwoTimes):
    """Shortcut models.

    Attributes:
      grid: intervals of time, M, of which the shortest jump takes one; a power of 2.
      bootstrap: share of the examples that learn from the average.
    """

    grid: int = setting(128, least=2, below=2**16)
    bootstrap: float = setting(0.25, least=0.0, below=1.0)
    average: float = setting(0.999, least=0.0, below=1.0)

    taught = False
    forwards = 5  # the average's two, and the student's forward and backward passes

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        name, steps = self.parts.name, (self.grid, *self.steps)
        if any(n > self.grid or n & (n - 1) for n in steps):
            raise Refused(
                f"{name}.grid={self.grid}, {name}.steps={self.steps}: give powers of "
                "2, no step count above the grid"
            )
        return super().plan()

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At 1, 1/2, 1/4, ..., 1/M: from there a jump goes to the data."""
        times = [num >> k for k in range(self.grid.bit_length()) if num % 2**k == 0]
        return times[::-1]

    def _lengths(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For each example whether it learns from data, and a jump's length d."""
        kind, length = (_draws.uniform_times(_draws.fold(keys, i)) for i in (0, 1))
        from_data = kind >= self.bootstrap
        levels = self.grid.bit_length() - 1  # of jumps longer than the shortest
        d = 2.0 ** -jnp.floor(length * levels)
        return from_data, jnp.where(from_data, 1.0 / self.grid, d)

    def times(
        self, state: TrainState, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Times t > u >= s of the two arcs, [B] each."""
        from_data, d = self._lengths(keys)
        t = _draws.grid_times(keys, jnp.round(1.0 / d))
        s = t - d  # exact: all are of a power of 2
        return t, jnp.where(from_data, s, t - 0.5 * d), s

    def movers(
        self,
        state: TrainState,
        batch: dict,
        keys: jax.Array,
        eps: jax.Array,
        own: Denoiser,
    ) -> tuple[Mover, Mover]:
        """The example's own line, or the average; and the average."""
        schedule = self.parts.schedule
        by_data, jump = line(batch["image"], eps, schedule), arcs.jump(own, schedule)
        from_data, _ = self._lengths(keys)

        def first(z, t, s):
            kinds = from_data.reshape(-1, *(1,) * (z.ndim - 1))
            one, other = by_data(z, t, s), jump(z, t, s)
            return Arc(jnp.where(kinds, one.v, other.v), one.delta)

        return first, jump
