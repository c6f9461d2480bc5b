"""What methods share that learn from a derivative along the path, by a JVP.

On a path dz/dphi = v the model's own V(z, t, s), s held, changes by

    dV/dphi = dV/dz v + dV/dphi|_z

in forward mode. Along the log of the noise the tangents have no pole at either end:
(sin phi cos phi v, 1) of (z, -logsnr/2) give sin phi cos phi dV/dphi.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pd_jax.arcs import Denoiser
from pd_jax.diffusion import alpha_sigma, diffuse, expand, velocity
from pd_jax.methods import _draws
from pd_jax.methods._single import Single
from pd_jax.training.method import setting
from pd_jax.training.state import TrainState


def derivative(
    denoise: Denoiser,
    z: jax.Array,
    logsnr: jax.Array,
    until: jax.Array | None,
    v: jax.Array,
    scale: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The model's V [B, ...] and its derivative along the path, scale * dV/dphi.

    Args:
      denoise: the model's denoiser.
      z, v: where a path is, and its velocity dz/dphi; [B, ...].
      logsnr, until: noise levels of V's two times, [B]; None for a model of one.
      scale: [B], so that scale / (sin phi cos phi) is finite.
    """
    alpha, sigma = alpha_sigma(logsnr)
    along = expand(scale, z) * v
    level = -2.0 * scale / (sigma * alpha)

    def own(z, logsnr):
        return denoise(z, logsnr, until).v

    return jax.jvp(own, (z, logsnr), (along, level))


@dataclasses.dataclass(frozen=True)
class Derived(Single):
    """A method that learns from a derivative along the path.

    Attributes:
      velocity: along which path: "data", the example's own line, whose mean is the
        path's; or "teacher", the path of what teaches.
      time_mean, time_std: of ln tan phi at the time t, which is normal.
    """

    velocity: str = setting("data", choices=("data", "teacher"))
    time_mean: float = 0.0
    time_std: float = setting(1.6, least=0.0)

    @property
    def taught(self) -> bool:
        """Whether there is a teacher to be asked."""
        return self.velocity == "teacher"

    @property
    def forwards(self) -> int:
        """The derivative's two passes, the student's own three, and the teacher's."""
        return 5 + self.taught

    def drawn_times(self, keys: jax.Array, mean: float, deviation: float) -> jax.Array:
        """Times whose ln tan phi is normal, within the schedule's, [B]."""
        normal = jax.scipy.special.ndtri(_draws.uniform_times(keys))
        low, high = self.parts.schedule.angle(jnp.array([0.0, 1.0]))
        phi = jnp.arctan(jnp.exp(mean + deviation * normal))
        return self.parts.schedule.time(jnp.clip(phi, low, high))

    def path(
        self, state: TrainState, batch: dict, keys: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """z at times t, and its path's velocity there, [B, ...] each."""
        x, logsnr = batch["image"], self.parts.schedule(t)
        eps = _draws.normal_like(keys, x)
        z = diffuse(x, eps, logsnr)
        if self.taught:
            return z, self.parts.teacher(state, batch.get("label"))(z, logsnr).v
        return z, velocity(x, eps, logsnr)


def adaptive(losses: jax.Array, size: int, power: float, constant: float) -> jax.Array:
    """Losses, means of `size` squares, over (sum + constant)^power of their own, [B].

    The divisor counts as a constant.
    """
    if not power:
        return losses
    return losses / jax.lax.stop_gradient(size * losses + constant) ** power
