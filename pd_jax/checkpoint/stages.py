"""Checkpoints of one stage, and the chain of stages that they make.

Every stage has an Orbax `CheckpointManager` of its own under the workdir:

    checkpoints/teacher/4000/  checkpoints/student_16/800/  ...

numbered by updates done. A stage is finished when its last number is its number of
updates; what the finished stage hands over, read back from disk, starts and teaches the
next one. Frozen weights are therefore in no checkpoint but their own. One checkpoint is

    handed_over/   the arrays of the state that the stage hands over
    state/         the other arrays that going on takes
    facts/         the rest, as JSON
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent import futures

import jax
import orbax.checkpoint as ocp
from etils import epath

from pd_jax.checkpoint import checksum
from pd_jax.runtime import processes
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import is_remote
from pd_jax.training.method import Method
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState

SKIPPED = ocp.PLACEHOLDER  # in place of a leaf that is not to be read
FORMER_STAGE = ("index", "num_steps", "updates", "learning_rate")
FORMAT = 2  # of the saved arrays and facts; `_former` is the tree of format 1


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: processes agree on when to stop by a count of their own."""
        return False


class Damaged(Refused):
    """A checkpoint whose files are not those that were written."""


class StageCheckpoints:
    """The checkpoints of one stage; a context manager that ends with all written.

    Attributes:
      stage: the stage.
    """

    def __init__(self, workdir: epath.Path, stage: Stage, writes: bool = True):
        """Of a stage below `workdir`; not `writes`: nothing there is touched."""
        self.stage = stage
        remote = is_remote(workdir)
        self._workdir = workdir if remote else epath.Path(workdir).absolute()
        self._directory = self._workdir / "checkpoints" / stage.name
        self._writes = writes
        self._background = futures.ThreadPoolExecutor(1)
        self._written: futures.Future | None = None  # what was saved last
        # What a kill within a write leaves. The manager would remove it behind our
        # back, and two of them, one opened after the other, get into each other.
        self._remove_unfinished()
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=writes,
                cleanup_tmp_directories=remote and writes,
                # Made in the background, a folder that cannot be made leaves all that
                # would write into it waiting for minutes.
                async_options=ocp.options.AsyncOptions(
                    create_directories_asynchronously=remote
                ),
            ),
            item_names=("handed_over", "state", "facts"),
        )

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *error) -> None:
        try:
            self._wait()
        finally:
            self._close()

    def _close(self) -> None:
        # Each of the manager's threads that failed ends its closing, once.
        for _ in range(8):
            with contextlib.suppress(Exception):
                self._manager.close()
                break
        self._background.shutdown()
        self._remove_unfinished()  # what failed takes room on a disk that has none

    def _remove_unfinished(self) -> None:
        """Removes what a write that was not ended has left."""
        if not self._writes or is_remote(self._directory) or not processes.is_first():
            return
        for _ in range(20):  # parts of a write that failed may still be going on
            unfinished = list(self._directory.glob("*.orbax-checkpoint-tmp*"))
            if not unfinished:
                break
            for folder in unfinished:
                with contextlib.suppress(OSError):
                    folder.rmtree()
            time.sleep(0.1)

    @property
    def newest(self) -> epath.Path:
        """Folder of the newest checkpoint."""
        return self._directory / str(self.updates)

    def _wait(self) -> None:
        """Waits until what was saved is written and sealed; OSError where it is not."""
        written, self._written = self._written, None
        if written is not None:
            with self._writing():
                written.result()

    def check(self) -> None:
        """OSError where what was saved could not be written, as far as is known."""
        if self._written is not None and self._written.done():
            self._wait()

    def _finish(self, update: int) -> None:
        """In the background: sees what was saved written, and seals it."""
        self._manager.wait_until_finished()
        self._seal(self._directory / str(update))

    def _seal(self, place: epath.Path) -> None:
        # Object stores have checksums of their own.
        if not is_remote(place) and processes.is_first():
            with contextlib.suppress(OSError):  # a disk that is full says so elsewhere
                checksum.make(place)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # A full disk shows as whatever the storage library made of it.
        try:
            yield
        except Exception as error:
            raise self._not_written(_cause(error)) from error

    def _not_written(self, cause: str) -> OSError:
        return OSError(
            f"{self._directory}: checkpoint not written ({cause}); the ones before "
            "are kept, and the same command goes on from there"
        )

    @property
    def updates(self) -> int:
        """Updates done in the newest checkpoint, 0 where there is none."""
        return self._manager.latest_step() or 0

    @property
    def end(self) -> int:
        """Updates of the whole stage: as planned, or fewer where its facts say so."""
        planned = self.stage.updates
        if not 0 < self.updates < planned:
            return planned
        try:
            return self.facts().get("end", planned)
        except Damaged:
            return planned

    @property
    def finished(self) -> bool:
        """Whether the stage's last update is saved."""
        return self.updates >= self.end

    def save(self, state: TrainState, method: Method, facts: dict) -> None:
        """Saves a state, all but its frozen weights, in the background.

        Args:
          state: the state; may be donated as soon as this returns.
          method: whose it is.
          facts: what else to keep of the stage so far, as JSON.

        Raises:
          OSError: where this one, or the one before, could not be written.
        """
        items = _items(state, method)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        self._wait()
        processes.on_first_process(lambda: self._check_place(size))
        args = {item: ocp.args.PyTreeSave(arrays) for item, arrays in items.items()}
        args["facts"] = ocp.args.JsonSave({"format": FORMAT, **facts})
        update = int(state.step)
        with self._writing():
            self._manager.save(update, args=ocp.args.Composite(**args))
        self._written = self._background.submit(self._finish, update)

    def _check_place(self, size: int) -> None:
        """OSError where there is no folder, or no room for so many bytes."""
        if is_remote(self._directory):
            return
        if not self._directory.exists():
            # Which the storage library would make anew, without the rest of the run.
            raise OSError(f"{self._directory}: gone; put it back, or begin again")
        free = shutil.disk_usage(self._directory).free
        if free < size:
            mb = f"it takes {size / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free"
            raise self._not_written(f"no room: {mb}")

    def restore(self, like: TrainState, method: Method) -> tuple[TrainState, dict]:
        """The newest checkpoint.

        Args:
          like: the state as `jax.ShapeDtypeStruct`, with shardings.
          method: whose it is.

        Returns:
          The state, without frozen weights, and the facts saved beside it.

        Raises:
          Damaged: where its files are not what was written.
          Refused: where it is of another format.
        """
        like = like.replace(frozen={})
        facts = self.facts()
        leaves = jax.tree.leaves(like)
        return self._read(facts, like, _items(like, method), leaves), facts

    def handed_over(self, like: TrainState, method: Method) -> dict:
        """What a finished stage hands over, and nothing else of its state.

        Args:
          like, method: as for `restore`.

        Raises:
          Damaged, Refused: as for `restore`.
        """
        like = like.replace(frozen={})
        items, leaves = _items(like, method), jax.tree.leaves(method.result(like))
        items.pop("state")
        return method.result(self._read(self.facts(), like, items, leaves))

    def _read(
        self, facts: dict, like: TrainState, items: dict[str, dict], wanted: list
    ) -> TrainState:
        """The state with those of its leaves read that are wanted, from these items."""
        self._refuse(self.damage())
        arrays, wrong = {}, None
        wanted = {id(leaf) for leaf in wanted}
        if facts["format"] == 1:
            items = {"state": _former(like)}
        try:
            skipping = {
                item: jax.tree.map(lambda a: a if id(a) in wanted else SKIPPED, tree)
                for item, tree in items.items()
            }
            args = {
                item: ocp.args.PyTreeRestore(tree, jax.tree.map(_as_asked, tree))
                for item, tree in skipping.items()
            }
            read = self._manager.restore(self.updates, args=ocp.args.Composite(**args))
            for item, tree in items.items():
                both = zip(jax.tree.leaves(tree), jax.tree.leaves(read[item]))
                arrays |= {id(leaf): array for leaf, array in both}
        except Exception as error:  # whatever a damaged file leads to
            wrong = files.brief(error)
        self._refuse(processes.tell(wrong))
        if self._writes and not checksum.made(self.newest):
            self._seal(self.newest)  # its writer was killed before it came to that
        return jax.tree.map(lambda leaf: arrays.get(id(leaf), leaf), like)

    def damage(self) -> str | None:
        """What is wrong with the newest checkpoint's files, where that is known."""
        # Every process reads all of them, each by its own way to the storage.
        return processes.tell(checksum.damage(self.newest))

    def set_aside(self) -> epath.Path:
        """Moves the newest checkpoint out of the way; returns where it is now."""
        place = self._workdir / "damaged" / f"{self.stage.name}_{self.updates}"

        def move():
            place.parent.mkdir(parents=True, exist_ok=True)
            taken = 0
            while (to := place.with_name(f"{place.name}_{taken}")).exists():
                taken += 1
            self.newest.rename(to)
            return str(to)

        moved = epath.Path(processes.on_first_process(move))
        self._manager.reload()
        return moved

    def facts(self) -> dict:
        """What the newest checkpoint says of itself; as for `restore`."""

        def read():
            try:
                return files.read_json(self.newest / "facts" / "metadata"), None
            except (ValueError, OSError) as error:
                return {}, files.brief(error)

        facts, wrong = processes.on_first_process(read)
        self._refuse(wrong)
        if facts.get("format") not in (1, FORMAT):
            raise Refused(
                f"{self.newest}: checkpoint format {facts.get('format')}, and this "
                f"version of pd_jax reads 1 and {FORMAT}: go on with the version that "
                "wrote it, or use another folder with --workdir=DIR"
            )
        return facts

    def _refuse(self, wrong: str | None) -> None:
        if wrong:
            raise Damaged(f"{self.newest} is damaged ({wrong})")


