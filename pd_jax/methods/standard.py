"""Standard training of a diffusion model: predict the data that noise was added to.

For x, t and eps: z_t = alpha_t x + sigma_t eps, and the weighted error of the
prediction at (z_t, t) against (x, eps).

Source: Salimans & Ho 2022, algorithm 1 (2202.00512).
"""

import dataclasses

import jax

from pd_jax.diffusion import Prediction, diffuse, velocity, weighted_mse
from pd_jax.methods import _draws
from pd_jax.models import Model
from pd_jax.schedules import Schedule
from pd_jax.training.optimizer import Descent
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method:
    """Standard training.

    Attributes:
      model, schedule, descent: what is trained, on which noise levels, and how.
      weighting: loss weight, of `diffusion.weighted_mse`.
      discrete: times i/N of the stage's N steps, instead of all of [0, 1].
    """

    model: Model
    schedule: Schedule
    descent: Descent
    weighting: str = "truncated_snr"
    discrete: bool = False

    needs_teacher = False
    forwards = 3  # a forward and a backward pass

    def start(self, weights: dict, stage: Stage) -> TrainState:
        """A state that trains from `weights`."""
        return self.descent.start(weights, stage)

    def result(self, state: TrainState) -> dict:
        """The trained weights."""
        return state.weights

    def loss(
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
            t = _draws.grid_times(keys, state.stage.num_steps)
        else:
            t = _draws.uniform_times(keys)
        logsnr = self.schedule(t)
        eps = _draws.normal_like(keys, x)
        z = diffuse(x, eps, logsnr)
        denoise = self.model.denoiser(params, batch.get("label"), dropout_key)
        truth = Prediction(x, eps, velocity(x, eps, logsnr))
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)

    def update(
        self, state: TrainState, batch: dict, keys: jax.Array
    ) -> tuple[TrainState, dict]:
        """One update; batch {"image" [B, ...], "label" [B]}, keys [B]."""

        def loss(params, batch, keys):
            return self.loss(state, params, batch, keys, _draws.dropout_key(keys))

        return self.descent.update(state, loss, batch, keys)
