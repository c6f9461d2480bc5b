"""Arcs: a deterministic sampler step as a rotation, and several of them as one.

With phi the angle of the noise level, a DDIM step from phi_t to phi_s = phi_t - delta
is

    z_s = cos(delta) z_t - sin(delta) v                                       (1)

an *arc* (v, delta). Two arcs, one after the other, land where one arc from the same
start lands:

    sin(d1 + d2) v~ = -sin(d1) sin(d2) z + cos(d2) sin(d1) v1 + sin(d2) v2    (2)

which follows from putting (1) into itself. The data that this arc points at,

    x~ = cos(phi_t) z_t - sin(phi_t) v~                                       (3)

is the distillation target of Salimans & Ho 2022 (arXiv 2202.00512, appendix G),
written there as (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - (sigma_s/sigma_t) alpha_t).
That quotient subtracts nearly equal numbers when steps are short (error 4e-3 in float32
at 8192 steps); (2) and (3) do not (below 1e-6). The last step of a sampler returns the
data that it points at, an arc down to angle 0: i = 1 is no special case either.

Joining is the primitive of other methods too: TRACT joins one teacher arc with the
student's own arc to a segment's end, consistency distillation does it down to angle 0.
What makes one arc from time t to time s is a *mover*: a solver's step with a denoiser,
or a network that was trained to; `chain` joins the arcs of movers over given times.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pd_jax.diffusion import Prediction, expand
from pd_jax.schedules import Schedule

# (z [B, ...], logsnr [B]); one that knows of a second time takes its logsnr [B], too.
Denoiser = Callable[..., Prediction]


class Arc(NamedTuple):
    """A step along v ([B, ...]) by the angle delta ([B] or scalar, radians)."""

    v: jax.Array
    delta: jax.Array


Mover = Callable[[jax.Array, jax.Array, jax.Array], Arc]  # (z [B, ...], t [B], s [B])


def travel(z: jax.Array, arc: Arc) -> jax.Array:
    """Where an arc from z lands, [B, ...] (equation 1)."""
    v, delta = arc
    z, v = jnp.asarray(z), jnp.asarray(v)
    delta = expand(delta, z)
    return jnp.cos(delta) * z - jnp.sin(delta) * v


def join(z: jax.Array, first: Arc, second: Arc) -> Arc:
    """The one arc from z that lands where `first` and then `second` land.

    Args:
      z: the start of `first`, [B, ...].
      first, second: arcs (v, delta); 0 < delta1 + delta2 < pi. Longer chains: join the
        joined arc with the next one, always with the first z.

    Source: equation 2 of this module.
    """
    z, v1, d1, v2, d2 = map(jnp.asarray, (z, *first, *second))
    total = d1 + d2
    e1, e2, e = expand(d1, z), expand(d2, z), expand(total, z)
    sin1, sin2, cos2 = jnp.sin(e1), jnp.sin(e2), jnp.cos(e2)
    # Each sine ratio is at most about 1: form them before multiplying the fields.
    ratio1, ratio2 = sin1 / jnp.sin(e), sin2 / jnp.sin(e)
    return Arc(ratio1 * (cos2 * v1 - sin2 * z) + ratio2 * v2, total)


def points_at(z: jax.Array, v: jax.Array, phi: jax.Array) -> jax.Array:
    """The data x that velocity v at z and angle phi ([B] or scalar) points at."""
    return travel(z, Arc(v, phi))


def angle(schedule: Schedule, t: jax.Array) -> jax.Array:
    """A time's angle, [B]; at time 0 that of the data itself, 0."""
    return jnp.where(t > 0, schedule.angle(t), 0.0)


def ddim(denoise: Denoiser, schedule: Schedule) -> Mover:
    """The mover of a denoiser by one DDIM step, of any length.

    Down to s = 0 its arc points at the denoiser's prediction of the data.
    """

    def move(z, t, s):
        return Arc(denoise(z, schedule(t)).v, angle(schedule, t) - angle(schedule, s))

    return move


def jump(denoise: Denoiser, schedule: Schedule) -> Mover:
    """The mover of a denoiser that is asked with the noise level to be reached.

    That of `ddim` where the denoiser knows of no second time.
    """

    def move(z, t, s):
        v = denoise(z, schedule(t), schedule(s)).v
        return Arc(v, angle(schedule, t) - angle(schedule, s))

    return move