def _cause(error: Exception) -> str:
    """What the system said, where the storage library hands that on among more."""
    number = re.search(r"os_error_code=\W*(\d+)", str(error))
    return os.strerror(int(number[1])) if number else files.brief(error)


def _items(state: TrainState, method: Method) -> dict[str, dict]:
    """The state's arrays by item and name."""

    def name(path, leaf=None):
        return jax.tree_util.keystr(path, simple=True, separator="/")

    state = state.replace(frozen={})
    names = jax.tree_util.tree_map_with_path(name, state)
    handed_over = set(jax.tree.leaves(method.result(names)))
    items = {"handed_over": {}, "state": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        item = "handed_over" if name(path) in handed_over else "state"
        items[item][name(path)] = leaf
    return items


def _former(state: TrainState) -> dict:
    """The state as format 1 has it: one network, and one average of it."""
    return {
        "step": state.step,
        "stage": {key: state.stage[key] for key in FORMER_STAGE},
        "params": state.model.params,
        "ema": state.model.averages.get("sampling"),
        "opt_state": state.model.opt_state,
        "teacher": None,
    }


def _as_asked(leaf) -> ocp.RestoreArgs:
    if leaf is SKIPPED:
        return ocp.RestoreArgs()
    return ocp.ArrayRestoreArgs(
        sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )
