"""The train state: everything that an update reads and writes, one pytree."""

from typing import Any

import flax.struct
import jax

MODEL = "model"  # the network that a training is for, in states and hand-overs
TEACHER = "teacher"


class Trained(flax.struct.PyTreeNode):
    """A network that an optimizer moves.

    Attributes:
      params: its weights.
      averages: running averages of them by name: "sampling" is measured and handed
        over, "target" is what a method bootstraps from; none where a decay is 0.
      opt_state: the optimizer's state.
    """

    params: Any
    averages: dict[str, Any]
    opt_state: Any

    @property
    def weights(self) -> Any:
        """The weights to sample with, and to hand over: the average where kept."""
        return self.averages.get("sampling", self.params)


class TrainState(flax.struct.PyTreeNode):
    """State of one stage.

    Attributes:
      step: updates done in this stage, int32.
      stage: the stage's numbers by name (`Stage.values`).
      networks: those that are moved, by name; "model" is the one to sample from.
      frozen: weights that are constant within a stage, by name, such as "teacher"; a
        stage's start makes them, so checkpoints leave them out.
      memory: further arrays that the method keeps, by name.
    """

    step: jax.Array
    stage: dict[str, jax.Array]
    networks: dict[str, Trained]
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)
    memory: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def model(self) -> Trained:
        """The network that the training is for."""
        return self.networks[MODEL]

    def with_network(self, name: str, trained: Trained) -> "TrainState":
        """The state with another of its networks moved."""
        return self.replace(networks={**self.networks, name: trained})
