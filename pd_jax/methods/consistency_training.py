"""Consistency training: to the data in one step, and no teacher.

As consistency distillation, with the example's own line in the teacher's place: from
z_t = alpha_t x + sigma_t eps to z_u = alpha_u x + sigma_u eps, of the same x and eps,

    target = join(line of (x, eps): t -> u, average: u -> 0),   model(z_t, t) -> target

In the mean over (x, eps) the line is the exact denoiser's DDIM step, so what is learnt
is the product of those steps on the grid, and nearer the flow the finer the grid.

Source: Song et al. 2023 (2303.01469), algorithm 3: growth="sqrt", average_grows. Its
improvement, Song & Dhariwal 2023 (2310.14189): growth="doubling", average=0,
time_law="lognormal", loss="pseudo_huber", interval_weight, weighting="constant". Easy
consistency tuning, Geng et al. 2024 (2406.14548): time_law="ratio" besides, from a
teacher's weights. Here grids are uniform in the schedule's time, and predictions are
compared as v by default.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.arcs import Denoiser, Mover
from pd_jax.methods import _draws
from pd_jax.methods._joined import TARGET, below, line
from pd_jax.methods._jumps import Jumps
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import setting
from pd_jax.training.optimizer import Decay
from pd_jax.training.state import TrainState

# ln tan(phi), the log of the noise beside the data: mean and standard deviation.
LOG_NOISE = (-1.1, 2.0)


@dataclasses.dataclass(frozen=True)
class Method(Jumps):
    """Consistency training.

    Attributes:
      average_grows: the average's decay is `average` on the first grid, and
        average^(K_first / K) on one of K intervals.
      time_law: of t: "uniform" on the grid; "lognormal" on the grid, the noise's log
        normal; or "ratio", of no grid: tan(phi_t) lognormal, and tan(phi_u) a share of
        it that comes nearer to 1 with every doubling.
      interval_weight: losses are multiplied by 1 / (tan(phi_t) - tan(phi_u)).
    """

    average: float = setting(0.0, least=0.0, below=1.0)
    average_grows: bool = False
    time_law: str = setting("uniform", choices=("uniform", "lognormal", "ratio"))
    interval_weight: bool = False

    taught = False
    forwards = 4  # the average's, and the student's forward and backward passes

    def plan(self, teacher_steps: int = 0):
        """One stage."""
        if self.time_law == "ratio" and self.segments > 1:
            raise Refused(
                f'{self.parts.name}.time_law="ratio" has no segments: give '
                f"{self.parts.name}.segments=1, or another law"
            )
        return super().plan()

    @property
    def averages(self) -> dict[str, Decay]:
        """The one that makes the target; its decay may grow with the grid."""
        if not (self.average_grows and self.average):
            return super().averages

        def decay(state):
            grid, _ = self.grid_and_segments(state)
            return jnp.exp(self.first_grid / grid * math.log(self.average))

        return {TARGET: decay}

    def movers(
        self,
        state: TrainState,
        batch: dict,
        keys: jax.Array,
        eps: jax.Array,
        own: Denoiser,
    ) -> tuple[Mover, Mover]:
        """The example's own line, and the average."""
        schedule = self.parts.schedule
        return line(batch["image"], eps, schedule), arcs.jump(own, schedule)

    def times(
        self, state: TrainState, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Times t > u >= s of the two arcs, [B] each."""
        if self.time_law == "uniform":
            return super().times(state, keys)
        schedule, uniform = self.parts.schedule, _draws.uniform_times(keys)
        mean, deviation = LOG_NOISE
        if self.time_law == "ratio":
            noise = jnp.exp(mean + deviation * jax.scipy.special.ndtri(uniform))
            noise = jnp.clip(noise, 1e-4, 1e4)
            far = 1.0 + 8.0 * jax.nn.sigmoid(-noise)
            share = 1.0 - far * 2.0 ** -(self.stages_done(state) + 1.0)
            t = schedule.time(jnp.arctan(noise))
            u = schedule.time(jnp.arctan(noise * jnp.maximum(share, 0.0)))
            return t, jnp.minimum(u, t), jnp.zeros_like(t)
        grid, segments = self.grid_and_segments(state)
        # Truncated to the schedule's levels; an interval is drawn by the mass in it.
        log_noise = -0.5 * schedule(jnp.array([0.0, 1.0]))
        low, high = jax.scipy.special.ndtr((log_noise - mean) / deviation)
        normal = jax.scipy.special.ndtri(low + uniform * (high - low))
        angle = jnp.arctan(jnp.exp(mean + deviation * normal))
        t = jnp.clip(jnp.ceil(schedule.time(angle) * grid), 1.0, grid) / grid
        return below(t, grid, segments)

    def weight(self, t: jax.Array, u: jax.Array) -> jax.Array | float:
        """1 / (tan(phi_t) - tan(phi_u)), if asked for."""
        if not self.interval_weight:
            return 1.0
        phi = self.parts.schedule.angle(t)
        below = jnp.where(u > 0, self.parts.schedule.angle(u), 0.0)
        return jnp.cos(phi) * jnp.cos(below) / jnp.sin(phi - below)
