"""The order of things: teacher, ladder, evaluation, report; whatever is missing."""

import json
import os
import pathlib
import time

import jax
import jaxlib
from ml_collections import ConfigDict

from pd_jax import __version__, report
from pd_jax import config as configs
from pd_jax.checkpoint import StageCheckpoints
from pd_jax.evaluate import Evaluation, rows
from pd_jax.interrupt import Interrupt
from pd_jax.ladder import Stage
from pd_jax.setup import Setup, Training, build
from pd_jax.writers import JsonLines, Progress, write_whole


def run(
    config: ConfigDict, workdir: str | os.PathLike, name: str, began: float | None = None
) -> dict:
    """Does whatever a run still lacks: teacher, ladder, evaluation, report.

    Args:
      config: of `pd_jax.config.default`'s form.
      workdir: the run's folder; made where missing.
      name: the run's name, for the report.
      began: `time.monotonic()` at which the run began; now where None.

    Returns:
      The report, as in report.json.

    Raises:
      ValueError: for a config that cannot work, or a workdir of another config.
      Interrupted: on SIGINT or SIGTERM, with everything saved.
    """
    began = time.monotonic() if began is None else began
    workdir = pathlib.Path(workdir)
    finished = _open(workdir, config)
    if finished is not None:
        print(f"{workdir}: everything is done already, nothing to do")
        print(report.console_table(finished["rows"]))
        return finished
    setup = build(config)
    write_whole(workdir / "config.json", _dump(config))
    return _Run(setup, workdir, name, began).all()


def _dump(config: ConfigDict) -> str:
    return json.dumps(config.to_dict(), indent=1) + "\n"


def _open(workdir: pathlib.Path, config: ConfigDict) -> dict | None:
    """Checks that a workdir is this config's; its report where it is complete."""
    kept = workdir / "config.json"
    if kept.exists():
        changed = configs.differences(json.loads(kept.read_text()), config.to_dict())
        if changed:
            raise ValueError(
                f"{workdir} was made by a different config:\n  "
                + "\n  ".join(changed)
                + "\nUse those values again, or another folder with --workdir=DIR."
            )
    elif workdir.exists() and any(workdir.iterdir()):
        raise ValueError(
            f"{workdir} is not empty and has no config.json: not a folder of a run. "
            "Use another one with --workdir=DIR."
        )
    done = workdir / "report.json"
    return json.loads(done.read_text()) if done.exists() else None


