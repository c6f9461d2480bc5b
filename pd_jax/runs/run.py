"""The order of things: teacher, ladder, evaluation, report; whatever is missing."""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence

import flax
import jax
import jaxlib
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from pd_jax import __version__
from pd_jax import config as configs
from pd_jax.checkpoint import Damaged
from pd_jax.config.setup import Setup, build
from pd_jax.costs import memory
from pd_jax.data import Pairs
from pd_jax.evaluation import preflight, regressions
from pd_jax.evaluation.evaluation import GRID, Evaluation
from pd_jax.evaluation.rows import Row, row_of, rows
from pd_jax.evaluation.self_consistency import SelfConsistency
from pd_jax.runs import inputs, loading, pairs
from pd_jax.runs import workdir as workdirs
from pd_jax.runs.stages import Stages
from pd_jax.runtime import host, processes
from pd_jax.runtime.errors import Refused
from pd_jax.runtime.interrupt import Interrupt
from pd_jax.runtime.progress import Progress
from pd_jax.storage.writers import JsonLines, write_whole
from pd_jax.training.callbacks import Callbacks
from pd_jax.training.loop import Loop
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState
from pd_jax.training.training import Training

EVALUATION, CONSISTENCY = "evaluation", "self-consistency"  # parts beside trainings
TIMES = ("seconds", "sampling")  # of a row's entry: what no other run has again
PAIRS = 2**18  # folded into a training's start key, beside its stages' indices


class OutOfMemory(MemoryError):
    """A device's memory was not enough.

    Attributes:
      part: a training's name, or "evaluation".
      setup: the run's.
    """

    def __init__(self, part: str, setup: Setup):
        super().__init__(f"{part}: a device is out of memory")
        self.part, self.setup = part, setup


