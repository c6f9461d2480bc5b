"""The command line: flags and one call.

    pd-jax --config=CONFIG[:VARIANT] [--workdir=DIR] [--mode=run]
        [--config.KEY=VALUE ...] [--distributed=auto] [--quiet | --verbose]
    pd-jax --config=CONFIG --mode=estimate [--chip=v5e] [--num_chips=8]
        [--utilisation=0.4] [--compile]
    pd-jax --mode=status --workdir=DIR
    pd-jax --mode=export --workdir=DIR [--num_steps=4]
    pd-jax --mode=sample --from=BUNDLE_OR_WORKDIR --num=64
        --out=NAME.png|NAME.npz|FOLDER [--label=3] [--seed=0] [--num_steps=4]
        [--teacher] [--sampler=ddim] [--program]
    pd-jax --mode=compare FOLDER FOLDER ... [--out=compare.html]
    pd-jax --version

CONFIG is a file, or the name of a config that comes with pd_jax, such as digits. Mode
`run` does whatever a run still lacks; `estimate` says what one would take, without the
data, and writes nothing; `status` says where a run is, and only reads; `export` writes
each finished student as one file, below DIR/students; `sample` draws samples of a
student, with --program by the code in its bundle, whatever network that is of, or with
--teacher of the run's teacher, in any number of steps; `compare` sets runs side by side
on a page, finished or not.

--quiet: nothing but errors, warnings and the last table; --verbose: also what is
compiled and saved, each row's figures, devices and versions.
`python -m pd_jax.main` is the same command.

Exit codes: 0 done; 1 a file that cannot be read or written, memory that is not enough,
training that diverged, or samples that are not finite; 2 a mistake in what was given;
128 + N stopped by signal N.
"""

import sys

if __name__ == "__main__":
    import runpy

    runpy.run_module("pd_jax", run_name="__main__")  # the same command
    sys.exit()

import time

BEGAN = time.monotonic()  # before the imports, which take seconds

import contextlib
import logging
import os

from absl import flags

# The others take seconds, for which neither --help nor a slip of the pen should wait.
from pd_jax.config import command
from pd_jax.runtime import console, registry
from pd_jax.runtime.errors import NotFinite, Refused

