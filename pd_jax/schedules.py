"""Noise schedules: from time to noise level.

Time t runs from 0 (data) to 1 (noise). A variance-preserving process is

    z_t = alpha_t x + sigma_t eps,   alpha^2 + sigma^2 = 1                    (1)
    logsnr_t = log(alpha_t^2 / sigma_t^2)                                     (2)
    phi_t = arctan(sigma_t / alpha_t),  alpha = cos(phi),  sigma = sin(phi)   (3)

so that (logsnr, angle phi) are two names for one noise level. A schedule is any
object with both: `schedule(t) -> logsnr` and `schedule.angle(t) -> phi`.

Source: Salimans & Ho 2022, arXiv 2202.00512, sections 2 and 4 and appendix D.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused


class Schedule(Protocol):
    """What the rest of the project needs of a schedule; any shape of t."""

    def __call__(self, t: jax.Array) -> jax.Array:
        """Log signal-to-noise ratio at time t in [0, 1]; falls with t."""

    def angle(self, t: jax.Array) -> jax.Array:
        """Angle phi at time t, radians in [0, pi/2]; rises with t."""

    def time(self, angle: jax.Array) -> jax.Array:
        """The time in [0, 1] of an angle; the nearest end's beyond the ends."""


@dataclasses.dataclass(frozen=True)
class Cosine:
    """The cosine schedule, clipped: the angle is linear in time."""

    logsnr_min: float
    logsnr_max: float

    # Both ends as small angles, in float64: from the data axis at t = 0, and from
    # the noise axis at t = 1.
    @property
    def _from_data(self) -> float:
        return math.atan(math.exp(-0.5 * self.logsnr_max))

    @property
    def _from_noise(self) -> float:
        return math.atan(math.exp(0.5 * self.logsnr_min))

    @property
    def _span(self) -> float:
        return 0.5 * math.pi - self._from_data - self._from_noise

    def angle(self, t: jax.Array) -> jax.Array:
        """phi(t) = span t + phi(0), radians; any shape."""
        return self._span * _float(t) + self._from_data

    def time(self, angle: jax.Array) -> jax.Array:
        """t = (phi - phi(0)) / span, in [0, 1]; any shape."""
        return jnp.clip((_float(angle) - self._from_data) / self._span, 0.0, 1.0)

    def __call__(self, t: jax.Array) -> jax.Array:
        """logsnr(t) = -2 log tan phi(t); any shape.

        For t > 1/2 the angle is counted from the noise axis instead. Near t = 1 the
        tangent is steep (phi is within 1e-4 of pi/2), and float32 would lose three
        digits of logsnr there, which is where a sampler starts.
        """
        t = _float(t)
        near_data = -2.0 * jnp.log(jnp.tan(self._span * t + self._from_data))
        near_noise = 2.0 * jnp.log(jnp.tan(self._span * (1.0 - t) + self._from_noise))
        return jnp.where(t < 0.5, near_data, near_noise)


def _float(t: jax.Array) -> jax.Array:
    """As an array of floats, of the default precision where integers came in."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
    """The cosine schedule between two log signal-to-noise ratios.

    Args:
      logsnr_min: value at t = 1; -20 leaves alpha = 4.5e-5, numerically pure noise.
      logsnr_max: value at t = 0.

    Raises:
      Refused: unless -80 <= logsnr_min < logsnr_max <= 80.

    Source: Nichol & Dhariwal 2021; clipped form of Salimans & Ho 2022, appendix D.
    """
    logsnr_min, logsnr_max = float(logsnr_min), float(logsnr_max)
    if not (math.isfinite(logsnr_min) and math.isfinite(logsnr_max)):
        raise Refused(f"logsnr_min={logsnr_min}, logsnr_max={logsnr_max}: not finite")
    if max(-logsnr_min, logsnr_max) > 80.0:
        raise Refused(
            f"logsnr_min={logsnr_min}, logsnr_max={logsnr_max}: give -80 to 80, where "
            "float32 holds the signal-to-noise ratio itself"
        )
    if logsnr_min >= logsnr_max:
        raise Refused(
            f"logsnr_min={logsnr_min} must be below logsnr_max={logsnr_max}: t = 1 is "
            "noise and t = 0 is data"
        )
    return Cosine(logsnr_min, logsnr_max)


SCHEDULES = {"cosine": cosine}


def get(name: str, **kw) -> Schedule:
    """The schedule called `name`, with its own keywords.

    Raises:
      Refused: for an unknown name, listing the known ones, or wrong keywords.
    """
    make = SCHEDULES[registry.check(name, SCHEDULES, "schedule")]
    try:
        return make(**kw)
    except TypeError as error:
        raise Refused(f'schedule "{name}": {error}') from error


def describe(schedule: Schedule) -> dict | None:
    """The keywords of `get` that give this schedule; None for one of another kind."""
    if type(schedule) is not Cosine:
        return None
    return {"name": "cosine", **dataclasses.asdict(schedule)}
