"""EDM's stochastic sampler: a little noise put back before every step of Heun's method.

With N steps and S the churn, a step first raises its noise level,

    tan(phi^) = (1 + min(S / N, sqrt(2) - 1)) tan(phi)                        (1)
    z^ = z cos(phi^) / cos(phi) + sin(phi^) sqrt(1 - (tan(phi) / tan(phi^))^2) n

which has the distribution of the raised level, up to that of t = 1; then it goes down
from there. Noise put back washes out errors of steps before. S = 0 is `heun`.

Source: Karras et al. 2022 (2206.00364), algorithm 2, there with sigma = tan(phi), a
range of sigma and a factor of the noise, here all levels and 1; its Heun is in sigma.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pd_jax.diffusion import alpha_sigma
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import heun
from pd_jax.samplers._sampler import Level


@dataclasses.dataclass(frozen=True)
class Sampler(heun.Sampler):
    """Heun's method with churn.

    Attributes:
      churn: S, a number from 0.
    """

    churn: str = "40"

    draws = True

    def __post_init__(self):
        try:
            good = 0.0 <= float(self.churn) < math.inf
        except ValueError:
            good = False
        if not good:
            raise Refused(
                f'sampler "churn:{self.churn}": the churn is a number from 0, as in '
                '"churn:40"'
            )

    @property
    def label(self) -> str:
        """With its churn."""
        return f"Heun, churn {self.churn}"

    def enter(self, level, highest, z, num_steps, keys):
        """Raises the level by noise (equation 1)."""
        if float(self.churn) == 0.0:
            return level, z
        share = jnp.minimum(float(self.churn) / num_steps, math.sqrt(2.0) - 1.0)
        logsnr = level.logsnr - 2.0 * jnp.log1p(share)
        logsnr = jnp.maximum(logsnr, highest.logsnr)
        raised = Level(level.t, jnp.arctan(jnp.exp(-0.5 * logsnr)), logsnr)
        # At the highest level itself nothing is to be raised, whatever the rounding.
        at_top = level.t >= highest.t
        raised = Level(*(jnp.where(at_top, *ab) for ab in zip(level, raised)))
        (alpha, _), (alpha_up, sigma_up) = map(
            alpha_sigma, (level.logsnr, raised.logsnr)
        )
        # The share of variance that is new: 1 - (tan(phi) / tan(phi^))^2.
        new = jnp.maximum(-jnp.expm1(raised.logsnr - level.logsnr), 0.0)
        noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:], z.dtype))(keys)
        return raised, alpha_up / alpha * z + sigma_up * jnp.sqrt(new) * noise
