"""Ancestral sampling: a draw from the Gaussian q(z_s | z_t, x) at the predicted x.

Source: Ho et al. 2020 (2006.11239).
"""

import dataclasses

import jax

from pd_jax.diffusion import posterior, variance_weight
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Ancestral sampling.

    Attributes:
      variance: of `diffusion.posterior`.
    """

    variance: str = "large"

    draws = True

    def __post_init__(self):
        variance_weight(self.variance)

    @property
    def label(self) -> str:
        """With the variance."""
        return f"ancestral, {self.variance} variance"

    def step(self, level, following, z, x, v, view, keys, memory):
        """Draws from the posterior."""
        mean, std = posterior(x, z, following.logsnr, level.logsnr, self.variance)

        def draw(key):
            return jax.random.normal(key, z.shape[1:], z.dtype)

        return mean + std * jax.vmap(draw)(keys), memory
