"""Checkpoints of one stage, and the chain of stages that they make.

Every stage has an Orbax `CheckpointManager` of its own under the workdir:

    checkpoints/teacher/4000/  checkpoints/student_16/800/  ...

numbered by updates done. A stage is finished when its last number is its number of
updates; the finished stage's weights, read back from disk, start and teach the next
one. A teacher's weights are therefore in no checkpoint but its own.
"""

import contextlib
import pathlib
from collections.abc import Iterator
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
        with self._writing():
            self._manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # A full disk shows as whatever the storage library made of it.
        try:
            yield
        except Exception as error:
            cause = _brief(error)
            raise OSError(
                f"{self._directory}: checkpoint not written ({cause}); the ones before "
                "are kept, and the same command goes on from there"
            ) from error

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

        Raises:
          OSError: where this one, or the one before, could not be written.
        """
        content = ocp.args.Composite(
            state=ocp.args.StandardSave(_bare(state)),
            facts=ocp.args.JsonSave({"format": FORMAT, **facts}),
        )
        with self._writing():
            self._manager.save(int(state.step), args=content)

    def restore(self, like: Any) -> tuple[Any, dict]:
        """The newest checkpoint.

        Args:
          like: a state of arrays or `jax.ShapeDtypeStruct`, with shardings.

        Returns:
          The state, with `like`'s teacher, and the facts saved beside it.

        Raises:
          Refused: where the checkpoint is damaged, or of another format.
        """
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, _bare(like))
        content = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), facts=ocp.args.JsonRestore()
        )
        try:
            kept = self._manager.restore(self.updates, args=content)
        except Exception as error:  # whatever a damaged file leads to
            cause = _brief(error)
            raise Refused(
                f"{self._directory / str(self.updates)} is damaged ({cause}): delete "
                "that folder and run again, from the one before"
            ) from error
        found = kept.facts.get("format")
        if found != FORMAT:
            raise Refused(
                f"{self._directory}: checkpoint format {found}, this version of pd_jax "
                f"reads {FORMAT}"
            )
        return kept.state.replace(teacher=like.teacher), kept.facts


def _bare(state):
    return state.replace(teacher=None)


def _brief(error: Exception) -> str:
    """The storage library's message without the specification that it appends."""
    return str(error).partition("\n")[0].partition(" [tensorstore_spec")[0][:300]
