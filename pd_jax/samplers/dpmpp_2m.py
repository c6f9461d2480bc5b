"""DPM-Solver++(2M): a DDIM step towards x extrapolated from the step before.

Source: Lu et al. 2022 (2211.01095), algorithm 2.
"""

import dataclasses

import jax.numpy as jnp

from pd_jax.arcs import Arc, travel
from pd_jax.diffusion import alpha_sigma
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """DPM-Solver++(2M), second order."""

    label = "DPM-Solver++(2M)"

    def start(self, level, z):
        """x and logsnr of the step before; z stands in for an x that is not used."""
        return z, level.logsnr

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels along the arc that points at the extrapolated x."""
        x_before, logsnr_before = memory
        first = level.t == 1.0
        ratio = (following.logsnr - level.logsnr) / jnp.where(
            first, 1.0, level.logsnr - logsnr_before
        )
        x_ahead = x + jnp.where(first, 0.0, 0.5 * ratio) * (x - x_before)
        alpha, sigma = alpha_sigma(level.logsnr)
        arc = Arc((alpha * z - x_ahead) / sigma, level.angle - following.angle)
        return travel(z, arc), (x, level.logsnr)
