"""BOOT: from the noise alone to any time of its path, without data.

The model knows two times and is asked from the noise, V(eps, 1, s): where it lands at
time u the teacher takes one more step,

    target = join(own: 1 -> u, teacher: u -> s = u - 1/K),   V(eps, 1, s) -> target

and at the start, where nothing is joined, it learns what the teacher says of the noise,

    V(eps, 1, 1) -> v of the teacher.

-V(eps, 1, s) is the signal in the state at time s, at s = 0 the sample. Own weights,
not an average of them, make the target, whose gradient is stopped.

Source: Gu et al. 2023 (2306.05544). The signal's equation there is here that of joined
arcs, which holds at t = 1 too; the grid is uniform in the schedule's time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.arcs import Denoiser, Mover
from pd_jax.diffusion import weighted_mse
from pd_jax.methods import _draws
from pd_jax.methods._joined import SOLVERS
from pd_jax.methods._two_times import TwoTimes
from pd_jax.training.method import on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(TwoTimes):
    """BOOT.

    Attributes:
      grid: intervals of time, K, each a step of the teacher.
      solver: of the teacher's step, "ddim" or "heun".
      boundary: weight of the loss at the start.
    """

    steps: tuple[int, ...] = setting((1,), least=1, below=2)
    grid: int = setting(20, least=1, below=2**23)
    solver: str = setting("ddim", choices=tuple(SOLVERS))
    average: float = setting(0.0, least=0.0, below=1.0)
    boundary: float = setting(1.0, least=0.0)

    data = "places"

    @property
    def forwards(self) -> int:
        """Own and the teacher's steps, the start's teacher; two trained passes."""
        return (2 if self.solver == "heun" else 1) + 8

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """From the noise alone."""
        return on_grid(num, 1)

    def times(
        self, state: TrainState, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Times 1 >= u > s, [B] each."""
        u = _draws.grid_times(keys, self.grid)
        _, s = arcs.grid_below(u, 1.0 / self.grid, 1)
        return jnp.ones_like(u), u, s

    def noised(
        self, batch: dict, keys: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Noise alone."""
        shape = (len(keys), *self.parts.shape)
        eps = _draws.normal_like(keys, jnp.zeros(shape))
        return eps, eps

    def movers(
        self,
        state: TrainState,
        batch: dict,
        keys: jax.Array,
        eps: jax.Array,
        own: Denoiser,
    ) -> tuple[Mover, Mover]:
        """Own weights, and the teacher's solver."""
        teacher = self.parts.teacher(state, batch.get("label"))
        schedule = self.parts.schedule
        return arcs.jump(own, schedule), SOLVERS[self.solver](teacher, schedule)

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the model's arc is from the joined ones, and at the start, [B]."""
        losses = super().losses(state, params, batch, keys, dropout_key)
        start = self.parts.schedule(jnp.ones(len(keys)))
        eps, _ = self.noised(batch, keys, start)
        teacher = self.parts.teacher(state, batch.get("label"))(eps, start)
        _, denoise = self.denoisers(state, params, batch, dropout_key)
        prediction = denoise(eps, start, start)
        truth = jax.lax.stop_gradient(teacher)
        at_start = weighted_mse(prediction, truth, self.weighting)
        return losses + self.boundary * at_start