class _Run:
    """One process's part of a run."""

    def __init__(self, setup: Setup, workdir: pathlib.Path, name: str, began: float):
        self.setup, self.workdir, self.name, self.began = setup, workdir, name, began
        self.options = setup.config.run
        self.lines = JsonLines(workdir / "metrics.jsonl")
        self.evaluation = Evaluation(setup, workdir)
        self.seconds_here = 0.0  # of stages and rows, in this process

    def all(self) -> dict:
        """Everything, in order; returns the report."""
        setup, evaluation = self.setup, self.evaluation
        work = {}
        for training in setup.trainings:
            for stage in training.stages:
                with StageCheckpoints(self.workdir, stage) as kept:
                    done = min(kept.updates, stage.updates)
                work[stage.name] = (
                    done * training.work_per_update,
                    stage.updates * training.work_per_update,
                )
        for row in rows(setup):
            cost = evaluation.work(row)
            work[row] = (cost if evaluation.done(row) else 0, cost)
        done, total = (sum(pair) for pair in zip(*work.values()))
        total += evaluation.reference_work
        self._hello(done)
        self.progress = Progress(total, done, self.options.log_seconds)
        try:
            with Interrupt() as self.interrupt:
                for training in setup.trainings:
                    for stage in training.stages:
                        self.stage(training, stage)
                entries = self.evaluate()
        finally:
            self.progress.close()
        return self.report(entries)

    def _hello(self, done: int) -> None:
        devices = jax.devices()
        stages = " -> ".join(s.name for s in self.setup.stages)
        weights = sum(a.size for a in jax.tree.leaves(self.setup.fresh))
        print(
            f"{self.name}: {stages}\n"
            f"{len(self.setup.dataset.images)} examples of shape "
            f"{self.setup.dataset.shape}, {weights:,} weights, "
            f"{len(devices)} {devices[0].platform} device(s), jax {jax.__version__}\n"
            f"{'going on in' if done else 'writing to'} {self.workdir}",
            flush=True,
        )

    # Training.

    def _like(self, training: Training, stage: Stage):
        """A stage's state as shapes with shardings, to restore into."""
        shapes = jax.eval_shape(
            lambda weights: training.method.start(weights, stage), self.setup.fresh
        )
        return jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(
                a.shape, a.dtype, sharding=training.step.sharding
            ),
            shapes,
        )

    def weights(self, training: Training, stage: Stage):
        """A finished stage's weights, from disk, and the facts beside them."""
        with StageCheckpoints(self.workdir, stage) as kept:
            state, facts = kept.restore(self._like(training, stage))
        return training.method.result(state), facts

    def _start(self, training: Training, stage: Stage):
        """A stage's first state: the finished stage before hands over."""
        before = None
        for t in self.setup.trainings:
            for s in t.stages:
                if s == stage:
                    weights = self.setup.fresh
                    if before is not None:
                        weights, _ = self.weights(*before)
                    return training.step.place(training.method.start(weights, stage))
                before = (t, s)
        raise AssertionError(stage)

    def stage(self, training: Training, stage: Stage) -> None:
        """Trains one stage from where it is to its end."""
        with StageCheckpoints(self.workdir, stage) as kept:
            if kept.finished:
                return
            began = time.monotonic()
            state = self._start(training, stage)
            facts = {"seconds": 0.0, "traces": 0}
            if kept.updates:
                state, facts = kept.restore(state)
            done = int(state.step)
            self.lines.rewind(stage.name, done)
            loop = _Loop(self, training, stage, done)

            def save(state):
                loop.flush()
                so_far = {
                    "seconds": facts["seconds"] + time.monotonic() - began,
                    "traces": max(facts["traces"], training.step.traces),
                }
                kept.save(state, so_far)

            every = self.options.checkpoint_updates
            while done < stage.updates and not self.interrupt.received:
                state, done = loop.call(state, done)
                if done // every != (done - self.options.substeps) // every:
                    save(state)
            if kept.updates < done:
                save(state)
            self.seconds_here += time.monotonic() - began
        if self.interrupt.received:
            self.progress.say(f"{stage.name}: stopped, saved at update {done}")
        self.interrupt.check()

    # Evaluation and report.

    def evaluate(self) -> list[dict]:
        """All rows' entries, measuring those that are missing."""
        evaluation, todo = self.evaluation, rows(self.setup)
        missing = [row for row in todo if not evaluation.done(row)]
        if missing:
            teacher = None
            if len(self.setup.trainings) == 2:
                training = self.setup.trainings[0]
                teacher, _ = self.weights(training, training.stages[-1])
            began = time.monotonic()

            def advance(text):
                def call(work):
                    self.interrupt.check()
                    self.progress.advance(work, text)

                return call

            references = evaluation.references(teacher, advance("reference samples"))
            ladder = self.setup.trainings[-1]
            students = {stage.num_steps: stage for stage in ladder.stages}
            for row in missing:
                params = teacher
                if row.model == "student":
                    params, _ = self.weights(ladder, students[row.num_steps])
                text = f"sampling: {row.model}, {row.num_steps} steps"
                entry = evaluation.measure(row, params, references, advance(text))
            self.seconds_here += time.monotonic() - began
        return [evaluation.entry(row) for row in todo]

    def report(self, entries: list[dict]) -> dict:
        """Puts the report together and writes it."""
        setup = self.setup
        seconds, traces = {"teacher": 0.0, "ladder": 0.0}, {}
        for training in setup.trainings:
            facts = [self.weights(training, s)[1] for s in training.stages]
            seconds[training.name] = sum(f["seconds"] for f in facts)
            traces[training.name] = max(f["traces"] for f in facts)
        seconds["evaluation"] = sum(e["seconds"] for e in entries)
        # What this process did besides: starting up, restoring, the report itself.
        rest = time.monotonic() - self.began - self.seconds_here
        seconds["total"] = sum(seconds.values()) + rest
        result = {
            "config": self.name,
            "rows": [{k: v for k, v in e.items() if k != "seconds"} for e in entries],
            "seconds": {k: round(v, 1) for k, v in seconds.items()},
            "traces": traces,
            "protocol": self._protocol(),
            "versions": {
                "pd_jax": __version__,
                "jax": jax.__version__,
                "jaxlib": jaxlib.__version__,
            },
        }
        files = report.write(self.workdir, result, self.evaluation, setup)
        print(report.console_table(result["rows"]))
        print("time: " + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items()))
        print(f"wrote {', '.join(f for f in files if '/' not in f)} in {self.workdir}")
        return result

    def _protocol(self) -> dict[str, str]:
        ev, num = self.setup.config.eval, len(self.setup.dataset.images)
        paired = f"root mean squared difference of {ev.paired_samples} samples to "
        clip = "clipped" if ev.clip else "not clipped"
        return {
            "samples": f"{ev.num_samples} per row, one noise set, {clip}",
            "frechet_pixels": f"Frechet distance of {ev.num_samples} samples to the "
            f"{num} training examples, on raw values in [-1, 1]",
            "rmse_to_teacher": f"{paired}the teacher's own of {ev.reference_steps} steps "
            "from the same noise",
            "rmse_to_exact": f"{paired}where the exact probability flow takes the same "
            "noise",
        }


