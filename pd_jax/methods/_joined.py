"""What methods share that bootstrap: a student's arc learns to equal two joined ones.

From z at time t a first arc goes a short way, to u, and an average of the model itself
goes on from there, to s:

    target = join(first: t -> u, average: u -> s),   model(z, t, s) -> target

The target's gradient is stopped, and at u = s the second arc has no length. For a model
that knows no second time s is implied by t.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.arcs import Arc, Denoiser, Mover
from pd_jax.diffusion import (
    diffuse,
    predict,
    velocity,
)
from pd_jax.methods import _draws
from pd_jax.methods._single import Compared
from pd_jax.schedules import Schedule
from pd_jax.training.method import setting
from pd_jax.training.optimizer import Decay
from pd_jax.training.state import TrainState

SOLVERS = {"ddim": arcs.ddim, "heun": arcs.heun}
TARGET = "target"  # the average that joins


def segment_end(t: jax.Array, grid: jax.Array, segments: jax.Array) -> jax.Array:
    """The lower end, a multiple of 1/segments, of the segment that holds times t = i/K.

    Args:
      t: times [B] of a grid of K intervals; an end belongs to the segment below it.
      grid: K, a multiple of `segments`; may be traced.
      segments: how many; may be traced.
    """
    intervals = grid / segments
    number = jnp.ceil(jnp.round(t * grid) / intervals) - 1.0
    return number / segments


def below(
    t: jax.Array, grid: jax.Array, segments: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Times t = i/K, u = t - 1/K and s, the end of t's segment, [B] each."""
    _, u = arcs.grid_below(t, 1.0 / grid, 1)
    s = segment_end(t, grid, segments)
    # The end is met up to rounding: there an arc from u to s has no length.
    return t, jnp.where(u - s < 1e-3 / grid, s, u), s


def line(x: jax.Array, eps: jax.Array, schedule: Schedule) -> Mover:
    """The mover along an example's own line, on which x and eps [B, ...] stay."""

    def move(z, t, s):
        delta = arcs.angle(schedule, t) - arcs.angle(schedule, s)
        return Arc(velocity(x, eps, schedule(t)), delta)

    return move


@dataclasses.dataclass(frozen=True)
class Joined(Compared):
    """A method whose target is a first arc joined with the model's own.

    Attributes:
      average: decay of the average of the weights that makes the target; 0 for the
        weights themselves.
    """

    average: float = setting(0.95, least=0.0, below=1.0)

    sampler = "consistency"

    @property
    def averages(self) -> dict[str, Decay]:
        """The one that makes the target."""
        return {TARGET: self.average}

    def movers(
        self,
        state: TrainState,
        batch: dict,
        keys: jax.Array,
        eps: jax.Array,
        own: Denoiser,
    ) -> tuple[Mover, Mover]:
        """What makes the two arcs: here the teacher's solver, and the average.

        Args:
          state, batch, keys: the update's.
          eps: the examples' noise.
          own: the average's denoiser.
        """
        teacher = self.parts.teacher(state, batch.get("label"))
        schedule = self.parts.schedule
        return SOLVERS[self.solver](teacher, schedule), arcs.jump(own, schedule)

    def grid_and_segments(self, state: TrainState) -> tuple[jax.Array, jax.Array]:
        """Intervals of the grid of times, and segments of it, at the state's update."""
        raise NotImplementedError

    def times(
        self, state: TrainState, keys: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Times t > u >= s of the two arcs, [B] each."""
        grid, segments = self.grid_and_segments(state)
        return below(_draws.grid_times(keys, grid), grid, segments)

    def weight(self, t: jax.Array, u: jax.Array) -> jax.Array | float:
        """A factor of the losses, beside the weighting's, [B]."""
        return 1.0

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the model's arc is from the joined ones, per example, [B]."""
        schedule = self.parts.schedule
        times = t, u, s = self.times(state, keys)
        z, eps = self.noised(batch, keys, t)
        own, denoise = self.denoisers(state, params, batch, dropout_key)
        movers = self.movers(state, batch, keys, eps, own)
        arc = jax.lax.stop_gradient(arcs.chain(z, times, movers))
        prediction = denoise(z, schedule(t), schedule(s))
        truth = predict(arc.v, z, schedule(t), "v")
        return self.weight(t, u) * self.difference(state, prediction, truth)

    def noised(
        self, batch: dict, keys: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Where the arcs start, z at times t, and the noise eps in it; [B, ...]."""
        x = batch["image"]
        eps = _draws.normal_like(keys, x)
        return diffuse(x, eps, self.parts.schedule(t)), eps

    def denoisers(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        dropout_key: jax.Array | None,
    ) -> tuple[Denoiser, Denoiser]:
        """The average's denoiser, and the model's own.

        Both with the same dropout masks: the two halves are one function.
        """
        label, model = batch.get("label"), self.parts.model
        average = state.model.averages.get(TARGET, params)
        return tuple(model.denoiser(p, label, dropout_key) for p in (average, params))
