"""Consistency distillation: from any noise level in one step to the data.

On a grid of K intervals, t = i/K: the teacher goes one interval, to u = t - 1/K, and
the model's own average goes on from there to the data,

    target = join(teacher: t -> u, average: u -> 0),   model(z_t, t) -> target

both arcs joined into the one that the model's prediction at (z_t, t) is held to. At
u = 0 the second arc has no length. The target's gradient is stopped.

The student jumps to the data, and with more steps re-noises what it has and jumps
again (sampler `consistency`).

Source: Song et al. 2023 (2303.01469), algorithm 2. Here the boundary condition is that
of arcs (an arc of no length stays), predictions are compared as v (`weighting`), and
the grid is uniform in the schedule's time.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax import arcs
from pd_jax.diffusion import WEIGHTINGS, diffuse, predict, weighted_mse
from pd_jax.methods import _draws
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import Parts, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState

SOLVERS = {"ddim": arcs.ddim, "heun": arcs.heun}
TARGET = "target"  # the average that joins


@dataclasses.dataclass(frozen=True)
class Method:
    """Consistency distillation.

    Attributes:
      parts: model, schedule and optimizer; and the teacher, if it is exact.
      updates: of the optimizer.
      learning_rate: its peak.
      weighting: of the loss over noise levels.
      grid: intervals of time, K, at the end.
      doublings: how often the grid doubles on the way to that, in equal parts of the
        updates; 0 for one grid from the start.
      solver: of the teacher's step, "ddim" or "heun".
      average: decay of the average of the weights that makes the target; 0 for the
        weights themselves.
      steps: sampling steps that the student is measured with.
      check_updates: between measurements of the validation loss; 0: none.
      plateau: the stage ends early once its validation loss falls by a smaller share;
        with decay="cooldown", after its learning rate has come down; 0: never.
    """

    parts: Parts
    updates: int = setting(0, least=1)
    learning_rate: float = setting(1e-3, least=0.0)
    weighting: str = setting("snr_plus_1", choices=WEIGHTINGS)
    grid: int = setting(18, least=1, below=2**23)
    doublings: int = setting(0, least=0)
    solver: str = setting("heun", choices=tuple(SOLVERS))
    average: float = setting(0.95, least=0.0, below=1.0)
    steps: tuple[int, ...] = setting((4, 2, 1), least=1)
    check_updates: int = setting(0, least=0)
    plateau: float = setting(0.0, least=0.0, below=1.0)

    needs_teacher = True
    data = "images"
    sampler = "consistency"
    asks_steps = 0

    @property
    def forwards(self) -> int:
        """The teacher's step, the average's, the student's forward and backward."""
        return (2 if self.solver == "heun" else 1) + 4

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        name = self.parts.name
        if not self.steps or len(set(self.steps)) < len(self.steps):
            raise Refused(f"{name}.steps={self.steps}: at least one, each once")
        if self.grid % 2**self.doublings:
            raise Refused(
                f"{name}.grid={self.grid} is not a whole number of intervals before "
                f"{name}.doublings={self.doublings}: give a multiple of "
                f"{2**self.doublings}, or fewer"
            )
        return [
            Stage(
                self.parts.student,
                0,
                min(self.steps),
                self.updates,
                self.learning_rate,
            )
        ]

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """Those of `steps`, the fewest last."""
        return tuple(sorted(self.steps, reverse=True))

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The student starts from the weights that are handed over."""
        averages = {TARGET: self.average}
        state = self.parts.optimizer.start(handed_over[MODEL], stage, averages=averages)
        return state.replace(frozen=self.parts.frozen_teacher(handed_over))

    def result(self, state: TrainState) -> dict:
        """The student's weights."""
        return {MODEL: state.model.weights}

    def intervals(self, state: TrainState) -> jax.Array:
        """Intervals of the grid, K, at the state's update."""
        part = state.step / state.stage["updates"] * (self.doublings + 1)
        left = self.doublings - jnp.minimum(jnp.floor(part), self.doublings)
        return self.grid / 2.0**left

    def loss(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the jump to the data is from the joined arc, per example, [B]."""
        x, label = batch["image"], batch.get("label")
        model, schedule = self.parts.model, self.parts.schedule
        num = self.intervals(state)
        t = _draws.grid_times(keys, num)
        z = diffuse(x, _draws.normal_like(keys, x), schedule(t))
        own = state.model.averages.get(TARGET, params)
        movers = [
            SOLVERS[self.solver](self.parts.teacher(state, label), schedule),
            # With the student's own dropout masks: both halves are one function.
            arcs.ddim(model.denoiser(own, label, dropout_key), schedule),
        ]
        times = [*arcs.grid_below(t, 1.0 / num, 1), jnp.zeros_like(t)]
        arc = jax.lax.stop_gradient(arcs.chain(z, times, movers))
        prediction = model.denoiser(params, label, dropout_key)(z, schedule(t))
        truth = predict(arc.v, z, schedule(t), "v")
        return weighted_mse(prediction, truth, self.weighting)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; batch {"image" [B, ...], "label" [B]}, keys [B]."""

        def loss(params, batch, keys):
            return self.loss(state, params, batch, keys, _draws.dropout_key(keys))

        averages = {TARGET: self.average}
        return self.parts.optimizer.update(state, loss, batch, keys, averages)
