"""DDIM: along the arc that points at the predicted data.

Source: Song et al. 2021 (2010.02502).
"""

import dataclasses

from pd_jax.arcs import Arc, travel


@dataclasses.dataclass(frozen=True)
class Sampler:
    """DDIM, first order; see `pd_jax.samplers.Sampler`."""

    label = "DDIM"
    evaluations = 1
    draws = False

    def start(self, level, z):
        """Steps are independent."""
        return ()

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels along the arc of v."""
        return travel(z, Arc(v, level.angle - following.angle)), memory