@contextlib.contextmanager
def _out_of_memory(part: str, setup: Setup) -> Iterator[None]:
    """Names the part of a run whose memory was not enough."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemory(part, setup) from error


def run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    name: str,
    began: float | None = None,
    setup: Setup | None = None,
    callbacks: Sequence[object] = (),
) -> dict:
    """Does whatever a run still lacks: teacher, ladder, evaluation, report.

    Args:
      config: of `pd_jax.config.default`'s form.
      workdir: the run's folder; made where missing.
      name: the run's name, for the report.
      began: `time.monotonic()` at which the run began; now where None.
      setup: what the config names, where that is built already.
      callbacks: told of what happens (`pd_jax.training.callbacks`), after
        metrics.jsonl.

    Returns:
      The report, as in report.json.

    Raises:
      Refused: for a config that cannot work, or a workdir of another.
      Diverged: where updates in a row had a loss or gradient that is not finite; the
        last checkpoint before them stays.
      Interrupted: on SIGINT or SIGTERM, with everything saved.
      OutOfMemory: (a MemoryError) where a device's is not enough.
    """
    began = time.monotonic() if began is None else began
    workdir = workdirs.path(workdir)
    with contextlib.ExitStack() as held:
        try:
            finished, new = processes.on_first_process(
                lambda: workdirs.take(workdir, config, held)
            )
            if finished is None:
                setup = setup or build(config)
            begun = processes.on_first_process(lambda: workdirs.begun(workdir))
            if begun and setup:
                inputs.check(workdir, setup)
            metrics = [] if finished else [JsonLines(workdir / "metrics.jsonl")]
            callbacks = Callbacks([*metrics, *callbacks])
        except ImportError as error:
            raise Refused(f"--workdir={workdir}: {error}") from error
        if finished is not None:
            callbacks.on_done(finished)
            return finished
        if new:
            preflight.try_teacher(setup)
            processes.on_first_process(lambda: workdirs.make(workdir, held))
        text = json.dumps(config.to_dict(), indent=1) + "\n"
        processes.on_first_process(lambda: write_whole(workdir / "config.json", text))
        if not begun:
            inputs.write(workdir, setup)
        with contextlib.closing(callbacks):
            return _Run(setup, workdir, name, began, callbacks).all()


class _Run:
    """One process's part of a run; the first one writes its files."""

    def __init__(
        self,
        setup: Setup,
        workdir: epath.Path,
        name: str,
        began: float,
        callbacks: Callbacks,
    ):
        self.setup, self.workdir, self.name, self.began = setup, workdir, name, began
        self.options, self.callbacks = setup.config.run, callbacks
        self.stages = Stages(setup, workdir)
        self.evaluation = Evaluation(setup, workdir)
        self.consistency = SelfConsistency(setup, workdir, self.evaluation)
        self.accounted = 0.0  # seconds of this process that a stage or row has counted
        self.prepared, self.preparing = False, 0.0  # seconds that no row has counted

    def all(self) -> dict:
        """Everything, in order; returns the report."""
        work, present = self._work()
        unfinished = {name for name, (done, total) in work.items() if done < total}
        memory.check(self.setup, unfinished)
        self.callbacks.on_begin(self.setup, present)
        first = processes.is_first()
        self.progress = Progress("run", work, self.options.log_seconds, shown=first)
        try:
            with Interrupt() as self.interrupt:
                for training in self.setup.trainings:
                    if training.name != "teacher":
                        with _out_of_memory(EVALUATION, self.setup):
                            self._prepare(rows(self.setup))
                    for stage in training.stages:
                        with _out_of_memory(training.name, self.setup):
                            self._train(training, stage)
                        with _out_of_memory(EVALUATION, self.setup):
                            self._end_where_worse(training, stage)
                with _out_of_memory(EVALUATION, self.setup):
                    self._evaluate(rows(self.setup))
                    self._ask()
        finally:
            self.progress.close()
        facts = {
            training.name: [self.stages.facts(stage) for stage in training.stages]
            for training in self.setup.trainings
        }
        return processes.on_first_process(lambda: self._report(facts))

    def _work(self) -> tuple[dict[str, tuple[int, int]], list[str]]:
        """Work by part, done and in all; what is there.

        A part is a training or measures models, its work forward passes of one example.
        """
        work = {}
        present, self.begun = [], set()  # the stages that have a checkpoint
        for training in self.setup.trainings:
            each, done = training.work, 0
            for stage in training.stages:
                with self.stages.open(stage) as checkpoints:
                    skipped = stage.updates - checkpoints.end
                    done += each * (checkpoints.updates + skipped)
                    if checkpoints.updates:
                        self.begun.add(stage)
                        at = f"at {checkpoints.updates}/{checkpoints.end}"
                        at = "done" if checkpoints.finished else at
                        present.append(f"{stage.name} {at}")
            updates = sum(stage.updates for stage in training.stages)
            work[training.name] = done, each * updates
        measured = [
            (amount, self.evaluation.has(name))
            for name, amount in self.evaluation.reference_work.items()
        ]
        measured += [
            (self.evaluation.work(row), self.evaluation.done(row))
            for row in rows(self.setup)
        ]
        missing = self.consistency.missing
        asked = [(self.consistency.path_work, not missing)]
        asked += [
            (self.consistency.work, name not in missing)
            for name in self.consistency.models
        ]
        for part, amounts in (EVALUATION, measured), (CONSISTENCY, asked):
            done = sum(amount for amount, done in amounts if done)
            work[part] = done, sum(amount for amount, _ in amounts)
        sampled = sum(map(self.evaluation.done, rows(self.setup)))
        if sampled:
            present.append(f"{sampled} of {len(rows(self.setup))} rows measured")
        return work, present

    def _followed(self, stage: Stage) -> bool:
        """Whether later stages or figures have come from a stage."""
        stages = [stage for _, stage in self.setup.stages]
        later = stages[stages.index(stage) + 1 :]
        if self.begun.intersection(later):
            return True
        if stage.name == "teacher":
            return self.evaluation.begun
        return any(map(self.evaluation.done, self._rows(stage)))

    def _rows(self, stage: Stage) -> list[Row]:
        """The rows of a stage's model."""
        return [row for row in rows(self.setup) if row.stage == stage.name]

    def _restore(self, training, stage, checkpoints) -> tuple[TrainState, dict] | None:
        """The newest checkpoint of a stage that can be read, those above set aside."""
        while checkpoints.updates:
            try:
                self.stages.check(checkpoints)
                shapes = self.stages.shapes(training, stage)
                return checkpoints.restore(shapes, training.method)
            except Damaged as error:
                if self._followed(stage):
                    raise self.stages.lost(stage, error) from error
                moved = checkpoints.set_aside()
                done = checkpoints.updates
                on = f"from update {done}" if done else "from its start"
                self.progress.warn(
                    f"{error}; moved to {moved}; {stage.name} goes on {on}"
                )
        return None

    def _start(self, training, stage, checkpoints) -> tuple[TrainState, dict]:
        """A stage's state where training goes on, placed, and its facts."""
        given = self.stages.given(training, stage)
        restored = self._restore(training, stage, checkpoints)
        key = jax.random.fold_in(training.start_key, stage.index)
        begin = training.method.begin
        if restored is None:
            state = begin(given, stage, key)
            return training.step.place(state), {"seconds": 0.0, "traces": 0}
        state, facts = restored
        frozen = jax.jit(lambda given: begin(given, stage, key).frozen)(given)
        return training.step.place(state.replace(frozen=frozen)), facts

    def _pairs(self, training: Training, stage: Stage) -> Pairs:
        """The pairs that a stage learns from, by the method's keys."""
        method, params = training.method, None
        if method.parts.exact is None or stage is not training.stages[0]:
            params = self.stages.given(training, stage)[TEACHER]
        teacher = self.evaluation.student(params)
        if method.teacher_sampler:
            teacher = dataclasses.replace(teacher, sampler=method.teacher_sampler)

        def advance(text):
            self.interrupt.check()
            self.progress.show(f"{stage.name}  pairs {text}")

        return pairs.make(
            self.workdir / "pairs" / stage.name,
            teacher,
            self.setup.data_of(stage)[1],
            method.pairs,
            method.teacher_steps,
            jax.random.fold_in(
                training.start_key, PAIRS + training.stages.index(stage)
            ),
            advance,
            method.places,
        )

    def _train(self, training: Training, stage: Stage) -> None:
        """Trains one stage from where it is to its end."""
        with self.stages.open(stage) as checkpoints:
            if checkpoints.finished and (
                self._followed(stage) or not checkpoints.damage()
            ):
                return
            began = time.monotonic()
            if not training.step.traces:
                self.progress.show(f"{stage.name}  compiling")
            if training.method.data == "pairs":
                training.dataset = self._pairs(training, stage)
            state, facts = self._start(training, stage, checkpoints)
            substeps = training.step.substeps
            if (checkpoints.end - checkpoints.updates) % substeps:
                raise Refused(
                    f"run.substeps={substeps} does not divide the updates "
                    f"left of {stage.name}, {checkpoints.updates} to "
                    f"{checkpoints.end}: give 1, and set it back in the next stage"
                )
            self.callbacks.on_start(stage.name, checkpoints.updates)
            loop = Loop(
                training,
                stage,
                checkpoints.updates,
                facts,
                self.options,
                self.callbacks,
                self.progress,
            )
            released = self.setup.config.teacher.released
            stages = [stage.name for _, stage in self.setup.stages]
            before = stages[: stages.index(stage.name)]
            made = {"teacher": before[-1] if before else released or None}
            made["precision"] = self.setup.model.dtype.name
            names = getattr(self.setup.data_of(stage)[1], "label_names", ())
            made["labels"] = names or None
            made["step_counts"] = training.method.step_counts(stage)
            made["sampler"] = training.method.sampler or self.setup.config.eval.sampler
            made |= self.stages.sampler(stage) | {"devices": processes.devices()}
            saved = loop.done
            while True:
                checkpoints.check()
                state = loop.check(state)
                # The signal is looked at once a round: what ends a stage is saved.
                ends = self.interrupt.asked() or loop.done == loop.end
                failed = None if ends else loop.fetch()
                ends = ends or failed is not None
                due = ends or loop.passed(self.options.checkpoint_updates)
                if due and loop.done > saved and (loop.flush() or ends):
                    seconds = facts["seconds"] + time.monotonic() - began
                    traces = max(facts["traces"], training.step.traces)
                    new = {"seconds": seconds, "traces": traces, **made, **loop.facts}
                    new |= self.stages.label_counts(training, stage, loop.done)
                    whole = training.step.everywhere(state)
                    checkpoints.save(whole, training.method, new)
                    saved = loop.done
                    self.callbacks.on_checkpoint(stage.name, saved)
                if ends:
                    break
                state = loop.call(state)
            loop.close()
            if failed:
                raise failed
        self.callbacks.on_stop(stage.name, saved)
        self.accounted += time.monotonic() - began
        if self.interrupt.received:
            kept_at = (
                f"and saved at update {saved}" if saved else "before its first update"
            )
            self.progress.say(f"{stage.name}: stopped {kept_at}")
        self.interrupt.check()
        if training.name != "teacher" and self.callbacks.hear("on_student"):
            given = self.workdir, self.setup.config, training.name, stage, self.setup
            self.callbacks.on_student(loading.of_stage(*given))

    def _end_where_worse(self, training: Training, stage: Stage) -> None:
        """Ends the ladder at a student that is worse than its teacher, if asked to."""
        setup, section = self.setup, self.setup.config[training.name]
        if section.get("on_regression") != "stop":
            return
        students = self._rows(stage)
        for row in students:
            self._evaluate([regressions.taught_by(row, setup), row])

        def worse() -> bool:
            return any(
                regressions.regression(row, setup, self.evaluation)
                or regressions.failures(row, self.evaluation)
                for row in students
            )

        if processes.on_first_process(worse):
            later = training.stages[training.stages.index(stage) + 1 :]
            updates = sum(s.updates for s in later)
            self.progress.drop(training.name, updates * training.work)
            gone = sum(self.evaluation.work(r) for s in later for r in self._rows(s))
            names = {r.stage for s in later for r in self._rows(s)}
            self.progress.drop(EVALUATION, gone)
            self.progress.drop(CONSISTENCY, self.consistency.work * len(names))
            del training.stages[training.stages.index(stage) + 1 :]
            self.progress.warn(f"{stage.name} is worse than its teacher: the last one")

    def _prepare(self, wanted: list[Row]) -> None:
        """Makes what rows are compared with, where one of these is missing.

        It needs the teacher alone, and comes before its students: what evaluation
        cannot do is then known early, and how long it takes.
        """
        if self.prepared or all(map(self.evaluation.done, wanted)):
            return
        began = time.monotonic()
        self.evaluation.prepare(self._weights("teacher"), self._advance)
        self.prepared, self.preparing = True, time.monotonic() - began

    def _evaluate(self, wanted: list[Row]) -> None:
        """Measures those rows that are missing."""
        evaluation = self.evaluation
        missing = [row for row in wanted if not evaluation.done(row)]
        self._prepare(missing)
        began, self.preparing = time.monotonic() - self.preparing, 0.0
        teacher = self._weights("teacher") if missing else None
        for row in missing:
            params = teacher if row.model == "teacher" else self._weights(row.stage)
            seconds = time.monotonic() - began
            evaluation.measure(row, params, seconds, self._advance)
            if processes.is_first():
                shown = evaluation.saved_samples(row.name)[:GRID]
                self.callbacks.on_row(evaluation.entry(row), shown)
            self.accounted += time.monotonic() - began
            began = time.monotonic()

    def _ask(self) -> None:
        """Measures how far models agree with themselves, where that is missing."""
        began = time.monotonic()
        advance = functools.partial(self._advance, part=CONSISTENCY)
        self.consistency.measure(self._weights, advance)
        self.accounted += time.monotonic() - began

    def _advance(self, work: int, text: str, part: str = EVALUATION) -> None:
        self.interrupt.check()
        self.progress.advance(part, work, text)

    def _weights(self, name: str) -> dict | None:
        """A stage's weights; of "teacher" also released ones, None for the exact."""
        for training, stage in self.setup.stages:
            if stage.name == name:
                return self.stages.handed_over(training, stage)[MODEL]
        return self.setup.released

    def _report(self, facts: dict[str, list[dict]]) -> dict:
        """Puts the report together and writes it; facts of all stages by training."""
        entries = [self.evaluation.entry(row) for row in rows(self.setup)]
        seconds = dict.fromkeys(configs.trainings(self.setup.config), 0.0)
        traces = {}
        for name, stages in facts.items():
            seconds[name] = sum(f["seconds"] for f in stages)
            traces[name] = max(f["traces"] for f in stages)
        updates = {
            stage.name: {
                "done": its_facts.get("end", stage.updates),
                "planned": stage.updates,
            }
            for training in self.setup.trainings
            for stage, its_facts in zip(training.stages, facts[training.name])
        }
        seconds["evaluation"] = sum(e["seconds"] for e in entries)
        seconds["evaluation"] += self.consistency.seconds
        rest = time.monotonic() - self.began - self.accounted
        seconds["total"] = sum(seconds.values()) + rest
        result = {
            "config": self.name,
            "rows": [{k: v for k, v in e.items() if k not in TIMES} for e in entries],
            "floor": self.evaluation.floor,
            "self_consistency": self.consistency.entry(),
            "sampling": {
                row_of(e).name: e["sampling"] for e in entries if "sampling" in e
            },
            "made": {
                "date": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
                "command": host.command(),
                "devices": processes.devices(),
                "processor": host.processor(),
            },
            "seconds": {k: round(v, 1) for k, v in seconds.items()},
            "traces": traces,
            "updates": updates,
            "warnings": regressions.warnings(self.setup, self.evaluation, facts),
            "precision": self.setup.model.dtype.name,
            "protocol": self.evaluation.protocol(),
            "versions": {
                "pd_jax": __version__,
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
                "flax": flax.__version__,
                "optax": optax.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        self.callbacks.on_report(result, self.evaluation)
        # Last: where it is there, all else is.
        text = json.dumps(result, indent=1) + "\n"
        write_whole(self.workdir / "report.json", text)
        self.callbacks.on_end(result)
        return result