def averaged(first: Arc, z_s: jax.Array, v_s: jax.Array) -> Arc:
    """The arc of Heun's method: of the mean of the velocities at both ends of a step.

    Args:
      first: the DDIM step from z, [B, ...].
      z_s: where it lands.
      v_s: the velocity there, which is turned back along the arc to its start.

    Source: Karras et al. 2022 (2206.00364), algorithm 1, here in the angle.
    """
    v, delta = first
    e = expand(delta, v)
    return Arc(0.5 * (v + (jnp.cos(e) * v_s - jnp.sin(e) * z_s)), delta)


def heun(denoise: Denoiser, schedule: Schedule) -> Mover:
    """The mover of a denoiser by one step of Heun's method in the angle; two calls."""

    def move(z, t, s):
        first = ddim(denoise, schedule)(z, t, s)
        z_s = travel(z, first)
        return averaged(first, z_s, denoise(z_s, schedule(s)).v)

    return move


def chain(z: jax.Array, times: Sequence[jax.Array], movers: Sequence[Mover]) -> Arc:
    """The one arc from z that lands where movers, one after the other, land.

    Args:
      z: the start, at times[0], [B, ...].
      times: n + 1 times [B], falling; the last may be 0 and equal the one before.
      movers: n of them, from each time to the next.
    """
    whole, z_t = None, z
    for (t, s), move in zip(itertools.pairwise(times), movers, strict=True):
        arc = move(z_t, t, s)
        whole = arc if whole is None else join(z, whole, arc)
        z_t = travel(z, whole)
    return whole


def grid_below(t: jax.Array, step: jax.Array, num: int) -> list[jax.Array]:
    """The times t, t - step, ..., t - num * step, [B] each, and exactly 0 at the end.

    A grid's 0 is up to the rounding of t and of the division: what is below a
    thousandth of a step is 0.
    """
    times = [t]
    for j in range(1, num + 1):
        s = t - j * step
        times.append(jnp.where(s < 1e-3 * step, 0.0, s))
    return times


def follow(
    denoise: Denoiser,
    z: jax.Array,
    t: jax.Array,
    num_steps: jax.Array | int,
    schedule: Schedule,
    teacher_steps: int = 2,
) -> Arc:
    """The one arc that equals `teacher_steps` DDIM steps of a denoiser.

    Args:
      denoise: the teacher, (z [B, ...], logsnr [B]) -> Prediction.
      z: noisy data at time t, [B, ...].
      t: start times [B] (or a scalar), i/N for i in 1..N.
      num_steps: the student's number of steps N; may be traced.
      schedule: the noise schedule of both.
      teacher_steps: how many teacher steps make one student step, k >= 1.

    Returns:
      An arc from z at time t to time t - 1/N, or to the data where that is 0.

    Source: Salimans & Ho 2022, algorithm 2 and appendix G.
    """
    if teacher_steps < 1:
        raise ValueError(f"teacher_steps={teacher_steps}: at least 1")
    z = jnp.asarray(z)
    t = jnp.broadcast_to(jnp.asarray(t, z.dtype), z.shape[:1])
    step = 1.0 / (teacher_steps * jnp.asarray(num_steps, z.dtype))
    times = grid_below(t, step, teacher_steps)
    return chain(z, times, [ddim(denoise, schedule)] * teacher_steps)


def target(
    denoise: Denoiser,
    z: jax.Array,
    t: jax.Array,
    num_steps: jax.Array | int,
    schedule: Schedule,
    teacher_steps: int = 2,
) -> jax.Array:
    """The data x~ [B, ...] at which a student must point to equal its teacher.

    One student DDIM step of length 1/N that predicts x~ at (z, t) lands exactly where
    `teacher_steps` steps of the teacher land. Arguments as for `follow`.

    Source: Salimans & Ho 2022, appendix G, as equation 3 of this module.
    """
    z = jnp.asarray(z)
    arc = follow(denoise, z, t, num_steps, schedule, teacher_steps)
    return points_at(z, arc.v, schedule.angle(jnp.asarray(t, z.dtype)))
