"""Progressive distillation: one student step learns to equal k teacher steps.

For x, t = i/N and eps: z_t = alpha_t x + sigma_t eps; the teacher takes k DDIM steps
from there, joined into one arc; the student's prediction at (z_t, t) is held to it.
Source: Salimans & Ho 2022, algorithm 2 and appendix G (2202.00512); arcs.py.
"""

import dataclasses

import jax

from pd_jax import arcs
from pd_jax.arcs import Denoiser
from pd_jax.diffusion import diffuse, predict, weighted_mse
from pd_jax.methods import _draws
from pd_jax.models import Model
from pd_jax.schedules import Schedule
from pd_jax.training.optimizer import Descent
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


def step_counts(start: int, end: int, factor: int = 2) -> tuple[int, ...]:
    """The students' step counts, start/factor down to end, e.g. 8 -> (4, 2, 1).

    Raises:
      ValueError: unless start = end * factor^n with n >= 1, end >= 1, factor >= 2.
    """
    if end < 1 or factor < 2:
        raise ValueError(
            f"ladder end={end}, factor={factor}: end is at least 1, factor at least 2"
        )
    counts = [end]
    while counts[-1] * factor < start:
        counts.append(counts[-1] * factor)
    above = counts[-1] * factor
    if above != start:
        below = max(counts[-1], end * factor)
        nearest = min(below, above, key=lambda n: abs(n - start))
        raise ValueError(
            f"ladder start={start} cannot reach end={end} in steps of factor={factor}: "
            f"start must be end times a power of factor, the nearest being {nearest}"
        )
    return tuple(reversed(counts))


@dataclasses.dataclass(frozen=True)
class Method:
    """Progressive distillation.

    Attributes:
      model, schedule, descent: what is trained, on which noise levels, and how.
      weighting: loss weight, of `diffusion.weighted_mse`.
      teacher_steps: teacher steps per student step, k.
      exact: a denoiser that teaches the first stage (index 0) in place of weights.
    """

    model: Model
    schedule: Schedule
    descent: Descent
    weighting: str = "truncated_snr"
    teacher_steps: int = 2
    exact: Denoiser | None = None

    needs_teacher = True

    @property
    def forwards(self) -> int:
        """The teacher's k forward passes, and the student's forward and backward."""
        return self.teacher_steps + 3

    def start(self, weights: dict, stage: Stage) -> TrainState:
        """The hand-over: the last stage's weights teach, and start the student.

        What teaches is constant, so it is cast to the network's type once.
        """
        return self.descent.start(weights, stage, teacher=self.model.cast(weights))

    def result(self, state: TrainState) -> dict:
        """The student's weights."""
        return state.weights

    def _teacher(self, state: TrainState, label: jax.Array | None) -> Denoiser:
        network = self.model.denoiser(state.teacher, label)
        if self.exact is None:
            return network
        # A branch at run time, so that both kinds of teacher share one compiled step.
        first = state.stage.index == 0
        return lambda z, logsnr: jax.lax.cond(first, self.exact, network, z, logsnr)

    def loss(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far a student step is from the teacher's k, per example, [B]."""
        x, label = batch["image"], batch.get("label")
        num_steps = state.stage.num_steps
        t = _draws.grid_times(keys, num_steps)
        logsnr = self.schedule(t)
        z = diffuse(x, _draws.normal_like(keys, x), logsnr)
        arc = arcs.follow(
            self._teacher(state, label),
            z,
            t,
            num_steps,
            self.schedule,
            self.teacher_steps,
        )
        denoise = self.model.denoiser(params, label, dropout_key)
        truth = predict(arc.v, z, logsnr, "v")
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; batch {"image" [B, ...], "label" [B]}, keys [B]."""

        def loss(params, batch, keys):
            return self.loss(state, params, batch, keys, _draws.dropout_key(keys))

        return self.descent.update(state, loss, batch, keys)
