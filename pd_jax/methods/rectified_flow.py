"""Rectified flow: the same noises and samples, joined by straight paths.

Pairs of a noise and the teacher's sample of it, x = sampler(eps), made once; on them
the ordinary objective,

    z_t = alpha_t x + sigma_t eps,   student(z_t, t) -> v = alpha_t eps - sigma_t x

The mean of v at z_t is a flow of the same samples, whose paths cross less, so that few
steps go along them: "reflow". Every further round makes its pairs by the student of the
round before. Lines in z / (alpha + sigma) are this path, and Euler's step on them is
DDIM's, so uniform t here is uniform time there up to a weight.

Source: Liu et al. 2022 (2209.03003), who train on lines at uniform times. With
time_law="ends" and loss="pseudo_huber" the improved recipe of Lee et al. 2024
(2405.20320), without LPIPS: of the line's time tau the density is e^(4 tau), mirrored
for every second example: most at both ends.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pd_jax.diffusion import Prediction, diffuse, velocity
from pd_jax.methods import _draws
from pd_jax.methods._paired import Paired
from pd_jax.training.method import setting
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState

STEEPNESS = 4.0  # of the improved recipe's density, in the line's time


@dataclasses.dataclass(frozen=True)
class Method(Paired):
    """Rectified flow.

    Attributes:
      rounds: how often paths are straightened; the last one's student is measured.
      time_law: of t: "uniform"; or "ends", most near noise and data.
    """

    rounds: int = setting(1, least=1, below=100)
    time_law: str = setting("uniform", choices=("uniform", "ends"))

    def plan(self, teacher_steps: int = 0) -> list[Stage]:
        """A stage for each round."""
        (last,) = super().plan()
        return [
            dataclasses.replace(last, name=f"{last.name}_round{i + 1}", num_steps=0)
            for i in range(self.rounds - 1)
        ] + [last]

    def step_counts(self, stage: Stage | None) -> tuple[int, ...]:
        """Those of `steps` in the last round; none of its own in those before."""
        early = stage is not None and stage.name != self.parts.student
        return () if early else super().step_counts(stage)

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far the prediction is from its pair's, per example, [B]."""
        x, eps = batch["image"], batch["noise"]
        logsnr = self.parts.schedule(self.times(keys))
        z = diffuse(x, eps, logsnr)
        denoise = self.parts.model.denoiser(params, batch.get("label"), dropout_key)
        truth = Prediction(x, eps, velocity(x, eps, logsnr))
        return self.difference(state, denoise(z, logsnr), truth)

    def times(self, keys: jax.Array) -> jax.Array:
        """Times t, [B]."""
        uniform = _draws.uniform_times(keys)
        if self.time_law == "uniform":
            return uniform
        # A hyperbolic cosine about 1/2, by the inverse of its distribution.
        half = 0.5 * STEEPNESS
        tau = jnp.arcsinh((2.0 * uniform - 1.0) * math.sinh(half)) / STEEPNESS + 0.5
        return self.parts.schedule.time(jnp.arctan2(tau, 1.0 - tau))
