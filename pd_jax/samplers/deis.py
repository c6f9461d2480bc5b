"""DEIS: the exponential integrator with the noise extrapolated by a polynomial.

With z / cos(phi) as a function of tan(phi), the flow is d(z / cos(phi)) = eps
d tan(phi), and a step is exact where eps is the polynomial in time through its values
at this step and up to three before, at angles phi_0 > ... (tAB-DEIS):

    z_s = cos(phi_s) (z / cos(phi_t) + sum_j C_j eps_j)                       (1)
    C_j = integral from phi_t to phi_s of l_j(phi) / cos(phi)^2               (2)
    l_j(phi) = prod_(m != j) (phi - phi_m) / (phi_j - phi_m)                  (3)

the polynomial taken in the angle, which the cosine schedule moves evenly. The integral
is that of Gauss and Legendre, with 16 points. Order 0 is DDIM.

Source: Zhang & Chen 2023 (2204.13902), equations 13 to 15.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from pd_jax.arcs import Arc, travel
from pd_jax.diffusion import alpha_sigma
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import _sampler

POINTS, SHARES = np.polynomial.legendre.leggauss(16)


@dataclasses.dataclass(frozen=True)
class Sampler(_sampler.Sampler):
    """tAB-DEIS.

    Attributes:
      order: of the polynomial, "0" to "3".
    """

    order: str = "3"

    def __post_init__(self):
        if self.order not in ("0", "1", "2", "3"):
            raise Refused(
                f'sampler "deis:{self.order}": the polynomial\'s order is 0 to 3, as '
                'in "deis:3"'
            )

    @property
    def label(self) -> str:
        """With its order."""
        return f"DEIS, order {self.order}"

    def start(self, level, z):
        """No step yet; z and 0 stand in for eps and angles that are not used."""
        num = int(self.order)
        return (
            jnp.zeros((), jnp.int32),
            (z,) * num,
            (jnp.zeros_like(level.angle),) * num,
        )

    def step(self, level, following, z, x, v, view, keys, memory):
        """Travels an arc of v, and as eps changes meanwhile (equation 1)."""
        num, eps, angles = memory
        (alpha, sigma), (alpha_s, _) = map(
            alpha_sigma, (level.logsnr, following.logsnr)
        )
        eps, angles = (sigma * z + alpha * v, *eps), (level.angle, *angles)
        delta = level.angle - following.angle
        phi = level.angle - 0.5 * delta * (1.0 + jnp.asarray(POINTS, z.dtype))
        rate = -0.5 * delta * jnp.asarray(SHARES, z.dtype) / jnp.square(jnp.cos(phi))
        z_s = travel(z, Arc(v, delta))
        there = [j <= num for j in range(len(eps))]
        for j in range(1, len(eps)):
            basis = jnp.where(there[j], 1.0, 0.0)
            for m in range(len(eps)):
                if m != j:
                    both = there[j] & there[m]
                    apart = jnp.where(both, angles[j] - angles[m], 1.0)
                    basis *= jnp.where(both, (phi - angles[m]) / apart, 1.0)
            z_s += alpha_s * jnp.sum(rate * basis) * (eps[j] - eps[0])
        kept = int(self.order)
        return z_s, (num + 1, eps[:kept], angles[:kept])
