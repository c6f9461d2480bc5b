"""Standard training of a diffusion model: predict the data that noise was added to.

For x, t and eps: z_t = alpha_t x + sigma_t eps, and the weighted error of the
prediction at (z_t, t) against (x, eps).

Source: Salimans & Ho 2022, algorithm 1 (2202.00512).
"""

import dataclasses

import jax

from pd_jax.diffusion import WEIGHTINGS, Prediction, diffuse, velocity, weighted_mse
from pd_jax.methods import _draws
from pd_jax.training.method import Parts, on_grid, setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TrainState


@dataclasses.dataclass(frozen=True)
class Method:
    """Standard training.

    Attributes:
      parts: model, schedule and optimizer.
      discrete: train on the times i/N only, of the N sampling steps that the next
        training asks of its teacher (ladder.start).
      updates: of the optimizer; at least 1 where a teacher is trained.
      learning_rate: its peak.
      weighting: of the loss over noise levels.
    """

    parts: Parts
    discrete: bool = False
    updates: int = setting(0, least=1)
    learning_rate: float = setting(1e-3, least=0.0)
    weighting: str = setting("truncated_snr", choices=WEIGHTINGS)

    distils = False
    data = "images"
    sampler = ""
    asks_steps = 0
    forwards = 3  # a forward and a backward pass

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """One stage."""
        num_steps = self.parts.asked_steps if self.discrete else 0
        return [
            Stage(self.parts.student, 0, num_steps, self.updates, self.learning_rate)
        ]

    def step_counts(self, stage: Stage) -> tuple[int, ...]:
        """None of its own."""
        return ()

    def points_from(self, stage: Stage, num: int) -> list[int]:
        """At all times, or those of the sampling steps if `discrete`."""
        return on_grid(num, stage.num_steps)

    def begin(self, handed_over: dict, stage: Stage, key: jax.Array) -> TrainState:
        """Trains from the weights that are handed over."""
        return self.parts.optimizer.start(handed_over[MODEL], stage)

    def result(self, state: TrainState) -> dict:
        """The trained weights."""
        return {MODEL: state.model.weights}

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the prediction is from the data, per example, [B]."""
        x = batch["image"]
        if self.discrete:
            t = _draws.grid_times(keys, state.stage["num_steps"])
        else:
            t = _draws.uniform_times(keys)
        logsnr = self.parts.schedule(t)
        eps = _draws.normal_like(keys, x)
        z = diffuse(x, eps, logsnr)
        denoise = self.parts.model.denoiser(params, batch.get("label"), dropout_key)
        truth = Prediction(x, eps, velocity(x, eps, logsnr))
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; batch {"image" [B, ...], "label" [B]}, keys [B]."""

        def loss(params, batch, keys):
            return self.losses(state, params, batch, keys, _draws.dropout_key(keys))

        return self.parts.optimizer.update(state, loss, batch, keys)