DISTRIBUTED = flags.DEFINE_string(
    "distributed", "auto", "How processes join: auto, on or off"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME")
MODE = flags.DEFINE_string("mode", "run", "What to do: see the top of this help")
QUIET = flags.DEFINE_bool("quiet", False, "Errors, warnings and the last table only")
VERBOSE = flags.DEFINE_bool("verbose", False, "Details too")
# What an estimate is for; a run uses the machine that it is on.
CHIP = flags.DEFINE_string("chip", "v5e", "Accelerator to estimate for")
NUM_CHIPS = flags.DEFINE_integer("num_chips", 8, "How many share the batch")
UTILISATION = flags.DEFINE_float("utilisation", 0.4, "Share of the chips' peak reached")
COMPILE = flags.DEFINE_bool("compile", False, "Ask the compiler for the step's memory")
# Students.
FROM = flags.DEFINE_string("from", None, "A bundle, or, as --workdir, a run's folder")
OUT = flags.DEFINE_string("out", None, "Samples: NAME.png, .npz or a folder; or a page")
NUM = flags.DEFINE_integer("num", 64, "How many samples")
LABEL = flags.DEFINE_string("label", None, "Class, by name or number; default all")
SEED = flags.DEFINE_integer("seed", 0, "Of the samples' noise")
NUM_STEPS = flags.DEFINE_integer("num_steps", None, "The student of so many steps")
TEACHER = flags.DEFINE_bool("teacher", False, "The teacher, in --num_steps steps")
PROGRAM = flags.DEFINE_bool("program", False, "Run the bundle's own program: code")
SAMPLER = flags.DEFINE_string("sampler", None, "In place of the student's own")


def _workdir() -> str:
    """The folder that a run is in, or will be."""
    if WORKDIR.value == "":
        raise Refused("--workdir= is empty: give a folder, or leave the flag out")
    return WORKDIR.value or os.path.join("runs", command.name().replace(":", "_"))


def _from() -> str | None:
    """What is read from: --from and --workdir mean the same."""
    given = {flag.value for flag in (FROM, WORKDIR) if flag.value is not None}
    if len({os.path.normpath(name) for name in given}) > 1:
        raise Refused(
            f"--from={FROM.value} and --workdir={WORKDIR.value} mean the same: give one"
        )
    if "" in given:
        raise Refused("--from= is empty: give a folder or a file")
    return next(iter(given), None)


def _folder() -> str:
    """A run's folder that is read."""
    if _from() is None and command.CONFIG.value is None:
        raise Refused("the run's folder is missing: --workdir=DIR")
    return _from() or _workdir()


def _run() -> None:
    """Mode `run`: whatever a run still lacks."""
    from pd_jax import api
    from pd_jax.runtime import compilation, processes

    if FROM.value is not None:
        raise Refused(f"--from={FROM.value}: a run's own folder is --workdir=DIR")
    config, workdir = command.config(), _workdir()
    processes.join(DISTRIBUTED.value)
    processes.check_devices()
    compilation.keep()
    if console.level >= console.VERBOSE:
        compilation.tell()
    with open(os.devnull, "w") as nowhere:
        # What all processes would say alike, one says.
        out = sys.stdout if processes.is_first() else nowhere
        with contextlib.redirect_stdout(out):
            api.run(config, workdir, command.name(), BEGAN)


def _estimate() -> None:
    """Mode `estimate`: what a run would take."""
    import jax

    from pd_jax.costs import estimate
    from pd_jax.runtime import compilation

    config = command.config()
    if not COMPILE.value:  # tracing needs no accelerator, which a run may hold
        jax.config.update("jax_platforms", "cpu")
    chips = CHIP.value, NUM_CHIPS.value, UTILISATION.value
    with compilation.without_gc():
        estimate.run(config, command.name(), *chips, COMPILE.value)


def _export() -> None:
    """Mode `export`: bundles of a run's students."""
    from pd_jax.reports import samples

    samples.export(_folder(), NUM_STEPS.value)


def _sample() -> None:
    """Mode `sample`: samples of one student."""
    from pd_jax.reports import samples
    from pd_jax.runtime import compilation

    for name, value in (("from", _from()), ("out", OUT.value)):
        if value is None:
            raise Refused(f"--{name} is missing: --from=BUNDLE_OR_WORKDIR --out=OUT")
    compilation.keep()
    samples.sample(
        _from(),
        OUT.value,
        NUM.value,
        label=LABEL.value,
        seed=SEED.value,
        num_steps=NUM_STEPS.value,
        sampler=SAMPLER.value,
        program=PROGRAM.value,
        teacher=TEACHER.value,
    )


def _status() -> None:
    """Mode `status`: where a run is."""
    from pd_jax.reports import status

    status.tell(status.read(_folder()))


def _compare(*folders: str) -> None:
    """Mode `compare`: runs side by side."""
    from pd_jax.reports import compare

    compare.run(folders, OUT.value or "compare.html")


MODES = {
    "run": _run,
    "estimate": _estimate,
    "status": _status,
    "export": _export,
    "sample": _sample,
    "compare": _compare,
}


def _set_level() -> None:
    """How much is printed, by the flags."""
    if QUIET.value and VERBOSE.value:
        raise Refused("--quiet and --verbose: give one of them")
    console.level = console.NORMAL
    if QUIET.value or VERBOSE.value:
        console.level = console.QUIET if QUIET.value else console.VERBOSE
    # Libraries' own notes, of slow storage for one.
    least = logging.WARNING if VERBOSE.value else logging.ERROR
    logging.getLogger("absl").setLevel(least)


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    # The storage library's tasks report there, at length, what is raised anyway.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        rest = command.parse(argv, __doc__)
        registry.check(MODE.value, MODES, "mode")
        if MODE.value != "compare":  # whose folders they are
            command.no_more(rest)
        _set_level()
        MODES[MODE.value](*rest)
    except Refused as error:
        console.error(str(error))
        return 2
    except (MemoryError, NotFinite, OSError) as error:
        console.error(str(error))
        return 1
    except Exception as error:
        return _ended(error)
    return 0


def _ended(error: Exception) -> int:
    """Says why training ended; returns the exit code. Raises what is unforeseen."""
    from pd_jax.runtime import processes
    from pd_jax.runtime.interrupt import Interrupted
    from pd_jax.training.loop import Diverged

    if isinstance(error, Diverged):
        console.error(str(error))
        return 1
    if isinstance(error, Interrupted):
        print(f"stopped by {error}; the same command goes on", file=sys.stderr)
        processes.leave()
        return error.exit_code
    raise error
