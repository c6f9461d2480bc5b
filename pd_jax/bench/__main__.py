"""What a config's training takes here, measured: the command line.

    python -m pd_jax.bench --config=CONFIG[:VARIANT] [--config.KEY=VALUE ...]
        [--batch=128] [--find_batch] [--training=ladder]
        [--compare=KEY=V1,V2] [--compare=precision,attention,remat,substeps,batch]
        [--measure=start,step,sampler,loop,data,compiles]
        [--repeats=5] [--seconds=5] [--json=FILE]

CONFIG is a file, or the name of a config that comes with pd_jax, such as digits.
The step, sampler and loop are those of a run, with fresh weights; images are random
where the data is not here. Figures are medians over the rounds, with half of their
range. Nothing is written but --json; docs/performance.md says how each is measured.

--compare: a column for each value of a key, all else as given; several keys are
separated by ";" or are flags of their own. The five short names need no values.
--batch: examples an update, for the teacher and the ladder.
--find_batch: the largest batch that a device has memory for, by doubling, from --batch.

Exit codes: 0 done; 1 nothing could be measured, or a file not written; 2 a mistake in
what was given.
"""

import ast
import json
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

from absl import flags
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax import data
from pd_jax.config import command
from pd_jax.config.command import CONFIG
from pd_jax.runtime import console, registry
from pd_jax.runtime.errors import Refused

MEASURES = ("start", "step", "sampler", "loop", "data", "compiles")
STARTS = 10  # no further start after this many times --seconds

BATCH = flags.DEFINE_integer("batch", None, "Examples an update")
FIND_BATCH = flags.DEFINE_bool("find_batch", False, "Largest batch that fits")
TRAINING = flags.DEFINE_string("training", "ladder", "One of: teacher, ladder")
COMPARE = flags.DEFINE_multi_string("compare", [], "KEY=V1,V2, or a short name")
MEASURE = flags.DEFINE_list("measure", list(MEASURES), ", ".join(MEASURES))
REPEATS = flags.DEFINE_integer("repeats", 5, "Rounds")
SECONDS = flags.DEFINE_float("seconds", 5.0, "For each measurement, over all rounds")
JSON = flags.DEFINE_string("json", None, "File for everything that was measured")


class Short(NamedTuple):
    """A key with a short name, and values that are worth comparing."""

    key: str
    values: Callable[[ConfigDict], tuple]


def _heights(config: ConfigDict) -> tuple[int, ...]:
    """Heights of images in a U-Net's levels."""
    options = config.data.to_dict()
    height = data.describe(options.pop("name"), **options).shape[0]
    return tuple(height >> i for i in range(len(config.model.get("ch_mult", ()))))


def _shorts(training: str) -> dict[str, Short]:
    batch = f"{training}.batch"

    def remat(config):
        if isinstance(config.model.get("remat"), bool):
            return (False, True)
        heights = _heights(config)
        return ((), heights[:1], heights)

    def sizes(config):
        size = config[training].batch
        return (max(size // 2, 1), size, 2 * size)

    return {
        "precision": Short("precision", lambda c: ("float32", "bfloat16")),
        "attention": Short("model.attention", lambda c: ("xla", "cudnn")),
        "remat": Short("model.remat", remat),
        "substeps": Short("run.substeps", lambda c: (1, 10)),
        "batch": Short(batch, sizes),
    }


class Variant(NamedTuple):
    """A config that is measured: one key has another value, or none has.

    Attributes:
      key, value: what is changed, as shown; empty for the config as given.
      config: the config.
    """

    key: str
    value: str
    config: ConfigDict

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.key}={self.value}" if self.key else "as given"


def _shown(value) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    return str(value)


def _read(text: str, current) -> object:
    """A value as typed, of the kind of the current one."""
    if isinstance(current, str):
        return text
    value = ast.literal_eval(text.capitalize() if isinstance(current, bool) else text)
    many = isinstance(current, tuple | list) and not isinstance(value, tuple | list)
    return (value,) if many else value


def _changed(config: ConfigDict, key: str, value, text: str) -> ConfigDict:
    changed = config.copy_and_resolve_references()
    try:
        changed.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
        raise Refused(f"--compare={key}={text}: {error}") from error
    return changed


def variants(config: ConfigDict, texts: list[str], training: str) -> list[Variant]:
    """The config, and one for each other value of each key to compare.

    Args:
      config: the config.
      texts: of --compare.
      training: "teacher" or "ladder", whose batch is meant by "batch".

    Raises:
      Refused: for a key that is not known, or a value of another kind.
    """
    chosen, shorts = [Variant("", "", config)], _shorts(training)
    flat = dict(configs.flatten(config))
    for part in (part for text in texts for part in text.split(";")):
        before, given, rest = part.partition("=")
        for name in [before] if given else before.split(","):
            key = shorts[name].key if name in shorts else name
            if key not in flat:
                known = [*flat, *shorts]
                raise Refused(
                    f"--compare={part}: this config has no key {key}."
                    + registry.suggest(key, known)
                )
            current = flat[key]
            if given:  # commas within brackets are part of a value
                said = re.findall(r"(?:\([^)]*\)|\[[^]]*\]|[^,(\[])+", rest)
            elif name in shorts:
                said = shorts[name].values(config)
            else:
                raise Refused(
                    f"--compare={part}: give the values, {name}=V1,V2; without values "
                    f"go {', '.join(shorts)}"
                )
            for value in said:
                try:
                    value = _read(value, current) if given else value
                except (ValueError, SyntaxError) as error:
                    raise Refused(
                        f"--compare={part}: {value} is not like {key}={current}"
                    ) from error
                if _shown(value) != _shown(current):
                    changed = _changed(config, key, value, _shown(value))
                    chosen.append(Variant(name, _shown(value), changed))
    return chosen


def _prepare(config: ConfigDict, batch: int | None) -> None:
    """Changes a config to what is measured of it."""
    if batch:
        config.teacher.batch = config.ladder.batch = batch
    config.eval.inception = config.eval.statistics = ""
    size = config[TRAINING.value].batch
    config.run.eval_batch = size  # sampler and step have the same forward pass
    config.eval.num_samples = max(config.eval.num_samples, size)


def _check() -> None:
    """Refuses flags that cannot work, before anything is measured."""
    registry.check(TRAINING.value, ("teacher", "ladder"), "--training")
    for measure in MEASURE.value:
        registry.check(measure, MEASURES, "--measure")
    for flag, least in ((REPEATS, 1), (BATCH, 1)):
        if flag.value is not None and flag.value < least:
            raise Refused(f"--{flag.name}={flag.value}: must be at least {least}")
    if not 0.0 < SECONDS.value < 1e6:
        raise Refused(f"--seconds={SECONDS.value}: must be above 0")
    if JSON.value is not None:
        path = pathlib.Path(JSON.value)
        if not JSON.value or path.is_dir() or not path.parent.is_dir():
            raise Refused(f"--json={JSON.value}: give a file in a folder that is there")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _starts(variant: Variant, folder: str) -> dict:
    """First steps in fresh processes, with an empty cache and then with a full one."""
    from pd_jax.bench.startup import first_step

    measured = {"cold": [], "warm": [], "memory": {}}
    began = time.monotonic()
    for i in range(REPEATS.value):
        cache = os.path.join(folder, f"cache_{i}")
        for kind in ("cold", "warm"):
            _say(f"{variant.name}: first step, cache {kind}")
            asks = kind == "cold" and i == 0
            one = first_step(variant.config, TRAINING.value, cache, asks)
            if "failed" in one:
                return one
            measured[kind].append(one["seconds"])
            measured["memory"] = measured["memory"] or one["memory"]
        if time.monotonic() - began > STARTS * SECONDS.value:
            break
    return measured


def _largest(variant: Variant, cache: str) -> Variant:
    """The variant with the largest batch that a device has memory for."""
    from pd_jax.bench.startup import first_step
    from pd_jax.bench.timing import OUT_OF_MEMORY

    def fits(size: int) -> bool:
        _say(f"{variant.name}: trying batch {size}")
        _prepare(config, size)
        one = first_step(config, TRAINING.value, cache)
        if one.get("failed", OUT_OF_MEMORY) != OUT_OF_MEMORY:
            raise Refused(f"--find_batch: {variant.name}: {one['failed']}")
        if "peak" not in one.get("memory", {"peak": 0}):
            raise Refused("--find_batch: this device does not tell its memory")
        return "failed" not in one

    config = variant.config.copy_and_resolve_references()
    size = config[TRAINING.value].batch
    if fits(size):
        while fits(2 * size):
            size *= 2
    else:
        size //= 2
        while size and not fits(size):
            size //= 2
    if not size:
        raise Refused(f"--find_batch: {variant.name}: no memory for a batch of 1")
    _prepare(config, size)
    return variant._replace(config=config)


def _use_cache(folder: str) -> None:
    """Reads what a start compiled, on an accelerator, where that takes minutes.

    XLA:CPU warns of what it reads, which was compiled for a machine like this one.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    if jax.default_backend() != "cpu":
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "cache_0"))


def _measure(chosen: list[Variant], folder: str) -> list[dict]:
    """Everything that was measured of each variant, as JSON has it."""
    folders = [os.path.join(folder, str(i)) for i in range(len(chosen))]
    starts = []
    for variant, mine in zip(chosen, folders):
        os.mkdir(mine)
        # Ahead of this process's own use of the devices, which it would share.
        asked = "start" in MEASURE.value
        starts.append(_starts(variant, mine) if asked else {})

    from pd_jax.bench.subject import Subject

    subjects, alone = [], len(chosen) == 1
    each = SECONDS.value / REPEATS.value
    for variant, start, mine in zip(chosen, starts, folders):
        try:
            subject = Subject(variant.config, TRAINING.value, mine)
        except Refused as error:
            raise Refused(f"{variant.name}: {error}") from error
        subject.failed = start.get("failed", "")
        subjects.append(subject)
    for variant, subject, mine in zip(chosen, subjects, folders):
        _say(f"{variant.name}: compiling")
        _use_cache(mine)
        subject.attempt(lambda s=subject: s.begin(MEASURE.value, each), alone)
    for i in range(REPEATS.value):
        _say(f"round {i + 1} of {REPEATS.value}")
        for subject in subjects:
            subject.attempt(subject.round, alone)
    return [_result(*each) for each in zip(chosen, starts, subjects)]


def _result(variant: Variant, start: dict, subject) -> dict:
    """One variant's figures, as JSON has them."""
    figures = {} if subject.failed else subject.figures()
    return {
        "name": variant.name,
        "changes": {variant.key: variant.value} if variant.key else {},
        "batch": subject.training.batch,
        "failed": subject.failed,
        "data": f"random ({subject.standin})" if subject.standin else "its own",
        "num_weights": subject.num_weights,
        "update_flops": subject.flops,
        "multiplies_in": subject.setup.model.dtype.name,
        "start": start,
        "compilations": subject.compilations,
        "loop_updates": subject.loop_updates,
        "figures": {
            name: {"median": f.median, "rounds": f.values}
            for name, f in figures.items()
        },
    }


def _run(name: str) -> int:
    from pd_jax.bench.table import facts, table
    from pd_jax.runtime import numerics, processes

    config = CONFIG.value
    processes.check_devices()
    _check()
    _prepare(config, BATCH.value)
    chosen = variants(config, COMPARE.value, TRAINING.value)
    for variant in chosen:
        _prepare(variant.config, None)
    with tempfile.TemporaryDirectory(prefix="pd_jax_bench_") as folder:
        if FIND_BATCH.value:
            chosen = [_largest(variant, folder) for variant in chosen]
        with numerics.pinned():
            results = _measure(chosen, folder)
    result = facts() | {
        "config": name,
        "training": TRAINING.value,
        "command": [sys.executable, "-m", "pd_jax.bench", *sys.argv[1:]],
        "repeats": REPEATS.value,
        "seconds": SECONDS.value,
        "variants": results,
    }
    console.show(table(result))
    if JSON.value:
        text = json.dumps(result, indent=1)
        pathlib.Path(JSON.value).write_text(text + "\n")
    return int(all(variant["failed"] for variant in results))


def main(argv: list[str]) -> int:
    """Runs the command line; returns the exit code."""
    try:
        command.no_more(command.parse(argv, __doc__))
        command.config()
        return _run(command.name())
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    console.outlive_readers()
    sys.exit(main(sys.argv))
