"""What methods share that move one network, in one stage."""

import dataclasses

import jax

from pd_jax.diffusion import WEIGHTINGS
from pd_jax.methods import _draws
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import Parts, setting
from pd_jax.training.optimizer import Decay
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState


@dataclasses.dataclass(frozen=True)
class Single:
    """A method that distils into one network: its `losses` are what is left to say.

    Attributes:
      parts: model, schedule and optimizer; and the teacher, if it is exact.
      updates: of the optimizer.
      learning_rate: its peak.
      weighting: of the loss over noise levels.
      steps: sampling steps that the student is measured with.
      check_updates: between measurements of the validation loss; 0: none.
      plateau: the stage ends early once its validation loss falls by a smaller share;
        with decay="cooldown", after its learning rate has come down; 0: never.
    """

    parts: Parts
    updates: int = setting(0, least=1)
    learning_rate: float = setting(1e-3, least=0.0)
    weighting: str = setting("snr_plus_1", choices=WEIGHTINGS)
    steps: tuple[int, ...] = setting((4, 2, 1), least=1)
    check_updates: int = setting(0, least=0)
    plateau: float = setting(0.0, least=0.0, below=1.0)

    distils = True
    taught = True  # by a teacher, whose weights the state holds
    data = "images"
    sampler = ""
    asks_steps = 0

    @property
    def averages(self) -> dict[str, Decay]:
        """Decays of averages of its own, by name."""
        return {}

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """Those of `steps`, the fewest last."""
        return tuple(sorted(self.steps, reverse=True))

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        if not self.steps or len(set(self.steps)) < len(self.steps):
            name = f"{self.parts.name}.steps"
            raise Refused(f"{name}={self.steps}: at least one, each once")
        name = self.parts.student
        return [
            Stage(name, 0, self.step_counts(None)[-1], self.updates, self.learning_rate)
        ]

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """The student starts from the weights that are handed over."""
        optimizer = self.parts.optimizer
        state = optimizer.start(handed_over[MODEL], stage, averages=self.averages)
        if not self.taught:
            return state
        return state.replace(frozen=self.parts.frozen_teacher(handed_over))

    def result(self, state: TrainState) -> dict:
        """The student's weights."""
        return {MODEL: state.model.weights}

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; a batch of the method's `data`, and keys [B]."""

        def loss(params, batch, keys):
            return self.losses(state, params, batch, keys, _draws.dropout_key(keys))

        return self.parts.optimizer.update(state, loss, batch, keys, self.averages)
