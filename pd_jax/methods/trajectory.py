"""Consistency trajectory models: from any time to any other, along the path.

The model knows two times, V(z, t, s). From z_t the teacher goes some steps of 1/K, to
u, and the model's own average from there to a random s, 0 <= s <= u:

    target = join(teacher: t -> u, average: u -> s),   V(z_t, t, s) -> target

compared by where the average takes both from s to the data (`compare`). And at no
length it is a denoiser, V(z_t, t, t) -> v of the example (`denoising`).

Source: Kim et al. 2023 (2310.02279), without their critic. There the loss of the
denoiser is weighted by a ratio of gradients; here by a number.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.arcs import Arc, Denoiser, Mover
from pd_jax.diffusion import (
    Prediction,
    diffuse,
    predict,
    velocity,
    weighted_mse,
)
from pd_jax.methods import _draws
from pd_jax.methods._joined import SOLVERS
from pd_jax.methods._two_times import TwoTimes
from pd_jax.training.method import on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(TwoTimes):
    """Consistency trajectory models.

    Attributes:
      grid: intervals of time, K, each a step of the teacher.
      teacher_steps: the most that the teacher goes; how many, examples draw.
      solver: of the teacher's steps, "ddim" or "heun".
      compare: "data", where the average takes both from s; or "arc", their V.
      denoising: weight of the denoiser's loss.
    """

    grid: int = setting(18, least=1, below=2**16)
    teacher_steps: int = setting(1, least=1)
    solver: str = setting("heun", choices=tuple(SOLVERS))
    average: float = setting(0.999, least=0.0, below=1.0)
    compare: str = setting("data", choices=("data", "arc"))
    denoising: float = setting(1.0, least=0.0)

    @property
    def forwards(self) -> int:
        """The teacher's, the average's, and the student's passes; see `losses`."""
        teacher = self.teacher_steps * (2 if self.solver == "heun" else 1)
        through_data = 3 if self.compare == "data" else 0
        return teacher + 1 + 3 + through_data + (3 if self.denoising else 0)

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At those of the grid."""
        return on_grid(num, self.grid)

    def times(
        self, state: TrainState, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Times t > u >= s, of the grid, [B] each."""
        far, low = (_draws.uniform_times(_draws.fold(keys, i)) for i in (0, 1))
        i = jnp.round(_draws.grid_times(keys, self.grid) * self.grid)
        gone = jnp.minimum(jnp.floor(far * self.teacher_steps) + 1.0, i)
        j = jnp.floor(low * (i - gone + 1.0))
        return i / self.grid, (i - gone) / self.grid, j / self.grid

    def movers(
        self,
        state: TrainState,
        batch: dict,
        keys: jax.Array,
        eps: jax.Array,
        own: Denoiser,
    ) -> tuple[Mover, Mover]:
        """The teacher's steps, and the average."""
        schedule, step = self.parts.schedule, 1.0 / self.grid
        teacher = self.parts.teacher(state, batch.get("label"))
        solve = SOLVERS[self.solver](teacher, schedule)

        def first(z, t, u):
            times = [jnp.maximum(t - i * step, u) for i in range(self.teacher_steps)]
            return arcs.chain(z, [*times, u], [solve] * self.teacher_steps)

        return first, arcs.jump(own, schedule)

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the model's arc is from the joined ones, and the denoiser's, [B]."""
        schedule = self.parts.schedule
        times = t, _, s = self.times(state, keys)
        z, eps = self.noised(batch, keys, t)
        own, denoise = self.denoisers(state, params, batch, dropout_key)
        movers = self.movers(state, batch, keys, eps, own)
        arc = jax.lax.stop_gradient(arcs.chain(z, times, movers))
        prediction = denoise(z, schedule(t), schedule(s))
        if self.compare == "arc":
            truth = predict(arc.v, z, schedule(t), "v")
            losses = self.difference(state, prediction, truth)
        else:
            # Where nothing is left to go, the arcs have landed on the data themselves.
            fixed = jax.lax.stop_gradient(params)
            last = self.denoisers(state, fixed, batch, dropout_key)[0]
            landed = [
                arcs.travel(z_s, arcs.jump(last, schedule)(z_s, s, jnp.zeros_like(s)))
                for v in (prediction.v, arc.v)
                for z_s in [arcs.travel(z, Arc(v, arc.delta))]
            ]
            truth = jax.lax.stop_gradient(landed[1])
            losses = self.difference_of_data(state, landed[0], truth)
        if not self.denoising:
            return losses
        other = _draws.fold(keys, 2)
        x, logsnr = batch["image"], schedule(_draws.uniform_times(other))
        eps = _draws.normal_like(other, x)
        truth = Prediction(x, eps, velocity(x, eps, logsnr))
        prediction = denoise(diffuse(x, eps, logsnr), logsnr)
        of_data = weighted_mse(prediction, truth, self.weighting)
        return losses + self.denoising * of_data
