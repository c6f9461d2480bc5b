"""A stage of training, the unit that is checkpointed and handed over."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a training: a teacher's, or one student's.

    Attributes:
      name: unique in a run; names its checkpoints.
      index: place in its training, 0 for the first; part of every random key.
      num_steps: sampling steps N that the stage trains for; 0 for continuous time.
      updates: optimizer updates.
      learning_rate: peak learning rate.
      numbers: further numbers that the method's update reads, by name.
    """

    name: str
    index: int
    num_steps: int
    updates: int
    learning_rate: float
    numbers: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    def values(self) -> dict[str, jax.Array]:
        """Its numbers by name, int32 or float32 scalars.

        They are part of the train state, and traced: one compiled update serves all
        stages of a training.
        """
        return {
            "index": jnp.int32(self.index),
            "num_steps": jnp.int32(self.num_steps),
            "updates": jnp.int32(self.updates),
            "learning_rate": jnp.float32(self.learning_rate),
            **{
                name: jnp.int32(n) if isinstance(n, int) else jnp.float32(n)
                for name, n in self.numbers.items()
            },
        }
