"""Imitation: the teacher's prediction in place of the data that it was trained on.

For x, t and eps: z_t = alpha_t x + sigma_t eps, and the weighted error of the student's
prediction at (z_t, t) against the teacher's there,

    student(z_t, t) -> teacher(z_t, t)

whose minimum is the teacher itself. The target of standard training, (x, eps), has the
posterior's variance around the mean that it teaches; this one has none, and has the
teacher's error instead.

Source: standard distillation (Hinton et al. 2015, 1503.02531) on the noisy data of
Salimans & Ho 2022, algorithm 1.
"""

import dataclasses

import jax

from pd_jax.diffusion import diffuse, weighted_mse
from pd_jax.methods import _draws
from pd_jax.methods._single import Single
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(Single):
    """Imitation; a student of any number of steps, as its teacher."""

    forwards = 4  # the teacher's forward, the student's forward and backward

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the prediction is from the teacher's, per example, [B]."""
        x, label = batch["image"], batch.get("label")
        logsnr = self.parts.schedule(_draws.uniform_times(keys))
        z = diffuse(x, _draws.normal_like(keys, x), logsnr)
        truth = jax.lax.stop_gradient(self.parts.teacher(state, label)(z, logsnr))
        denoise = self.parts.model.denoiser(params, label, dropout_key)
        return weighted_mse(denoise(z, logsnr), truth, self.weighting)
