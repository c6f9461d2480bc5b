"""Multistep consistency sampling: jump to data, put fresh noise on it, and again.

Source: Song et al. 2023 (2303.01469), algorithm 1.
"""

import dataclasses

import jax

from pd_jax.diffusion import diffuse
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Jumps to data and noise anew, for a model that jumps from any level."""

    label = "consistency"
    draws = True

    def step(self, level, following, z, x, v, view, keys, memory):
        """Puts fresh noise of the following level on the predicted data."""
        noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        return diffuse(x, noise, following.logsnr), memory
