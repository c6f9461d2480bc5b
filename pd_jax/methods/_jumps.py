"""What consistency models share: jumps to the data, or to the end of a segment."""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax.methods._joined import Joined
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Jumps(Joined):
    """Consistency models on a grid of times, whose intervals may grow in number.

    With one segment the student jumps to the data, and with more steps re-noises what
    it has and jumps again (sampler `consistency`). With several it jumps to the end of
    the segment that it is in, and so takes as many steps as there are segments, all
    deterministic (sampler `ddim`).

    Attributes:
      grid: intervals of time, K, at the end.
      doublings: how often the grid doubles on the way to that; 0 for one grid from the
        start.
      growth: when: "doubling" in equal parts of the updates; or "sqrt", by every
        interval, K^2 growing evenly with the updates.
      segments: of time, of equal length; 1 for jumps to the data.
      steps: sampling steps that the student is measured with; for several segments
        their number stands in their place.
    """

    grid: int = setting(18, least=1, below=2**23)
    doublings: int = setting(0, least=0)
    growth: str = setting("doubling", choices=("doubling", "sqrt"))
    segments: int = setting(1, least=1)

    @property
    def sampler(self) -> str:
        """That of jumps to the data, or of arcs from segment to segment."""
        return "consistency" if self.segments == 1 else "ddim"

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        name = self.parts.name
        if self.grid % (2**self.doublings * self.segments):
            raise Refused(
                f"{name}.grid={self.grid} is not a whole number of intervals before "
                f"{name}.doublings={self.doublings} in each of {name}.segments="
                f"{self.segments}: give a multiple of "
                f"{2**self.doublings * self.segments}, or fewer"
            )
        if self.segments > 1 and self.growth == "sqrt":
            raise Refused(
                f'{name}.growth="sqrt" has grids that {name}.segments={self.segments} '
                'do not divide: give "doubling"'
            )
        return super().plan()

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """Those of `steps`, the fewest last; or the number of segments."""
        return (self.segments,) if self.segments > 1 else super().step_counts(stage)

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At those of the grid."""
        return on_grid(num, self.grid)

    @property
    def first_grid(self) -> int:
        """Intervals at the first update."""
        return self.grid // 2**self.doublings

    def stages_done(self, state: TrainState) -> jax.Array:
        """How often the grid has doubled, of equal parts of the updates."""
        part = state.step / state.stage["updates"] * (self.doublings + 1)
        return jnp.minimum(jnp.floor(part), self.doublings)

    def grid_and_segments(self, state: TrainState) -> tuple[jax.Array, jax.Array]:
        """Intervals of the grid, K, at the state's update; and the segments."""
        if self.growth == "sqrt":
            done = state.step / state.stage["updates"]
            square = done * (self.grid**2 - self.first_grid**2) + self.first_grid**2
            grid = jnp.round(jnp.sqrt(square))
        else:
            grid = self.grid / 2.0 ** (self.doublings - self.stages_done(state))
        return grid, jnp.float32(self.segments)
