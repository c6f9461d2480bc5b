"""Heun's method in the angle: the mean of the velocities at both ends of a step.

Source: Karras et al. 2022 (2206.00364), there in sigma.
"""

import dataclasses

import jax.numpy as jnp

from pd_jax.arcs import Arc, travel
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Heun's method, second order."""

    label = "Heun"
    evaluations = 2

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels along the arc of the mean velocity."""
        delta = level.angle - following.angle
        z_s = travel(z, Arc(v, delta))
        _, v_s = view(z_s, following)
        # v_s turned back along the arc to its start, where the two are averaged.
        v_back = jnp.cos(delta) * v_s - jnp.sin(delta) * z_s
        return travel(z, Arc(0.5 * (v + v_back), delta)), memory
