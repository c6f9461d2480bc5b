"""TRACT: phases of few segments, in each of which one step learns a whole segment.

A phase takes a teacher of T steps to a student of T' < T. Of a segment, T/T' of the
teacher's steps, the teacher goes one, from t to u = t - 1/T, and the model's own
average goes on from there to the segment's end s:

    target = join(teacher: t -> u, average: u -> s),   model(z_t, t) -> target

(_joined.py). At a phase's end the averaged weights teach the next one, and the
student's own weights go on.

Source: Berthelot et al. 2023 (2303.04248), 1024 -> 32 -> 1. The average is theirs, of
decay 0.5 with its bias taken out; weights that teach and are measured are averaged with
the decay `ema`. Here the segments are uniform in the schedule's time.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp

from pd_jax.diffusion import WEIGHTINGS
from pd_jax.methods._joined import SOLVERS, TARGET, Joined
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import on_grid, setting
from pd_jax.training.optimizer import Decay
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState

OWN = "own"  # the weights that go on, in a hand-over


@dataclasses.dataclass(frozen=True)
class Method(Joined):
    """TRACT.

    Attributes:
      start: the teacher's sampling steps.
      steps: each phase's student's, falling; every number divides the one before.
      updates: of the optimizer, for every phase, or one number a phase.
      solver: of the teacher's step, "ddim" or "heun".
    """

    start: int = setting(1024, least=1, below=2**23)
    steps: tuple[int, ...] = setting((32, 1), least=1)
    updates: tuple[int, ...] = setting((0,), least=1)
    weighting: str = setting("truncated_snr", choices=WEIGHTINGS)
    average: float = setting(0.5, least=0.0, below=1.0)
    solver: str = setting("ddim", choices=tuple(SOLVERS))

    sampler = "ddim"

    @property
    def asks_steps(self) -> int:
        """The first phase's."""
        return self.start

    @property
    def forwards(self) -> int:
        """The teacher's step, the average's, the student's forward and backward."""
        return (2 if self.solver == "heun" else 1) + 4

    @property
    def averages(self) -> dict[str, Decay]:
        """The one that makes the target, its bias taken out."""
        if not self.average:
            return {}

        def decay(state):
            n = state.step.astype(jnp.float32)
            shares = 1.0 - self.average ** jnp.stack([n, n + 1.0])
            return self.average * shares[0] / shares[1]

        return {TARGET: decay}

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """A stage for each phase."""
        name, steps = self.parts.name, tuple(self.steps)
        phases = list(itertools.pairwise((self.start, *steps)))
        if not phases or any(a <= b or a % b for a, b in phases):
            raise Refused(
                f"{name}.start={self.start}, {name}.steps={steps}: each number of "
                "steps divides the one before, as 1024, and (32, 1), do"
            )
        if teacher_steps not in (0, self.start):
            raise Refused(
                f"teacher.released is a student of {teacher_steps} steps: "
                f"{name}.start={self.start} must be that"
            )
        updates = tuple(self.updates)
        if len(updates) not in (1, len(phases)):
            raise Refused(
                f"{name}.updates has {len(updates)} values: give one for all phases, "
                f"or {len(phases)}, one for each"
            )
        updates = updates * len(phases) if len(updates) == 1 else updates
        return [
            Stage(
                f"{self.parts.student}_{segments}",
                i,
                segments,
                updates[i],
                self.learning_rate,
                {"grid": grid},
            )
            for i, (grid, segments) in enumerate(phases)
        ]

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """The phase's."""
        return (stage.num_steps,)

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At those of the phase's grid."""
        return on_grid(num, stage.numbers["grid"])

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The last phase's average teaches, and the student's own weights go on."""
        start = handed_over.get(OWN, handed_over[MODEL])
        teacher = self.parts.model.cast(handed_over[TEACHER])
        state = self.parts.optimizer.start(start, stage, teacher, self.averages)
        return self.with_perceptual(state)

    def result(self, state: TrainState) -> dict:
        """The weights to sample and to teach with, and the student's own."""
        return {MODEL: state.model.weights, OWN: state.model.params}

    def grid_and_segments(self, state: TrainState) -> tuple[jax.Array, jax.Array]:
        """The teacher's steps and the student's, of the state's phase."""
        grid, segments = state.stage["grid"], state.stage["num_steps"]
        return grid.astype(jnp.float32), segments.astype(jnp.float32)
