"""Jumps from level to level along the path, of a model that knows where it is to go.

Deterministic: the sampler of models of two times, V(z_t, t, s).

Source: Kim et al. 2023 (2310.02279), gamma = 0; Frans et al. 2024 (2410.12557).
"""

import dataclasses

from pd_jax.arcs import Arc, travel
from pd_jax.samplers import _sampler


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """One jump a step."""

    label = "path"
    jumps = True

    def step(self, level, following, z, x, v, view, keys, memory):
        """Goes along the jump's arc."""
        return travel(z, Arc(v, level.angle - following.angle)), memory
