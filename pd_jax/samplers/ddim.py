"""DDIM: along the arc that points at the predicted data.

Source: Song et al. 2021 (2010.02502).
"""

import dataclasses

from pd_jax.arcs import Arc, travel
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """DDIM, first order."""

    label = "DDIM"

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels along the arc of v."""
        return travel(z, Arc(v, level.angle - following.angle)), memory
