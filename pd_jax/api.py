"""Runs with their reports: of a config, and of a model that one already has."""

import collections
import functools
import hashlib
import inspect
import numbers
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax.config import GIVEN, setup
from pd_jax.costs import memory
from pd_jax.data import Dataset
from pd_jax.data._stream import Stream
from pd_jax.models import Function, Model
from pd_jax.reports import trackers
from pd_jax.reports.page import Page
from pd_jax.reports.report import Report
from pd_jax.reports.terminal import Terminal
from pd_jax.runs import loading
from pd_jax.runs import run as runs
from pd_jax.runs import workdir as workdirs
from pd_jax.runtime import console, numerics, processes, registry
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space
from pd_jax.students.student import Student

NUM_REFERENCE = 1000  # examples that samples are compared with


@numerics.pinned()
def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    name: str,
    began: float | None = None,
    built: setup.Setup | None = None,
    callbacks: Sequence[object] = (),
) -> dict:
    """Does whatever a run still lacks, and reports on it as the config says.

    Args:
      config: of `pd_jax.config.default`'s form.
      workdir: the run's folder; made if missing.
      name: the run's name, for the report.
      began: `time.monotonic()` at which the run began; default now.
      built: what the config names, if that is built already.
      callbacks: told of what happens (`pd_jax.training.callbacks`), before the
        terminal is.

    Returns:
      The report, as in report.json.

    Raises:
      Refused, Diverged, Interrupted: as `pd_jax.runs.run.run`.
      MemoryError: if a device's is not enough, with the keys that help.
    """
    processes.check_devices()
    place = workdirs.path(workdir)
    configs.check_keys(config)
    reporters = [*trackers.wanted(config, place, name), Page(place, name)]
    reporters += [Report(place), *callbacks, Terminal(place, name)]
    try:
        return runs.run(config, workdir, name, began, built, reporters)
    except runs.OutOfMemory as error:
        raise MemoryError(f"{error}{memory.advice(error.setup, error.part)}") from error