class _Loop:
    """The hot loop of one stage: never waits for the device but one interval late."""

    def __init__(self, run: _Run, training: Training, stage: Stage, done: int):
        self._run, self._training, self._stage = run, training, stage
        self._every = run.options.log_updates
        self._now: list[dict] = []  # metrics of this interval, still on the device
        self._before: tuple[int, list[dict]] | None = None  # of the one before
        self._at = done
        self._clock = time.monotonic(), done
        self._text = f"{stage.name}  starting"

    def call(self, state, done: int):
        """One call of the step; returns the state and the updates done."""
        training, substeps = self._training, self._run.options.substeps
        batch = self._run.setup.dataset.batch(
            done * training.batch,
            substeps * training.batch,
            (*training.seed, self._stage.index),
        )
        state, metrics = training.step(state, batch, training.key)
        self._now.append(metrics)
        done += substeps
        self._at = done
        if done // self._every != (done - substeps) // self._every:
            self._emit(self._before)
            self._before, self._now = (done, self._now), []
        self._run.progress.advance(substeps * training.work_per_update, self._text)
        return state, done

    def flush(self) -> None:
        """Writes all that is still held back; waits for the device."""
        self._emit(self._before)
        self._emit((self._at, self._now))
        self._before, self._now = None, []

    def _emit(self, interval: tuple[int, list[dict]] | None) -> None:
        if interval is None or not interval[1]:
            return
        update, metrics = interval
        metrics = jax.device_get(metrics)
        entry = {"stage": self._stage.name, "update": update}
        entry |= {k: float(sum(m[k] for m in metrics) / len(metrics)) for k in metrics[0]}
        self._run.lines.write(entry)
        (clock, at), self._clock = self._clock, (time.monotonic(), update)
        rate = (update - at) / max(self._clock[0] - clock, 1e-9)
        self._text = (
            f"{self._stage.name}  {update}/{self._stage.updates}  "
            f"loss {entry['loss']:.3g}  {rate:.0f} updates/s"
        )
