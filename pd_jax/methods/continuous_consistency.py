"""Continuous-time consistency: to the data in one step, in the limit of fine grids.

Of f(z, phi) = cos(phi) z - sin(phi) V, which jumps from z to the data, the derivative
along the path is zero where f is consistent. Times cos(phi) it is

    g = -cos^2(phi) (V - v) - r sin(phi) cos(phi) (z + dV/dphi)               (1)

at r = 1; r grows from 0 over `tangent_warmup` updates. The target is V + g / (|g| + c),
its gradient stopped: V(z_t, t) -> V + g / (|g| + c). With velocity="teacher" it is
distillation (sCD), with "data" training (sCT).

Source: Lu & Song 2024 (2410.11081), algorithm 1. Its time and network output are phi
and V, of data of unit deviation. Its weight over phi, a small network trained beside,
is at its best the inverse of the mean loss there; here every loss is divided by its
own, where `power` is 1. A network's `time_scale` must be small, about 10 here: the
derivative by time is as large.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax.diffusion import alpha_sigma, expand, predict, weighted_mse
from pd_jax.methods._derivative import Derived, adaptive, derivative
from pd_jax.training.method import setting
from pd_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Method(Derived):
    """Continuous-time consistency models.

    Attributes:
      normalized: g is divided by |g| + 0.1, of the whole example; without, it stays as
        it is: in few dimensions what is learnt from data is biased with it.
      tangent_warmup: updates over which r grows to 1; 0: it is 1 from the first on.
      power: losses are divided by (|error|^2 + 0.01)^power of their own; 0: they stay
        squared errors.
    """

    velocity: str = setting("teacher", choices=("data", "teacher"))
    time_mean: float = -0.3
    time_std: float = setting(1.4, least=0.0)
    normalized: bool = True
    tangent_warmup: int = setting(10_000, least=0)
    power: float = setting(0.0, least=0.0)

    sampler = "consistency"

    def losses(
        self,
        state: TrainState,
        params: dict,
        batch: dict,
        keys: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """How far V is from V + g of equation 1, per example, [B]."""
        schedule, model = self.parts.schedule, self.parts.model
        t = self.drawn_times(keys, self.time_mean, self.time_std)
        z, v = self.path(state, batch, keys, t)
        logsnr = schedule(t)
        alpha, sigma = alpha_sigma(logsnr)
        denoise = model.denoiser(params, batch.get("label"), dropout_key)
        own, change = derivative(denoise, z, logsnr, None, v, sigma * alpha)
        share = jnp.minimum((state.step + 1.0) / max(self.tangent_warmup, 1), 1.0)
        sine = expand(sigma * alpha, z)
        g = -expand(alpha**2, z) * (own - v) - share * (sine * z + change)
        if self.normalized:
            axes = tuple(range(1, z.ndim))
            norm = jnp.sqrt(jnp.sum(jnp.square(g), axis=axes))
            g = g / expand(norm + 0.1, z)
        target = jax.lax.stop_gradient(own + g)
        truth = predict(target, z, logsnr, "v")
        losses = weighted_mse(denoise(z, logsnr), truth, self.weighting)
        return adaptive(losses, z[0].size, self.power, 0.01)
