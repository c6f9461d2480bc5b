"""Progressive distillation: one student step learns to equal k teacher steps.

For x, t = i/N and eps: z_t = alpha_t x + sigma_t eps; the teacher takes k DDIM steps
from there, joined into one arc; the student's prediction at (z_t, t) is held to it.
Source: Salimans & Ho 2022, algorithm 2 and appendix G (2202.00512); arcs.py.
"""

import dataclasses

import jax

from pd_jax import arcs
from pd_jax.diffusion import WEIGHTINGS, diffuse, predict, weighted_mse
from pd_jax.methods import _draws
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import Parts, on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState

MAX_STEPS = 2**23  # below which float32 tells the times i/N apart


def step_counts(start: int, end: int, factor: int = 2) -> tuple[int, ...]:
    """The students' step counts, start/factor down to end, e.g. 8 -> (4, 2, 1).

    Raises:
      Refused: unless start = end * factor^n with n >= 1, end >= 1, factor >= 2.
    """
    if end < 1 or factor < 2:
        raise Refused(
            f"ladder end={end}, factor={factor}: end is at least 1, factor at least 2"
        )
    counts = [end]
    while counts[-1] * factor < start:
        counts.append(counts[-1] * factor)
    above = counts[-1] * factor
    if above != start:
        below = max(counts[-1], end * factor)
        nearest = min(below, above, key=lambda n: abs(n - start))
        raise Refused(
            f"ladder start={start} cannot reach end={end} in steps of factor={factor}: "
            f"start must be end times a power of factor, the nearest being {nearest}"
        )
    return tuple(reversed(counts))


@dataclasses.dataclass(frozen=True)
class Method:
    """Progressive distillation.

    Attributes:
      parts: model, schedule and optimizer; and the first teacher, if it is exact.
      start: the teacher's sampling steps; end times a power of factor.
      end: the last student's sampling steps.
      factor: teacher steps per student step.
      updates: of the optimizer, for every student, or one number a student.
      learning_rate: its peak, for every student, or one a student.
      weighting: of the loss over noise levels.
      check_updates: between measurements of the validation loss; 0: none.
      plateau: a stage ends early once its validation loss falls by a smaller share;
        with decay="cooldown", after its learning rate has come down; 0: never.
      regression_factor: a student whose Frechet distance on raw values is more than so
        many times its teacher's is warned of in the report.
      on_regression: what to do then, beside warning; "stop": the ladder ends there, and
        students are measured as they are made.
    """

    parts: Parts
    start: int = setting(0, below=MAX_STEPS)
    end: int = 1
    factor: int = 2
    updates: tuple[int, ...] = setting((0,), least=1)
    learning_rate: tuple[float, ...] = setting((5e-4,), least=0.0)
    weighting: str = setting("truncated_snr", choices=WEIGHTINGS)
    check_updates: int = setting(0, least=0)
    plateau: float = setting(0.0, least=0.0, below=1.0)
    regression_factor: float = setting(2.0, least=1.0)
    on_regression: str = setting("flag", choices=("flag", "stop"))

    distils = True
    data = "images"
    sampler = ""

    @property
    def asks_steps(self) -> int:
        """The ladder's start."""
        return self.start

    @property
    def forwards(self) -> int:
        """The teacher's forward passes, and the student's forward and backward."""
        return self.factor + 3

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """A stage for each student; a teacher of fewer steps leaves out those above."""
        name = self.parts.name
        counts = step_counts(self.start, self.end, self.factor)
        per_stage = {}
        for key in ("updates", "learning_rate"):
            values = tuple(getattr(self, key))
            if len(values) not in (1, len(counts)):
                raise Refused(
                    f"{name}.{key} has {len(values)} values: give one for all "
                    f"students, or {len(counts)}, one for each of {counts} steps"
                )
            per_stage[key] = values * len(counts) if len(values) == 1 else values
        if teacher_steps:
            try:
                below = step_counts(teacher_steps, self.end, self.factor)
            except Refused as error:
                raise Refused(
                    f"teacher.released is a student of {teacher_steps} steps, where "
                    f"the ladder starts: {error}"
                ) from error
            missing = len(below) - len(counts)
            counts = below
            per_stage = {
                key: (values[0],) * missing + values[max(0, -missing) :]
                for key, values in per_stage.items()
            }
        return [
            Stage(f"{self.parts.student}_{n}", i, n, updates, rate)
            for i, (n, updates, rate) in enumerate(zip(counts, *per_stage.values()))
        ]

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """The one that the stage is for."""
        return (stage.num_steps,)

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At those of its steps."""
        return on_grid(num, stage.num_steps)

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The hand-over: the last stage's weights teach, and start the student.

        What teaches is constant, so it is cast to the network's type once.
        """
        teacher = self.parts.model.cast(handed_over[TEACHER])
        return self.parts.optimizer.start(handed_over[MODEL], stage, teacher)

    def result(self, state: TrainState) -> dict:
        """The student's weights."""
        return {MODEL: state.model.weights}

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far a student step is from the teacher's k, per example, [B]."""
        x, label = batch["image"], batch.get("label")
        num_steps = state.stage["num_steps"]
        t = _draws.grid_times(keys, num_steps)
        logsnr = self.parts.schedule(t)
        z = diffuse(x, _draws.normal_like(keys, x), logsnr)
        arc = arcs.follow(
            self.parts.teacher(state, label),
            z,
            t,
            num_steps,
            self.parts.schedule,
            self.factor,
        )
        denoise = self.parts.model.denoiser(params, label, dropout_key)
        truth = predict(arc.v, z, logsnr, "v")
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; batch {"image" [B, ...], "label" [B]}, keys [B]."""

        def loss(params, batch, keys):
            return self.losses(state, params, batch, keys, _draws.dropout_key(keys))

        return self.parts.optimizer.update(state, loss, batch, keys)