@numerics.pinned()
def distil(
    apply: Callable,
    params: Any,
    batches: Iterable | Callable[[int], Iterable] | Dataset,
    workdir: str | os.PathLike,
    *,
    output: str = "v",
    kind: str = "",
    num_classes: int = 0,
    config: ConfigDict | None = None,
    callbacks: Sequence[object] = (),
    **keys: Any,
) -> dict[int, Student]:
    """Distils a model into students of ever fewer sampling steps.

        students = pd_jax.distil(
            apply, params, batches, "runs/mine", output="eps", start=32, updates=500,
            schedule=dict(logsnr_min=-10.0),
        )
        images = students[4].sample(jax.random.key(0), 64)

    The run is the command line's. It writes metrics, checkpoints, figures and a report
    under `workdir`, and the same call goes on where it was stopped; where everything is
    done it only reads the students.

    Args:
      apply: the teacher: (params, z [B, ...], level [B], label) -> raw output [B, ...],
        a function that JAX can trace and differentiate. Label is [B] int32, or None
        where batches have none. What it is called with, and what its output means,
        says `output`.
      params: its weights: any pytree of floating-point arrays; students have the same.
      batches: what is learnt from: global batches, all of one size, one an update. Each
        is an array [B, ...] or {"image": [B, ...], "label": [B]}; images are uint8 in
        0..255, or floating point, pictures in [-1, 1]. They come as

        - a list, or what is indexed like one, which is started over at its end;
        - a function, called with n for batches from number n of the whole run on;
        - a `pd_jax.data.Dataset`, such as `InMemory(images)`;
        - another iterable, such as a loader, which is started over at its end. A run
          that goes on reads it again up to its place;
        - an iterator: one that begins as it did when the run began is read on to the
          run's place, of others a run that goes on takes what comes next.

        A run that goes on ends with the bits of one never stopped if the same batches
        are given again; a list or data set of other content is refused.

        In a run of several processes all of them are given the same.
      workdir: the run's folder; made where missing.
      output: the convention of `apply`: "x", "eps", "v" or "both" where it is called
        with (z, logsnr); "ddpm", "edm" or "flow" (docs/foreign_teachers.md).
      kind: what an example is: "pictures" [H, W, 1 or 3], which are clipped to [-1, 1]
        and sampled as uint8; "latents" [H, W, C], "points" [2] or "signals" of any
        shape, which have no bounds and are sampled as float32. Default what type and
        shape of the first batch tell; a data set says it itself.
      num_classes: of the labels, which are below it. Default one more than the largest
        label of a list or data set; of what cannot be looked at as a whole, of those
        batches that samples are compared with, and a larger one is refused when it
        comes.
      config: in place of the defaults, `pd_jax.config.default("given", "given")`,
        changed.
      callbacks: functions or objects to be told what happens
      (`pd_jax.training.callbacks`).
      **keys: a config's keys: those of section `ladder` by themselves (start, end,
        factor, updates, learning_rate, ema, ...; docs/config.md has all of them);
        seed and precision; and sections `schedule`, `eval` and `run`, with a dict of
        those keys of theirs that change. `start` has no default. `batch` is the size
        of the batches, by default. Unless said otherwise, 1000 samples a row are
        compared with the first 1000 examples, for the teacher at `start` and at each
        student's steps.

    Returns:
      The students by their number of steps, the most first, with their metrics.

    Raises:
      Refused: for what cannot work, before anything is written; for a
        folder of another run, other weights included; where batches end too soon.
      Diverged, Interrupted: as `run`; checkpoints are kept.
    """
    began = time.monotonic()
    if threading.current_thread() is not threading.main_thread():
        raise Refused("distil catches signals, so it runs in the main thread only")
    processes.check_devices()
    _check_function(apply)
    weights = _weights(params)
    config = _config(config, output, kind, keys)
    config.teacher.released = _digest(weights)
    if isinstance(batches, Dataset):
        dataset, own = batches, Space.of(batches.shape, batches.kind).kind
        if kind not in ("", own):
            raise Refused(f'kind="{kind}", but the data set says kind="{own}"')
    else:
        dataset = _stream(batches, config, "batch" in keys, num_classes)
    if num_classes and not 0 < dataset.num_classes <= num_classes:
        raise Refused(
            f"num_classes={num_classes}, but the data set has {dataset.num_classes}"
        )
    classes = num_classes or dataset.num_classes
    classes = max(2, classes) if classes else 0
    teacher = Model(Function(apply, classes), output), weights
    built = setup.build(config, dataset, teacher)
    _try_out(built, weights)
    name = pathlib.PurePath(os.path.abspath(workdir)).name
    report = run(config, workdir, name, began, built, callbacks)
    return _students(built, epath.Path(workdir), report)


def _check_function(apply: Callable) -> None:
    """Refuses what cannot be called as the teacher is."""
    kind = type(apply).__name__
    try:
        inspect.signature(apply).bind("params", "z", "level", "label")
    except TypeError as error:
        raise Refused(
            f"apply is a {kind} that cannot be called with (params, z, level, label) "
            f"({error}): give a function of these four; of an NNX module, with graph, "
            "params = nnx.split(module), one that calls nnx.merge(graph, params)"
        ) from error
    except ValueError:  # functions of other languages have no signature
        pass


def _weights(params: Any) -> Any:
    """The weights on the host, in float32; Refused for what is no array of numbers."""

    def one(path, leaf):
        where = f"params{jax.tree_util.keystr(path)}"
        kind = getattr(leaf, "dtype", type(leaf).__name__)
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(kind, jnp.floating):
            raise Refused(
                f"{where} is {kind}: give floating-point arrays only; what else the "
                "model needs, the function can hold itself (of an NNX module, with "
                "graph, params, rest = nnx.split(module, nnx.Param, ...), graph and "
                "rest)"
            )
        if not leaf.size:  # no checkpoint holds it
            raise Refused(
                f"{where} has shape {leaf.shape}, so no values: leave it out, the "
                "function can make it itself"
            )
        leaf = np.asarray(leaf).astype(np.float32)
        if not np.isfinite(leaf).all():
            raise Refused(f"{where} has values that are not finite")
        return leaf

    if not jax.tree.leaves(params):
        raise Refused(f"params is {params!r:.100}, without any weights")
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    for path, times in collections.Counter(map(name, paths)).items():
        if times > 1:
            raise Refused(
                f'params has {times} weights that checkpoints would call "{path}": '
                "rename the keys that have / in them"
            )
    return jax.tree_util.tree_map_with_path(one, params)


