"""Checkpoints of one stage, and the chain of stages that they make.

Every stage has an Orbax `CheckpointManager` of its own under the workdir:

    checkpoints/teacher/4000/  checkpoints/student_16/800/  ...

numbered by updates done. A stage is finished when its last number is its number of
updates; the finished stage's weights, read back from disk, start and teach the next
one. A teacher's weights are therefore in no checkpoint but its own.

Weights may also come from one of the paper's released files: `load_released`.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from pd_jax import files, processes, seal
from pd_jax.ladder import Stage
from pd_jax.names import Refused
from pd_jax.writers import is_remote

SKIPPED = ocp.PLACEHOLDER  # in place of a leaf that is not to be read
FORMAT = 1  # of the saved tree and its metadata


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
        self._unsealed: int | None = None  # what was saved last
        self._sealing: threading.Thread | None = None
        if writes and not remote and processes.is_first():
            # What a kill within a write leaves. The manager would remove it behind our
            # back, and two of them, one opened after the other, get into each other.
            for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
                unfinished.rmtree()
        self._manager = _Manager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=writes,
                cleanup_tmp_directories=remote and writes,
            ),
            item_names=("state", "facts"),
        )

    def __enter__(self) -> "StageCheckpoints":
        return self

    def __exit__(self, *error) -> None:
        with self._writing():
            self._manager.close()
            self._seal()
            self._wait()

    @property
    def newest(self) -> epath.Path:
        """Folder of the newest checkpoint."""
        return self._directory / str(self.updates)

    def _seal(self) -> None:
        """Begins to seal what was saved last, now that it is written."""
        self._wait()
        update, self._unsealed = self._unsealed, None
        # Object stores have checksums of their own.
        if update is None or is_remote(self._directory) or not processes.is_first():
            return
        place = self._directory / str(update)

        def run():
            with contextlib.suppress(OSError):  # a disk that is full says so elsewhere
                seal.make(place)

        self._sealing = threading.Thread(target=run)
        self._sealing.start()

    def _wait(self) -> None:
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # A full disk shows as whatever the storage library made of it.
        try:
            yield
        except Exception as error:
            cause = files.brief(error)
            raise OSError(
                f"{self._directory}: checkpoint not written ({cause}); the ones before "
                "are kept, and the same command goes on from there"
            ) from error

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

    def save(self, state: Any, facts: dict) -> None:
        """Saves a state, all but its teacher, in the background.

        Args:
          state: a method's state; may be donated as soon as this returns.
          facts: what else to keep of the stage so far, as JSON.

        Raises:
          OSError: where this one, or the one before, could not be written.
        """
        if not is_remote(self._directory) and not self._directory.exists():
            # Which the storage library would make anew, without the rest of the run.
            raise OSError(f"{self._directory}: gone; put it back, or begin again")
        content = ocp.args.Composite(
            state=ocp.args.PyTreeSave(_bare(state)),
            facts=ocp.args.JsonSave({"format": FORMAT, **facts}),
        )
        with self._writing():
            self._manager.wait_until_finished()
            self._seal()
            self._manager.save(int(state.step), args=content)
            self._unsealed = int(state.step)

    def restore(self, like: Any) -> tuple[Any, dict]:
        """The newest checkpoint.

        Args:
          like: a state of `jax.ShapeDtypeStruct`, with shardings, or `SKIPPED`.

        Returns:
          The state, without a teacher, and the facts saved beside it.

        Raises:
          Damaged: where its files are not what was written.
          Refused: where it is of another format.
        """
        self._checked(self._read(facts=ocp.args.JsonRestore()).facts)
        found = self.damage()
        if found:
            raise Damaged(f"{self.newest} is damaged ({found})")
        like = _bare(like)
        as_asked = ocp.args.PyTreeRestore(like, jax.tree.map(_as_asked, like))
        kept = self._read(state=as_asked, facts=ocp.args.JsonRestore())
        return kept.state, kept.facts

    def weights(self, method: Any, like: Any) -> dict:
        """What a finished stage hands over, and nothing else of its state.

        Args:
          method: the objective that it was trained with.
          like: as for `restore`.

        Raises:
          Damaged, Refused: as for `restore`.
        """
        wanted = {id(a) for a in jax.tree.leaves(method.result(like))}
        only = jax.tree.map(lambda a: a if id(a) in wanted else SKIPPED, like)
        return method.result(self.restore(only)[0])

    def damage(self) -> str | None:
        """What is wrong with the newest checkpoint's files, where that is known."""
        return processes.agree(lambda: seal.damage(self.newest))

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

        moved = epath.Path(processes.agree(move))
        self._manager.reload()
        return moved

    def facts(self) -> dict:
        """What the newest checkpoint says of itself; as for `restore`."""
        return self._checked(self._read(facts=ocp.args.JsonRestore()).facts)

    def _read(self, **items) -> Any:
        try:
            return self._manager.restore(self.updates, args=ocp.args.Composite(**items))
        except Exception as error:  # whatever a damaged file leads to
            cause = files.brief(error)
            raise Damaged(f"{self.newest} is damaged ({cause})") from error

    def _checked(self, facts: dict) -> dict:
        found = facts.get("format")
        if found != FORMAT:
            raise Refused(
                f"{self.newest}: checkpoint format {found}, and this version of pd_jax "
                f"reads {FORMAT}: go on with the version that wrote it, or use another "
                "folder with --workdir=DIR"
            )
        return facts


