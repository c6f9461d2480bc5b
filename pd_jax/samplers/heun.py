"""Heun's method in the angle: the mean of the velocities at both ends of a step.

Source: Karras et al. 2022 (2206.00364), there in sigma.
"""

import dataclasses

from pd_jax.arcs import Arc, averaged, travel
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Heun's method, second order."""

    label = "Heun"
    evaluations = 2

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels along the arc of the mean velocity."""
        first = Arc(v, level.angle - following.angle)
        z_s = travel(z, first)
        _, v_s = view(z_s, following)
        return travel(z, averaged(first, z_s, v_s)), memory
