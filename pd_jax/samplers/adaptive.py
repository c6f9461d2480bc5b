"""Heun's method with steps as long as a tolerance allows, of each example its own.

A step of DDIM and one of Heun's method from the same place differ by about the error of
the first; a step is accepted where that, as RMS of the example's values, is at most the
tolerance, and goes on from Heun's. So curved parts of a path get many steps, straight
ones few: how often the denoiser was asked says how curved the teacher's paths are.
`num_steps` is how many steps there are at least: none leaps over a level of its grid.

Source: Hairer, Norsett & Wanner 1993, Solving Ordinary Differential Equations I,
section II.4; Jolicoeur-Martineau et al. 2021 (2105.14080) for diffusion.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from pd_jax.arcs import Arc, averaged, points_at, travel
from pd_jax.diffusion import expand
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import _sampler
from pd_jax.samplers._sampler import Level

SHORTEST = 0.5 * math.pi / 8192  # a step that is accepted as it is, radians
SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 5.0


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """Adaptive Heun.

    Attributes:
      tolerance: of a step, RMS, above 0.
    """

    tolerance: str = "0.01"

    evaluations = 3
    arrives = True

    def __post_init__(self):
        try:
            good = 0.0 < float(self.tolerance) < math.inf
        except ValueError:
            good = False
        if not good:
            raise Refused(
                f'sampler "adaptive:{self.tolerance}": the tolerance is a number above '
                '0, as in "adaptive:0.01"'
            )

    @property
    def label(self) -> str:
        """With its tolerance."""
        return f"adaptive Heun, tolerance {self.tolerance}"

    def start(self, level, z):
        """The length that is tried next, [B]; and how often the denoiser was asked."""
        tried = jnp.full(z.shape[:1], 0.1, z.dtype)
        return tried, jnp.zeros(z.shape[:1], jnp.int32)

    def asked(self, memory, num_steps):
        """Counted."""
        return memory[1]

    def step(self, level, following, z, x, v, view, keys, memory):
        """Goes to the following level in as many steps as it takes."""
        tried, asked = memory
        batch = z.shape[:1]
        end = jnp.broadcast_to(following.angle, batch)

        def open_(carry):
            return jnp.any(carry[0] > end)

        def attempt(carry):
            phi, z, v, tried, asked = carry
            going = phi > end
            delta = jnp.minimum(tried, phi - end)
            last = delta == phi - end
            phi_s = jnp.where(last, end, phi - delta)
            logsnr = jnp.where(last, following.logsnr, -2.0 * jnp.log(jnp.tan(phi_s)))
            there = Level(level.t, phi_s, logsnr)
            first = Arc(v, delta)
            z_ddim = travel(z, first)
            _, v_s = view(z_ddim, there)
            z_heun = travel(z, averaged(first, z_ddim, v_s))
            _, v_heun = view(z_heun, there)
            axes = tuple(range(1, z.ndim))
            error = jnp.sqrt(jnp.mean(jnp.square(z_heun - z_ddim), axis=axes))
            allowed = float(self.tolerance)
            # An error that is not a number is accepted: it would never get smaller.
            taken = going & (~(error > allowed) | (delta <= SHORTEST))
            factor = SAFETY * jnp.sqrt(allowed / jnp.maximum(error, 1e-12))
            factor = jnp.clip(jnp.nan_to_num(factor), SLOWEST, FASTEST)
            # What the grid cut short says nothing of what could have been taken.
            longer = jnp.where(
                taken & last, jnp.maximum(tried, delta * factor), delta * factor
            )
            tried = jnp.where(going, jnp.maximum(longer, SHORTEST), tried)
            mask = expand(taken, z)
            return (
                jnp.where(taken, phi_s, phi),
                jnp.where(mask, z_heun, z),
                jnp.where(mask, v_heun, v),
                tried,
                asked + 2 * going,
            )

        phi = jnp.broadcast_to(level.angle, batch)
        carry = (phi, z, v, tried, asked + 1)
        _, z, v, tried, asked = jax.lax.while_loop(open_, attempt, carry)
        data = points_at(z, v, following.angle)
        return jnp.where(following.t > 0, z, data), (tried, asked)
