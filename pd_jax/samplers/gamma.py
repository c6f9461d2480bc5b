"""Gamma sampling: jumps beyond the next level, and fresh noise back to it.

From t the model is asked for the level s with tan(phi_s) = sqrt(1 - gamma^2) tan(phi'),
phi' being the next level's angle, and noise takes what it lands on back there,

    z' = z_s cos(phi') / cos(phi_s) + gamma sin(phi') n

which has the next level's distribution. gamma = 0 is `path`, and gamma = 1 jumps to the
data and noises it anew, as `consistency` does.

Source: Kim et al. 2023 (2310.02279), algorithm 3; here variance-preserving.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pd_jax.arcs import Arc, travel
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import _sampler
from pd_jax.samplers._sampler import Level


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Jumps with a share of fresh noise.

    Attributes:
      gamma: the share, a number from 0 to 1.
    """

    gamma: str = "0.5"

    draws = True
    jumps = True

    def __post_init__(self):
        try:
            good = 0.0 <= float(self.gamma) <= 1.0
        except ValueError:
            good = False
        if not good:
            raise Refused(
                f'sampler "gamma:{self.gamma}": gamma is a number from 0 to 1, as in '
                '"gamma:0.5"'
            )

    @property
    def label(self) -> str:
        """With its share."""
        return f"gamma {self.gamma}"

    def until(self, level: Level, following: Level) -> Level:
        """The level beyond the following one."""
        kept = max(1.0 - float(self.gamma) ** 2, 1e-30)
        logsnr = following.logsnr - math.log(kept)
        return Level(following.t, jnp.arctan(jnp.exp(-0.5 * logsnr)), logsnr)

    def step(self, level, following, z, x, v, view, keys, memory):
        """Goes along the jump's arc, and back by noise."""
        until = self.until(level, following)
        z_s = travel(z, Arc(v, level.angle - until.angle))
        noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(keys)
        scale = jnp.cos(following.angle) / jnp.cos(until.angle)
        back = float(self.gamma) * jnp.sin(following.angle)
        return scale * z_s + back * noise, memory
