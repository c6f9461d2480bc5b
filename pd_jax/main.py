"""The command line: flags and one call.

    python -m pd_jax.main --config=configs/digits.py[:VARIANT]
        [--workdir=DIR] [--mode=run] [--config.KEY=VALUE ...]
        [--distributed=auto]
    python -m pd_jax.main --config=configs/digits.py --mode=estimate [--chip=v5e]
        [--num_chips=8] [--utilisation=0.4] [--compile]

Mode `run` does whatever a run still lacks; `estimate` says what one would take, without
the data, and writes nothing.

Exit codes: 0 done; 1 a file that cannot be read or written, or training that diverged;
2 a mistake in what was given; 128 + N stopped by signal N.
"""

import time

BEGAN = time.monotonic()  # before the imports, which take seconds

import os
import signal
import sys


def _stop_at_once(signum, frame) -> None:
    """Ctrl-C where nothing needs saving, or for the second time."""
    # Past all clean-up, which threads still at work would turn into noise; what is on
    # disk is whole at any moment.
    print("stopped; the same command goes on", file=sys.stderr, flush=True)
    os._exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop_at_once)

import contextlib
import gc
import logging
import pathlib
import re
import runpy

from absl import flags
from ml_collections import config_flags

from pd_jax import config, names
from pd_jax.names import Refused

MODES = ("run", "estimate")

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with an optional variant: configs/digits.py:smoke"
)
DISTRIBUTED = flags.DEFINE_string(
    "distributed", "auto", "How processes join: auto, on or off"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME")
MODE = flags.DEFINE_string("mode", "run", f"One of: {', '.join(MODES)}")
# What an estimate is for; a run uses the machine that it is on.
CHIP = flags.DEFINE_string("chip", "v5e", "Accelerator to estimate for")
NUM_CHIPS = flags.DEFINE_integer("num_chips", 8, "How many share the batch")
UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of the chips' peak reached")
COMPILE = flags.DEFINE_bool("compile", False, "Ask the compiler for the step's memory")


def _load(given: str) -> dict:
    """A config file's values, ahead of the flag; Refused says what is off."""
    file, _, variant = given.partition(":")
    if not pathlib.Path(file).is_file():
        raise Refused(
            f"--config={given}: no such file; give one like configs/digits.py, from "
            "the folder that holds configs/"
        )
    try:
        get_config = runpy.run_path(file).get("get_config")
    except SyntaxError as error:
        raise Refused(f"{file} is not Python: {error}") from error
    if get_config is None:
        raise Refused(f"{file}: defines no get_config(variant), so is no config file")
    try:
        values = get_config(variant) if variant else get_config()
    except (AttributeError, KeyError) as error:  # a key that a config does not have
        text, _, others = str(error.args[0]).partition(" Other fields")
        hint = re.search(r"Did you mean[^?]*\?", others)
        raise Refused(f"{file}: {text} {hint[0] if hint else ''}") from error
    return dict(config.flatten(values))


def _parse(argv: list[str]) -> None:
    """Parses flags; Refused says what is wrong with them."""
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        sys.exit(0)
    given = None
    for argument, after in zip(argv, [*argv[1:], None]):
        if re.fullmatch("--?config", argument):
            given = after
        elif re.match("--?config=", argument):
            given = argument.split("=", 1)[1]
    if given is None:
        raise Refused("--config=configs/NAME.py is missing")
    keys = _load(given)
    # Ahead of the flags' own parsing, for one clear line instead of a traceback.
    for argument in argv:
        key = re.match(r"--?config\.([^=\[]*)", argument)
        if key and key[1] not in keys:
            raise Refused(
                f"--config.{key[1]}: no such key in {given}."
                + names.suggest(key[1], keys)
            )
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, IndexError, TypeError) as error:
        raise Refused(f"{error}; flags are --name=value") from error
    if len(rest) > 1:
        raise Refused(f"unexpected argument {rest[1]}: flags are --name=value")


def _estimate(name: str) -> None:
    """Mode `estimate`."""
    import jax

    from pd_jax import estimate

    if not COMPILE.value:  # tracing needs no accelerator, which a run may hold
        jax.config.update("jax_platforms", "cpu")
    chips = CHIP.value, NUM_CHIPS.value, UTILISATION.value
    gc.disable()  # tracing makes objects by the million: a fifth of its time otherwise
    try:
        estimate.run(CONFIG.value, name, *chips, COMPILE.value)
    finally:
        gc.enable()


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    from pd_jax import compilation, processes, train
    from pd_jax.interrupt import Interrupted
    from pd_jax.loop import Diverged

    # The storage library's tasks report there, at length, what is raised anyway.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        try:
            _parse(argv)
            names.check(MODE.value, MODES, "mode")
        except ValueError as error:
            raise Refused(str(error)) from error
        file, _, variant = config_flags.get_config_filename(
            flags.FLAGS["config"]
        ).partition(":")
        name = pathlib.Path(file).stem
        folder = f"{name}_{variant}" if variant else name
        if WORKDIR.value == "":
            raise Refused("--workdir= is empty: give a folder, or leave the flag out")
        workdir = WORKDIR.value or os.path.join("runs", folder)
        name = f"{name}:{variant}" if variant else name
        if MODE.value == "estimate":
            _estimate(name)
            return 0
        try:
            processes.join(DISTRIBUTED.value)
        except ValueError as error:
            raise Refused(str(error)) from error
        compilation.keep()
        with open(os.devnull, "w") as nowhere:
            # What all processes would say alike, one says.
            out = sys.stdout if processes.is_first() else nowhere
            with contextlib.redirect_stdout(out):
                train.run(CONFIG.value, workdir, name, BEGAN)
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Diverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"stopped by {stop}; the same command goes on", file=sys.stderr)
        processes.leave()
        return stop.exit_code
    return 0


if __name__ == "__main__":
    exit_code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code:
        os._exit(exit_code)  # all is said: see _stop_at_once