def _digest(weights: Any) -> str:
    """What tells these weights from others: a run goes on with its own only."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}".encode())
        digest.update(leaf.tobytes())
    return f"sha256:{digest.hexdigest()[:16]}"


def _config(
    config: ConfigDict | None, output: str, kind: str, keys: dict
) -> ConfigDict:
    """The whole config; ValueError names the key at fault."""
    given = config is not None
    config = config if given else configs.default(GIVEN, GIVEN)
    if {config.data.name, config.model.name} != {GIVEN}:
        raise Refused('config: begin with pd_jax.config.default("given", "given")')
    config = config.copy_and_resolve_references()
    config.model.output, config.data.kind = output, kind or config.data.kind
    sections = ("schedule", "eval", "run")
    known = [*sections, "seed", "precision", *config.ladder]
    for key, value in keys.items():
        registry.check(key, known, "argument")
        if key in config.ladder:
            _set(config.ladder, f"argument {key}", key, value)
        elif key not in sections:
            _set(config, f"argument {key}", key, value)
        elif not isinstance(value, dict):
            raise Refused(f"{key}={value!r}: give a dict of keys of that section")
    if not given:
        start = config.ladder.start
        if not start:
            raise Refused(
                "start is missing: the steps of the teacher's sampler that the first "
                "student learns to do with fewer, such as start=32"
            )
        counts = [stage.num_steps for stage in configs.planned(config)["ladder"][1]]
        config.eval.teacher_steps = (start, *counts)
        config.eval.reference_steps = max(256, 4 * start)
        config.eval.num_samples = NUM_REFERENCE
    for section in sections:
        for key, value in keys.get(section, {}).items():
            registry.check(key, config[section], f"key of {section}")
            _set(config[section], f"{section}.{key}", key, value)
    if config.precision == "bfloat16" or config.ladder.dropout:
        raise Refused(
            "precision and dropout are matters of the function's own: leave them out"
        )
    return config


def _set(section: ConfigDict, name: str, key: str, value: Any) -> None:
    """Sets a key, called `name`; a single number serves where several are asked for."""
    try:
        if value is None:
            raise TypeError("give a value, or leave it out")
        if isinstance(section[key], tuple):
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
            if not all(isinstance(one, numbers.Real) for one in value):
                raise TypeError("give a number, or several")
        section[key] = value
    except TypeError as error:
        raise Refused(f"{name}={value!r}: {error}") from error


def _gives_batches(source: Any) -> bool:
    """Whether batches can be taken of an object at all."""
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    some = callable(source) or isinstance(source, Iterable) or indexed
    return some and not isinstance(source, Mapping | str)


def _stream(source: Any, config: ConfigDict, sized: bool, num_classes: int) -> Stream:
    """The batches as a data set; the config's batch is theirs unless it is `sized`."""
    if not _gives_batches(source):
        raise Refused(
            f"batches are {type(source).__name__}: give a list of them, another "
            "iterable, an object with __getitem__ and __len__, an iterator, or a "
            "function of the number of the first batch"
        )
    num = config.eval.num_reference or NUM_REFERENCE
    updates = setup.updates(config)
    stream = Stream(source, updates, num, config.data.kind, num_classes)
    if stream.forgets and processes.is_first():
        console.warn(
            "batches are an iterator, which cannot be asked for the place where a run "
            "stopped: one that goes on takes what comes next, unless the iterator "
            "begins as it did. A list, another iterable or a function of the first "
            "batch's number goes on exactly"
        )
    if not sized:
        config.ladder.batch = stream.size
    if config.ladder.batch != stream.size:
        raise Refused(
            f"batch={config.ladder.batch}, but the batches hold {stream.size} examples"
        )
    return stream


def _try_out(built: setup.Setup, weights: Any) -> None:
    """Traces the teacher once: what is wrong with the function shows here."""
    batch = built.dataset.take(np.arange(2))
    z, label = batch["image"], batch.get("label")

    def denoise(weights, z, label):
        return built.model.denoiser(weights, label)(z, jnp.zeros(len(z)))

    jax.eval_shape(denoise, weights, z, label)


def _students(
    built: setup.Setup, workdir: epath.Path, report: dict
) -> dict[int, Student]:
    """The students of a run that is done, which may have ended early."""
    return {
        n: loading.of_stage(workdir, built.config, training.name, stage, built, n)
        for training, stage in built.stages
        for n in training.method.step_counts(stage)
        if stage.name in report["updates"]
    }
