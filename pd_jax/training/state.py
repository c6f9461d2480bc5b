"""The train state: everything that an update reads and writes, one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from pd_jax.training.stage import Stage


class StageValues(flax.struct.PyTreeNode):
    """A stage's numbers as traced scalars: one compiled step serves the ladder."""

    index: jax.Array
    num_steps: jax.Array
    updates: jax.Array
    learning_rate: jax.Array

    @classmethod
    def of(cls, stage: Stage) -> "StageValues":
        """The numbers of a stage of the plan."""
        return cls(
            index=jnp.int32(stage.index),
            num_steps=jnp.int32(stage.num_steps),
            updates=jnp.int32(stage.updates),
            learning_rate=jnp.float32(stage.learning_rate),
        )


class TrainState(flax.struct.PyTreeNode):
    """State of one stage.

    Attributes:
      step: updates done in this stage, int32.
      stage: the stage's numbers.
      params: weights that the optimiser moves.
      ema: their running average, or None.
      opt_state: the optimiser's state.
      teacher: the teacher's weights, or None. Constant within a stage.
    """

    step: jax.Array
    stage: StageValues
    params: Any
    ema: Any
    opt_state: Any
    teacher: Any = None

    @property
    def weights(self) -> Any:
        """The weights to sample with, and to hand over: the average where kept."""
        return self.params if self.ema is None else self.ema
