"""Samplers: from noise to data in a given number of steps; one sampler a file.

Every sampler runs on the grid t = 1, (N-1)/N, ..., 1/N, 0, or on that of a spacing. A
step asks the denoiser for x at (z_t, t), clips it, and moves on to z_s; the last step
returns x itself. Written for a traced number of steps, so that one compiled sampler
serves all of them.

A sampler's name is that of its file; after a colon its variant, after an at sign the
spacing of its steps: "heun", "ancestral:small", "ddim@karras", "consistency@1,0.4".

A sampler's file defines `Sampler`, as the protocol of that name says.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax.arcs import Denoiser
from pd_jax.diffusion import alpha_sigma, expand
from pd_jax.runtime import numerics, registry
from pd_jax.runtime.errors import Refused
from pd_jax.samplers import _spacing
from pd_jax.samplers._sampler import Level, Sampler, View
from pd_jax.samplers._spacing import search
from pd_jax.schedules import Schedule

__all__ = [
    "Level",
    "Sampler",
    "View",
    "get",
    "known",
    "label",
    "labels",
    "noise",
    "parse",
    "sample",
    "search",
    "step_keys",
]


UNIFORM = "uniform"


def known() -> list[str]:
    """The samplers' names."""
    return registry.members(sys.modules[__name__])


def get(method: str) -> Sampler:
    """The sampler called `method`, such as "ddim" or "ancestral:small@karras".

    Raises:
      Refused: for an unknown name, variant or spacing, listing the known ones.
    """
    return _named(method)[1]


def label(method: str) -> str:
    """A sampler's name in tables and plots, such as "Heun, karras steps"."""
    _, sampler, spacing = _named(method)
    return sampler.label if spacing == UNIFORM else f"{sampler.label}, {spacing} steps"


def parse(method: str) -> tuple[str, str]:
    """Splits a sampler's name into name and variant ("" without one).

    A spacing other than the uniform one is a part of the variant, with its "@".

    Raises:
      Refused: for an unknown name, variant or spacing, listing the known ones.
    """
    name, sampler, spacing = _named(method)
    variant = "".join(dataclasses.astuple(sampler))
    return name, variant if spacing == UNIFORM else f"{variant}@{spacing}"


def _named(method: str) -> tuple[str, Sampler, str]:
    """Name, sampler and spacing."""
    whole, at, spacing = method.partition("@")
    spacing = spacing if at else UNIFORM
    _spacing.check(spacing)
    name, _, variant = whole.partition(":")
    kind = registry.member(sys.modules[__name__], name, "sampler").Sampler
    if variant and not dataclasses.fields(kind):
        raise Refused(f'sampler "{method}": "{name}" takes no variance')
    return name, kind(variant) if variant else kind(), spacing


def _example_keys(key: jax.Array, num: int) -> jax.Array:
    """One key per example: noise belongs to an example, whatever its batch."""
    key = numerics.threefry(key)
    if key.ndim:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))


