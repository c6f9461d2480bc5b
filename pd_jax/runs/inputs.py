"""What a run is made from besides its config: data and files, by their content.

A run's folder keeps it as `inputs.json`; where it is there, the paths in the config may
change. Folders of earlier versions have none: in these a path stands for what it names.
"""

import contextlib
import copy
import hashlib
import json

from etils import epath

from pd_jax import config as configs
from pd_jax.config.setup import Setup
from pd_jax.runtime import processes
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import write_whole
from pd_jax.students import bundle

NAME = "inputs.json"
DATA = "data"
# Config keys that say where content lies, which is no part of its identity: of files,
# and of every data set.
FILES = "eval.inception", "eval.statistics", "perceptual.weights"
DATA_PLACES = "path", "data_dir", "cache"


def moved(old: dict, new: dict) -> dict:
    """A config's old values with the places of the new ones, where both name some."""
    old = copy.deepcopy(old)
    sets = [f"{name}.{key}" for name in configs.data_sets(new) for key in DATA_PLACES]
    for key in (*sets, "teacher.released", *FILES):
        section, _, name = key.partition(".")
        pair = old.get(section, {}).get(name), new.get(section, {}).get(name)
        # The weights of a caller's own model have their digest in a path's place.
        if all(pair) and not any(str(p).startswith("sha256:") for p in pair):
            old[section][name] = pair[1]
    return old


def read(workdir: epath.Path) -> dict | None:
    """What a folder's run was made from; None where that is not known."""
    with contextlib.suppress(OSError, ValueError):
        before = files.read_json(workdir / NAME)
        if isinstance(before, dict) and DATA in before:
            return before
    return None


def check(workdir: epath.Path, setup: Setup) -> None:
    """Refuses to go on in a folder with other data or files than it was made from."""
    before = processes.on_first_process(lambda: read(workdir))
    if before is None:
        return write(workdir, setup)
    now = of(setup)
    off = [
        f"{key}: {before.get(key, '(none)')} -> {now.get(key, '(none)')}"
        for key in sorted((before.keys() | now.keys()) - setup.datasets.keys())
        if before.get(key) != now.get(key)
    ]
    for name, dataset in setup.datasets.items():
        try:
            dataset.go_on(before[name])
        except Refused as error:
            off.append(f"{name}: {error}")
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"{workdir / NAME} is damaged: remove it, and the data is taken for "
                "the run's own"
            ) from error
    if off:
        raise Refused(
            f"{workdir} was made from other content:\n  " + "\n  ".join(off) + "\nUse "
            "what it was made from, wherever that lies now, or another folder with "
            "--workdir=DIR."
        )


def write(workdir: epath.Path, setup: Setup) -> None:
    """Keeps what a run is made from."""
    text = json.dumps(of(setup)) + "\n"
    processes.on_first_process(lambda: write_whole(workdir / NAME, text))


def of(setup: Setup) -> dict:
    """What a run is made from, of JSON: identities of data, and digests by key."""
    config = setup.config
    found = {name: dataset.identity() for name, dataset in setup.datasets.items()}
    if setup.released is not None and not config.teacher.released.startswith("sha256:"):
        found["teacher.released"] = bundle.digest(bundle.flatten(setup.released))
    for section, key in map(lambda place: place.split("."), FILES):
        if config[section][key]:
            content = epath.Path(config[section][key]).read_bytes()
            found[f"{section}.{key}"] = hashlib.sha256(content).hexdigest()
    return found
