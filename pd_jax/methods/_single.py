"""What methods share that move one network, in one stage, and how they compare."""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax.diffusion import LOSSES, WEIGHTINGS, Prediction, robust, weighted_mse
from pd_jax.methods import _draws
from pd_jax.metrics import lpips
from pd_jax.runtime.errors import Refused
from pd_jax.training.method import Parts, on_grid, setting
from pd_jax.training.optimizer import Decay
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState

LPIPS = "lpips"


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

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At all times."""
        return on_grid(num)

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


@dataclasses.dataclass(frozen=True)
class Compared(Single):
    """A method that compares a prediction with a truth.

    Attributes:
      loss: of the weighted error e^2, a sum over d values: "squared", e^2 / d; or
        "pseudo_huber", sqrt(e^2 + c^2) - c with c = 0.00054 sqrt(d). Of pictures:
        "lpips", how different the predicted data look, by `perceptual.weights`.
    """

    loss: str = setting("squared", choices=(*LOSSES, LPIPS))

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """As of any method, with what pictures are compared by."""
        return self.with_perceptual(super().begin(handed_over, stage, key))

    def with_perceptual(self, state: TrainState) -> TrainState:
        """A state whose frozen weights have those of LPIPS, if it is asked for."""
        if self.loss != LPIPS:
            return state
        weights = jax.tree.map(jnp.copy, self.parts.perceptual.params)
        return state.replace(frozen=state.frozen | {LPIPS: weights})

    def difference(
        self, state: TrainState, found: Prediction, truth: Prediction
    ) -> jax.Array:
        """Losses of predictions [B, ...] at one noise level, [B]."""
        if self.loss == LPIPS:
            return self._look(state, found.x, truth.x)
        losses = weighted_mse(found, truth, self.weighting)
        return robust(losses, found.x[0].size, self.loss)

    def difference_of_data(
        self, state: TrainState, a: jax.Array, b: jax.Array
    ) -> jax.Array:
        """Losses of data [B, ...], [B]."""
        if self.loss == LPIPS:
            return self._look(state, a, b)
        losses = jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))
        return robust(losses, a[0].size, self.loss)

    def _look(self, state: TrainState, a: jax.Array, b: jax.Array) -> jax.Array:
        size = self.parts.perceptual.size
        return lpips.compare(state.frozen[LPIPS], a, b, size)