def _bare(state):
    return state.replace(teacher=None)


def _as_asked(leaf) -> ocp.RestoreArgs:
    if leaf is SKIPPED:
        return ocp.RestoreArgs()
    return ocp.ArrayRestoreArgs(
        sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )


def load_released(path: str, like: dict) -> tuple[dict, int | None]:
    """Weights from a released file of the paper, or any file of that form.

    Such a file is Flax msgpack: a dictionary with the weights under `ema_params`, and
    for a student its step count under `num_sample_steps`. Reading it runs no code.

    Args:
      path: a local path, or one that TensorStore opens, such as gs://BUCKET/FILE.
      like: nested dict of arrays or `jax.ShapeDtypeStruct`, as the network has them.

    Returns:
      Weights as NumPy arrays in the shapes and types of `like`, where unit axes may
      differ; and the step count, None for a base model.

    Raises:
      ValueError: for a file that is missing, damaged, or of another network, naming
        every leaf that is missing, extra or of another shape.
    """
    try:
        content = files.parse_msgpack(_bytes(path))
        found = flax.traverse_util.flatten_dict(content["ema_params"], sep="/")
        num_steps = int(content.get("num_sample_steps") or 0)
    except Exception as error:  # whatever a damaged file leads to
        raise ValueError(
            f"{path}: not a released checkpoint, which is Flax msgpack with ema_params "
            f"({files.brief(error)})"
        ) from error
    wanted = flax.traverse_util.flatten_dict(like, sep="/")
    problems = [
        f"missing {name} {tuple(wanted[name].shape)}"
        for name in wanted.keys() - found.keys()
    ]
    problems += [f"extra {name}" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        here, there = wanted[name].shape, getattr(found[name], "shape", None)
        if there is None or _squeezed(here) != _squeezed(there):
            problems.append(f"{name} is {there}, not {tuple(here)}")
        elif not jnp.issubdtype(found[name].dtype, jnp.floating):
            problems.append(f"{name} is of {found[name].dtype}, not floating point")
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(
            f"{path} holds another network: {'; '.join(sorted(problems)[:8])}{more}"
        )
    arrays = {
        name: np.asarray(found[name]).astype(leaf.dtype).reshape(leaf.shape)
        for name, leaf in wanted.items()
    }
    return flax.traverse_util.unflatten_dict(arrays, sep="/"), num_steps or None


def _bytes(path: str) -> bytes:
    """A whole file, local or remote."""
    if not is_remote(path):
        return files.existing(path).read_bytes()
    folder, _, name = path.rpartition("/")
    read = tensorstore.KvStore.open(folder + "/").result().read(name).result()
    if read.state != "value":
        raise FileNotFoundError(f"no such file: {path}")
    return read.value


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n for n in shape if n != 1)