def noise(key: jax.Array, place: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise [B, *shape] of places [B]: a function of key and place.

    A set of samples is thereby the same in batches of any size, in any order.
    """

    @jax.vmap
    def draw(place):
        return jax.random.normal(jax.random.fold_in(key, place), shape, jnp.float32)

    return draw(place)


def step_keys(key: jax.Array, place: jax.Array) -> jax.Array:
    """Keys [B] for `sample` at places [B], of the same key as `noise`."""
    root = jax.random.fold_in(key, 1)
    return jax.vmap(jax.random.fold_in, (None, 0))(root, place)


def labels(
    key: jax.Array,
    place: jax.Array,
    num_classes: int,
    counts: tuple[int, ...] = (),
) -> jax.Array:
    """Labels [B] int32 of places [B], of the same key as `noise`.

    Args:
      key, place: as for `noise`.
      num_classes: of the labels, 0 to num_classes - 1.
      counts: how often each occurs, not all 0: so often it is drawn; () for all alike.
    """
    root = jax.random.fold_in(key, 2)
    if len(set(counts)) > 1:
        # In whole numbers: the same on every platform, and what has no count not once.
        ends = np.cumsum(np.asarray(counts, object)) * 2**32 // sum(counts)

        @jax.vmap
        def draw(place):
            bits = jax.random.bits(jax.random.fold_in(root, place), (), jnp.uint32)
            below = jnp.asarray(ends[:-1].clip(0, 2**32 - 1).astype(np.uint32))
            return jnp.searchsorted(below, bits, side="right").astype(jnp.int32)

        return draw(place)

    @jax.vmap
    def draw(place):
        return jax.random.randint(
            jax.random.fold_in(root, place), (), 0, num_classes, jnp.int32
        )

    return draw(place)


def sample(
    denoise: Denoiser,
    z: jax.Array,
    num_steps: jax.Array | int,
    schedule: Schedule,
    method: str = "ddim",
    clip: bool = True,
    key: jax.Array | None = None,
    counted: bool = False,
    stops: int = 1,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Samples data from noise.

    Args:
      denoise: (z [B, ...], logsnr [B]) -> Prediction.
      z: standard normal noise [B, ...].
      num_steps: number of steps N >= 1; may be traced.
      schedule: the schedule that the denoiser was trained on.
      method: a name of `known`; with a variant, as "ancestral:VARIANCE", of
        `diffusion.posterior`; with a spacing, as "ddim@SPACING": uniform, quadratic,
        karras, or times.
      clip: clip each prediction of x to [-1, 1].
      key: for samplers that draw noise: one key, or one per example [B].
      counted: return also how often the denoiser was asked, of each example.
      stops: with more than one, return what was reached after each 1/stops of the
        steps, of which num_steps is a multiple.

    Returns:
      x [B, ...], in [-1, 1] where clipped; with `counted` that and int32 [B]; with
      `stops` [stops, B, ...], x last.

    Raises:
      Refused: for an unknown method.
      ValueError: for fewer than one step, or a missing key.
    """
    _, sampler, spacing = _named(method)
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.floating):
        z = z.astype(jnp.float32)
    if not isinstance(num_steps, jax.core.Tracer):
        whole = np.ndim(num_steps) == 0 and isinstance(
            np.asarray(num_steps).item(), int
        )
        if not whole or num_steps < 1:
            raise ValueError(
                f"num_steps={num_steps}: a sampler takes a whole number of steps, at "
                "least one"
            )
    keys = None
    if sampler.draws:
        if key is None:
            raise ValueError(f'sampler "{method}" draws noise: it needs a key')
        keys = _example_keys(key, z.shape[0])

    def level(n):
        """The noise level with n of N steps left."""
        t = _spacing.time(spacing, n, num_steps, schedule, z.dtype)
        return Level(t, schedule.angle(t), schedule(t))

    def view(z, level, until=None):
        """x, clipped, and the v that points at it; or those of a jump."""
        levels = [one.logsnr for one in (level, until) if one is not None]
        x, _, v = denoise(z, *(jnp.broadcast_to(n, z.shape[:1]) for n in levels))
        if clip and until is None:
            x = jnp.clip(x, -1.0, 1.0)
            alpha, sigma = (expand(a, z) for a in alpha_sigma(level.logsnr))
            v = (alpha * z - x) / sigma
        return x, v

    def body(i, carry):
        z, memory, reached = carry
        n = num_steps - i
        of_step = None
        if sampler.draws:
            of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
        start, z = sampler.enter(level(n), highest, z, num_steps, of_step)
        until = sampler.until(start, level(n - 1)) if sampler.jumps else None
        x, v = view(z, start, until)
        z_s, memory = sampler.step(start, level(n - 1), z, x, v, view, of_step, memory)
        z_s = z_s if sampler.arrives else jnp.where(n == 1, x, z_s)
        if stops > 1:
            part, rest = jnp.divmod((i + 1) * stops, num_steps)
            place = jnp.where(rest == 0, part - 1, stops)  # beyond the end: nowhere
            reached = reached.at[place].set(z_s, mode="drop")
        return z_s, memory, reached

    highest = Level(
        *(jnp.asarray(f(1.0), z.dtype) for f in (float, schedule.angle, schedule))
    )
    memory = sampler.start(level(num_steps), z)
    reached = jnp.zeros((stops if stops > 1 else 0, *z.shape), z.dtype)
    carry = z, memory, reached
    x, memory, reached = jax.lax.fori_loop(0, num_steps, body, carry)
    if stops > 1:
        return reached
    x = jnp.clip(x, -1.0, 1.0) if clip and sampler.jumps else x
    if not counted:
        return x
    return x, jnp.broadcast_to(sampler.asked(memory, num_steps), z.shape[:1])
