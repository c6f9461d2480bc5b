"""PNDM: the transfer of DDIM with the noise of a linear multistep method.

    eps' = (55 eps_t - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24                    (1)

of the predictions at this step and the three before; the first three steps take the
methods of Adams and Bashforth of one, two and three. The constants are those of even
steps. The transfer is DDIM's; as an arc of v and what eps' differs from eps by, no
difference of large numbers, with delta = phi_t - phi_s:

    z_s = cos(delta) z - sin(delta) (v + (eps' - eps_t) / cos(phi_t))         (2)

Source: Liu et al. 2022 (2202.09778), equations 11 and 12, whose first three steps are
of Runge and Kutta, with four evaluations each.
"""

import dataclasses

import jax.numpy as jnp

from pd_jax.arcs import Arc, travel
from pd_jax.diffusion import alpha_sigma
from pd_jax.samplers import _sampler

# Of Adams and Bashforth, by the number of steps before; the newest first.
WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """PNDM, linear multistep."""

    label = "PNDM"

    def start(self, level, z):
        """No step yet; z stands in for predictions of eps that are not used."""
        return jnp.zeros((), jnp.int32), (z, z, z)

    def step(self, level, following, z, x, v, view, keys, memory):
        """Goes along the combined eps (equation 2)."""
        num, before = memory
        alpha, sigma = alpha_sigma(level.logsnr)
        eps = (sigma * z + alpha * v, *before)
        weights = jnp.asarray(WEIGHTS, z.dtype)[jnp.minimum(num, 3)]
        # The weights' sum is 1: eps' - eps_t is of the differences to eps_t.
        more = sum(w * (e - eps[0]) for w, e in zip(weights[1:], before, strict=True))
        arc = Arc(v + more / alpha, level.angle - following.angle)
        return travel(z, arc), (num + 1, eps[:3])
