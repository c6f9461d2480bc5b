"""Spacings: at which times a sampler of N steps asks the denoiser.

    uniform     t = n / N                                                     (1)
    quadratic   t = (n / N)^2                                                 (2)
    karras      tan(phi)^(1/7) falls evenly from 80 to 0.002                  (3)
    1,0.6,0.3   these times, at N = 3; of another N, between them evenly      (4)

with n = N, ..., 1 steps left. After the last of them comes the data, at t = 0.

Source: (2) Song et al. 2021 (2010.02502), appendix D.2; (3) Karras et al. 2022
(2206.00364), equation 5, with sigma = tan(phi), within the schedule's ends.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pd_jax.runtime.errors import Refused
from pd_jax.schedules import Schedule

NAMES = ("uniform", "quadratic", "karras")
SIGMA_MAX, SIGMA_MIN, RHO = 80.0, 0.002, 7.0


def check(name: str) -> None:
    """Raises Refused for what is neither the name of a spacing nor times."""
    if name in NAMES:
        return
    try:
        given = _given(name)
    except ValueError:
        given = []
    falling = all(a > b for a, b in itertools.pairwise([*given, 0.0]))
    if not given or not given[0] <= 1.0 or not falling:
        raise Refused(
            f'a sampler\'s spacing "{name}": give {", ".join(NAMES)}, or falling times '
            'from at most 1 to above 0, as in "ddim@1,0.6,0.3"'
        )


def time(
    name: str, n: jax.Array | int, num_steps: jax.Array | int, schedule: Schedule, dtype
) -> jax.Array:
    """The time with n of num_steps steps left, both may be traced; 0 of n = 0."""
    n, num_steps = jnp.asarray(n, dtype), jnp.asarray(num_steps, dtype)
    share = n / num_steps
    if name == "uniform":
        return share
    if name == "quadratic":
        return jnp.square(share)
    if name != "karras":
        times = _given(name)[::-1]
        knots = [k / len(times) for k in range(len(times) + 1)]
        return jnp.interp(
            share, jnp.asarray(knots, dtype), jnp.asarray([0.0, *times], dtype)
        )
    ends = [jnp.tan(schedule.angle(jnp.asarray(t, dtype))) for t in (1.0, 0.0)]
    high = jnp.minimum(SIGMA_MAX, ends[0]) ** (1.0 / RHO)
    low = jnp.maximum(SIGMA_MIN, ends[1]) ** (1.0 / RHO)
    passed = (num_steps - n) / jnp.maximum(num_steps - 1, 1)
    sigma = (high + passed * (low - high)) ** RHO
    return jnp.where(n > 0, schedule.time(jnp.arctan(sigma)), 0.0)


def _given(name: str) -> list[float]:
    """Times given one by one, falling."""
    return [float(part) for part in name.split(",")]


def search(
    score: Callable[[str], float], num_steps: int, rounds: int = 6
) -> tuple[str, float]:
    """Times at which a sampler scores best, found one after the other.

    The first is 1; each further one is searched between 0 and the one before: of two
    thirds' scores the worse one's outer third is left. Each round costs two scores.

    Args:
      score: of a spacing, the lower the better: such as the Frechet distance of
        `student.sample(..., sampler="consistency@" + spacing, force=True)`.
      num_steps: how many times.
      rounds: for each; the last interval has (2/3)^rounds of the first one's length.

    Returns:
      The spacing, such as "1,0.42", and its score.

    Raises:
      Refused: unless num_steps and rounds are at least 1.

    Source: Song et al. 2023 (2303.01469), section 3: a greedy search by thirds.
    """
    if min(num_steps, rounds) < 1:
        raise Refused(f"num_steps={num_steps}, rounds={rounds}: at least 1")
    times, best = ["1"], None
    while len(times) < num_steps:
        low, high, found = 0.0, float(times[-1]), {}
        for _ in range(rounds):
            one, other = low + (high - low) / 3, high - (high - low) / 3
            for t in (one, other):
                found[t] = score(",".join([*times, f"{t:.6g}"]))
            low, high = (low, other) if found[one] <= found[other] else (one, high)
        t = min(found, key=found.get)
        times, best = [*times, f"{t:.6g}"], found[t]
    spacing = ",".join(times)
    return spacing, score(spacing) if best is None else best
