"""The command line: flags and one call.

    python -m pd_jax.main --config=configs/digits.py[:VARIANT]
        [--workdir=DIR] [--mode=run] [--config.KEY=VALUE ...]

Exit codes: 0 done, 1 a file that cannot be read or written, 2 a mistake in what was
given, 128 + N stopped by signal N.
"""

import os
import pathlib
import re
import runpy
import sys
import time

from absl import flags
from ml_collections import config_flags

from pd_jax import config, names

BEGAN = time.monotonic()
MODES = ("run",)

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with an optional variant: configs/digits.py:smoke"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME")
MODE = flags.DEFINE_string("mode", "run", f"One of: {', '.join(MODES)}")


class UsageError(Exception):
    """A mistake on the command line."""


def _parse(argv: list[str]) -> None:
    """Parses flags; UsageError says what was wrong with them."""
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    if not given:
        raise UsageError("--config=configs/NAME.py is missing")
    file, _, variant = given[-1].partition(":")
    if not pathlib.Path(file).is_file():
        raise UsageError(
            f"--config={file}: no such file; give one like configs/digits.py, from the "
            "folder that holds configs/"
        )
    # Ahead of the flags' own parsing, for one clear line instead of a traceback.
    keys = dict(config.flatten(runpy.run_path(file)["get_config"](variant)))
    for argument in argv:
        key = re.match(r"--?config\.([^=\[]*)", argument)
        if key and key[1] not in keys:
            raise UsageError(
                f"--config.{key[1]}: no such key in {file}."
                + names.suggest(key[1], keys)
            )
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UsageError(str(error)) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]}: flags are --name=value")


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    from pd_jax import train
    from pd_jax.interrupt import Interrupted

    try:
        _parse(argv)
        names.check(MODE.value, MODES, "mode")
        file, _, variant = config_flags.get_config_filename(
            flags.FLAGS["config"]
        ).partition(":")
        name = pathlib.Path(file).stem
        folder = f"{name}_{variant}" if variant else name
        workdir = WORKDIR.value or os.path.join("runs", folder)
        name = f"{name}:{variant}" if variant else name
        train.run(CONFIG.value, workdir, name, BEGAN)
    except (UsageError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command goes on", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"error: {error}; the same command goes on from there", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
