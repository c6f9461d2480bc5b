"""The contract between the sampling loop and a sampler's file."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Level(NamedTuple):
    """A noise level of the grid: time, angle and logsnr, all scalars."""

    t: jax.Array
    angle: jax.Array
    logsnr: jax.Array


View = Callable[[jax.Array, Level], tuple[jax.Array, jax.Array]]


class Sampler(Protocol):
    """A way to get from one noise level to the next; a frozen dataclass.

    At most one field: the variant that a name gives after a colon.

    Attributes:
      label: the name in tables and plots.
      evaluations: of the denoiser in a step, the loop's own included; at least.
      draws: whether a step draws noise, and so needs keys.
      jumps: whether the denoiser is asked with a second level, that of `until`; then v
        is that of the whole step, which lands where its arc does, and no prediction is
        clipped but the last.
      arrives: whether its last step reaches the data; else the loop replaces what that
        comes to by its x.
    """

    label: str
    evaluations: int = 1
    draws: bool = False
    jumps: bool = False
    arrives: bool = False

    def until(self, level: Level, following: Level) -> Level:
        """The level that a sampler which `jumps` asks to be taken to."""
        return following

    def enter(
        self,
        level: Level,
        highest: Level,
        z: jax.Array,
        num_steps: jax.Array | int,
        keys: jax.Array | None,
    ) -> tuple[Level, jax.Array]:
        """Where a step begins: the level and the z of it, at most the highest there is.

        The denoiser is asked there first. Keys [B] are those of `step`.
        """
        return level, z

    def asked(self, memory: Any, num_steps: jax.Array | int) -> jax.Array:
        """How often the denoiser was asked, int32 [B] or scalar, by the last memory."""
        return jnp.int32(num_steps * self.evaluations)

    def start(self, level: Level, z: jax.Array) -> Any:
        """The memory before the first step, a pytree; () for independent steps."""
        return ()

    def step(
        self,
        level: Level,
        following: Level,
        z: jax.Array,
        x: jax.Array,
        v: jax.Array,
        view: View,
        keys: jax.Array | None,
        memory: Any,
    ) -> tuple[jax.Array, Any]:
        """One step.

        Args:
          level, following: the levels that the step leaves and reaches.
          z: noisy data [B, ...] at `level`.
          x: the denoiser's prediction at z, clipped if the caller clips.
          v: the velocity at z that points at x.
          view: (z, level) -> (x, v), further evaluations of the denoiser.
          keys: [B], of this step and each example; None unless the sampler `draws`.
          memory: from `start` or the step before.

        Returns:
          Noisy data [B, ...] at `following`, and the memory of the next step.
        """
