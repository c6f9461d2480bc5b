"""Checkpoints of one stage, and the chain of stages that they make.

Every stage has an Orbax `CheckpointManager` of its own under the workdir:

    checkpoints/teacher/4000/  checkpoints/student_16/800/  ...

numbered by updates done. A stage is finished when its last number is its number of
updates; the finished stage's weights, read back from disk, start and teach the next
one. A teacher's weights are therefore in no checkpoint but its own.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from pd_jax.ladder import Stage
from pd_jax.names import Refused

FORMAT = 1  # of the saved tree and its metadata


class StageCheckpoints:
    """The checkpoints of one stage; a context manager that ends with all written.

    Attributes:
      stage: the stage.
    """

    def __init__(self, workdir: pathlib.Path, stage: Stage):
        self.stage = stage
        self._directory = workdir.absolute() / "checkpoints" / stage.name
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, create=True, cleanup_tmp_directories=True
            ),
            item_names=("state", "facts"),
        )

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *error) -> None:
        self._manager.close()

    @property
    def updates(self) -> int:
        """Updates done in the newest checkpoint, 0 where there is none."""
        return self._manager.latest_step() or 0

    @property
    def finished(self) -> bool:
        """Whether the stage's last update is saved."""
        return self.updates >= self.stage.updates

    def save(self, state: Any, facts: dict) -> None:
        """Saves a state, all but its teacher, in the background.

        Args:
          state: a method's state; may be donated as soon as this returns.
          facts: what else to keep of the stage so far, as JSON.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_bare(state)),
                facts=ocp.args.JsonSave({"format": FORMAT, **facts}),
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict]:
        """The newest checkpoint.

        Args:
          like: a state of arrays or `jax.ShapeDtypeStruct`, with shardings.

        Returns:
          The state, with `like`'s teacher, and the facts saved beside it.

        Raises:
          Refused: where the checkpoint is of another format.
        """
        kept = self._manager.restore(
            self._manager.latest_step(),
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(
                    jax.tree.map(ocp.utils.to_shape_dtype_struct, _bare(like))
                ),
                facts=ocp.args.JsonRestore(),
            ),
        )
        found = kept.facts.get("format")
        if found != FORMAT:
            raise Refused(
                f"{self._directory}: checkpoint format {found}, this version of pd_jax "
                f"reads {FORMAT}"
            )
        return kept.state.replace(teacher=like.teacher), kept.facts


def _bare(state):
    return state.replace(teacher=None)
