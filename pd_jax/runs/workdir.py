"""A run's folder: whose it is, and that no two runs have it."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax.runs import inputs
from pd_jax.runs import record as records
from pd_jax.runtime.errors import Refused
from pd_jax.storage.writers import is_remote


def path(workdir: str | os.PathLike) -> epath.Path:
    """A workdir's path, local or remote; Refused for storage that is not known here."""
    try:
        return epath.Path(workdir).expanduser()
    except (ImportError, KeyError) as error:  # for what the prefix names
        raise Refused(f"--workdir={workdir}: no such storage here: {error}") from error


def take(
    workdir: epath.Path, config: ConfigDict, held: contextlib.ExitStack
) -> tuple[dict | None, bool]:
    """Checks that a workdir is this config's, and takes it unless it is complete.

    A folder with nothing trained or measured is any config's. Where the folder says
    what its run was made from, that may lie elsewhere: see `pd_jax.runs.inputs`.

    Returns:
      Its report where it is complete, else None; and whether there is no run yet.
    """
    path = workdir / "config.json"
    if path.exists():
        before = records.config_of(workdir)
        with contextlib.suppress(Refused):  # with keys that were not there then
            before = configs.stored(before).to_dict()
        now = config.to_dict()
        there = before if inputs.read(workdir) is None else inputs.moved(before, now)
        changed = configs.differences(there, now)
        if changed and not begun(workdir):
            return None, True
        if changed:
            raise Refused(
                f"{workdir} was made by a different config:\n  "
                + "\n  ".join(changed)
                + "\nUse those values again, or another folder with --workdir=DIR."
            )
    elif workdir.exists() and (not workdir.is_dir() or _visible(workdir)):
        raise Refused(
            f"{workdir} is there, has no config.json, and so is not a folder of a run: "
            "use another one with --workdir=DIR"
        )
    else:
        return None, True
    # Of a finished run whose inputs lie elsewhere now, these are looked at once more.
    finished = records.report_of(workdir) if there == before else {}
    if not finished:
        held.enter_context(_alone(workdir))
    return finished or None, False


def make(workdir: epath.Path, held: contextlib.ExitStack) -> None:
    """Makes a run's folder, this process's own for as long as `held` is."""
    with _writable(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
    held.enter_context(_alone(workdir))


@contextlib.contextmanager
def _writable(workdir: epath.Path) -> Iterator[None]:
    """Says what an OSError while a folder is taken means."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"--workdir={workdir}: nothing can be written there ({error.strerror}); "
            "make room or give another folder"
        ) from error


@contextlib.contextmanager
def _alone(workdir: epath.Path) -> Iterator[None]:
    """Holds a folder's lock, which dies with its holder; Refused where it is held.

    An object store has no locks.
    """
    if is_remote(workdir):
        yield
        return
    with contextlib.ExitStack() as stack:
        with _writable(workdir):
            lock = stack.enter_context(open(workdir / ".lock", "w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Refused(
                f"{workdir} is in use by another process: wait for it, stop it, or use "
                "another folder with --workdir=DIR"
            ) from error
        yield


def in_use(workdir: epath.Path) -> bool | None:
    """Whether a process holds a folder's lock; None where that cannot be told."""
    if is_remote(workdir):
        return None
    try:
        with open(workdir / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def begun(workdir: epath.Path) -> bool:
    """Whether there is anything that belongs to the config it was made with."""
    saved = [path for path in workdir.glob("checkpoints/*/*") if path.name.isdigit()]
    made = (workdir.glob(f"{name}/*") for name in ("damaged", "evaluation", "pairs"))
    return bool(saved or [path for paths in made for path in paths])


def _visible(folder: epath.Path) -> list[epath.Path]:
    """Files but the hidden ones, which a write cut short may leave behind."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
