"""The real step, sampler, loop and data of a config, timed in interleaved rounds.

Every round times a little of everything, so that a ratio within a round is of work done
under the same conditions, on a machine that others may be using.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pd_jax.bench import timing
from pd_jax.bench.timing import OUT_OF_MEMORY, Compilations, Figure, reason
from pd_jax.checkpoint import StageCheckpoints
from pd_jax.config.setup import Setup, build
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import rows
from pd_jax.runtime.progress import Progress
from pd_jax.storage.writers import JsonLines
from pd_jax.training.callbacks import Callbacks
from pd_jax.training.loop import Loop
from pd_jax.training.stage import Stage
from pd_jax.training.state import MODEL, TEACHER, TrainState
from pd_jax.training.training import Training

SAMPLER_STEPS = 16  # of the sampler that is timed; rows of no more are compiled for
STAGES = 4  # of a ladder, at most, over which compilations are counted


def _some(things: list, most: int) -> list:
    """At most so many of a list, spread evenly, the first and the last among them."""
    places = np.linspace(0, len(things) - 1, min(most, len(things))).round()
    return [things[int(i)] for i in places]


def batches_of(setup: Setup, training: Training) -> Iterator[dict]:
    """A training's batches, on the host."""
    workers = setup.config.run.data_workers
    return training.dataset.batches(0, training.batch, training.seed, workers=workers)


def one_call(setup: Setup, training: Training) -> dict:
    """The batches of one call of a training's step, on the devices."""
    batches = batches_of(setup, training)
    ahead = training.step.feed(batches)
    batch = next(ahead)
    ahead.close()
    batches.close()
    return batch


def first_state(training: Training, weights: dict, stage: Stage) -> TrainState:
    """A stage's first state, on the devices, with weights that teach it too."""
    given = {MODEL: weights, TEACHER: weights}
    state = training.method.begin(given, stage, training.start_key)
    return jax.block_until_ready(training.step.place(state))


class Subject:
    """One config, built, with what is timed of it.

    Attributes:
      failed: why nothing more is timed of it, or the empty string.
      standin: why its data is random, or the empty string.
      training: the training that is timed.
      num_weights: of the network.
      flops: of an update, as from `timing.step_flops`.
      compilations: of the step, over stages, and of the sampler, over rows.
      loop_updates: updates of the loop in a round.
    """

    def __init__(self, config: ConfigDict, name: str, folder: str):
        """Builds; `name` is the training's, `folder` is for checkpoints.

        Raises:
          Refused: for what cannot work, naming the config key.
        """
        dataset, self.standin = timing.find_data(config)
        self.failed = ""
        self.loop_updates = 0
        self.setup = build(config, dataset)
        self.training = timing.training_of(self.setup.trainings, name)
        self.num_weights = sum(a.size for a in jax.tree.leaves(self.setup.shapes))
        self.flops = timing.step_flops(self.setup, name)
        self.compilations: dict[str, dict[str, int]] = {}
        self._folder, self._options = epath.Path(folder), config.run
        self._substeps = self.training.step.substeps
        mesh = self.training.step.mesh
        self._same = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._state = self._parked = None
        self._calls: dict[str, Callable[[int], float]] = {}
        self._counts: dict[str, int] = {}
        self._taken: dict[str, list[float]] = {}

    def attempt(self, do: Callable[[], None], alone: bool) -> None:
        """Does something with the state on the devices, unless something failed before.

        Where this subject is not `alone`, its state is on the host in between.
        """
        if self.failed:
            return
        try:
            if self._parked is not None:
                self._state = self.training.step.place(self._parked)
            do()
            if not alone:
                self._parked = jax.device_get(self._state)
                jax.tree.map(lambda a: a.delete(), self._state)
                self._state = None
        except Exception as error:
            self.failed = reason(error)
            self._state = self._parked = None
            self._calls = {}
            if alone and self.failed != OUT_OF_MEMORY:
                raise

    def begin(self, measures: tuple[str, ...], seconds: float) -> None:
        """Compiles, counts compilations, and finds how much to do in a round.

        Args:
          measures: of `bench.MEASURES`.
          seconds: for each measurement in a round.
        """
        if set(measures) - {"data"}:
            self._climb()
        if "step" in measures or "sampler" in measures:
            self._calls |= {"step": self._steps, "forward": self._forwards()}
        if "step" in measures:
            mesh = self.training.step.mesh
            product = timing.products(mesh, self.setup.model.dtype)
            self._product_flops, self._calls["product"] = product
        if "sampler" in measures or "compiles" in measures:
            sample = self._sampling(measures)
            if "sampler" in measures:
                self._calls["sampler"] = sample
        if "data" in measures:
            self._calls["data"] = self._reading()
        for name, call in self._calls.items():
            call(1)
            self._counts[name] = max(1, min(int(seconds / call(1)), 10_000))
        if "loop" in measures:
            self._looping(seconds)

    def round(self) -> None:
        """Times everything once."""
        for name, call in self._calls.items():
            count = self._counts[name]
            self._taken.setdefault(name, []).append(call(count) / count)

    def _climb(self) -> None:
        """Starts stages as a ladder does; leaves the state of the last one."""
        training, weights = self.training, self.setup.first_weights()
        self._batch = one_call(self.setup, training)
        stages = _some(training.stages, STAGES)
        compilations = Compilations()
        for stage in stages:
            state = first_state(training, weights, stage)
            with compilations:
                for _ in range(2):
                    state, _ = training.step(state, self._batch, training.key)
                    jax.block_until_ready(state)
            weights = training.method.result(state)[MODEL]
        self.compilations["step"] = {
            "traces": training.step.traces,
            "compilations": compilations.count,
            "stages": len(stages),
        }
        # A stage that does not end: its learning rate stays what it is for a student.
        endless = dataclasses.replace(stages[-1], updates=2**30)
        self._stage = endless
        self._state = first_state(training, weights, endless)

    def _steps(self, count: int) -> float:
        training = self.training
        began = time.perf_counter()
        for _ in range(count):
            self._state, _ = training.step(self._state, self._batch, training.key)
        jax.block_until_ready(self._state)
        return time.perf_counter() - began

    def _forwards(self) -> Callable[[int], float]:
        """Network evaluations of one batch, each of what the one before gave.

        Side by side, as independent ones, a CPU would run several at once.
        """
        model = self.setup.model
        batch = next(batches_of(self.setup, self.training))
        shape = (self.training.batch, *self.setup.dataset.shape)
        z = np.random.default_rng(0).standard_normal(shape, np.float32)
        level, label = np.zeros(len(z), np.float32), batch.get("label")
        z, level, label = jax.device_put((z, level, label), self._split)

        @jax.jit
        def forward(params, z):
            v = model.denoiser(params, label)(z, level).v
            return jax.lax.with_sharding_constraint(v, self._split)

        def run(count: int) -> float:
            params = jax.block_until_ready(model.cast(self._state.model.params))
            v = z
            began = time.perf_counter()
            for _ in range(count):
                v = forward(params, v)
            jax.block_until_ready(v)
            return time.perf_counter() - began

        return run

    def _sampling(self, measures: tuple[str, ...]) -> Callable[[int], float]:
        evaluation = Evaluation(self.setup, self._folder)
        size = self.training.batch

        def draw(params: dict | None, num_steps: int) -> None:
            if params is not None:
                params = jax.device_put(params, self._same)
            next(evaluation.samples(params, num_steps, size))

        if "compiles" in measures:
            exact = self.setup.config.teacher.exact
            few = [r for r in rows(self.setup) if r.num_steps <= SAMPLER_STEPS]
            params = self._state.model.params
            with Compilations() as compilations:
                for row in few:
                    draw(
                        None if exact and row.model == "teacher" else params,
                        row.num_steps,
                    )
            self.compilations["sampler"] = {
                "compilations": compilations.count,
                "rows": len(few),
                "kinds": 1 + (exact and any(row.model == "teacher" for row in few)),
            }

        def run(count: int) -> float:
            began = time.perf_counter()
            for _ in range(count):
                draw(self._state.model.params, SAMPLER_STEPS)
            return time.perf_counter() - began

        return run

    def _reading(self) -> Callable[[int], float]:
        batches = batches_of(self.setup, self.training)
        next(batches)

        def run(count: int) -> float:
            began = time.perf_counter()
            for _ in range(count):
                next(batches)
            return time.perf_counter() - began

        return run

    def _looping(self, seconds: float) -> None:
        """Bare steps, and as many in the loop, as far as the next checkpoint.

        Where the next checkpoint is too far for a round, one is timed by itself.
        """
        work = {self.training.name: (0, 1)}
        progress = Progress("measurement", work, math.inf, shown=False)
        loop = Loop(
            self.training,
            self._stage,
            0,
            {},
            self._options,
            Callbacks([JsonLines(self._folder / "metrics.jsonl")]),
            progress,
        )
        every = self._options.checkpoint_updates

        def save(checkpoints: StageCheckpoints) -> None:
            whole = self.training.step.everywhere(self._state)
            checkpoints.save(whole, self.training.method, loop.facts)

        def run(count: int) -> float:
            with StageCheckpoints(self._folder, self._stage) as checkpoints:
                began = time.perf_counter()
                for _ in range(count):
                    if failed := loop.fetch():
                        raise failed
                    self._state = loop.call(loop.check(self._state))
                    if loop.passed(every) and not self._spread_over:
                        loop.flush()
                        save(checkpoints)
                jax.block_until_ready(self._state)
            return time.perf_counter() - began

        def checkpoint(count: int) -> float:
            with StageCheckpoints(self._folder, self._stage) as checkpoints:
                began = time.perf_counter()
                save(checkpoints)
            return time.perf_counter() - began

        checkpoint(1)
        each = self._steps(4) / 4
        interval = math.ceil(every / self._substeps)
        calls = int(seconds / each / interval) * interval
        self._spread_over = 0 if calls else every
        calls = calls or max(1, int(seconds / each))
        run(1)
        self._calls |= {"bare": self._steps, "loop": run}
        self._counts |= {"bare": calls, "loop": calls}
        if self._spread_over:
            self._steps(1)  # no two checkpoints of one update
            self._calls["checkpoint"] = checkpoint
            self._counts["checkpoint"] = 1
        self.loop_updates = calls * self._substeps

    def figures(self) -> dict[str, Figure]:
        """What was measured, by name; seconds, and figures per second."""
        took = {name: Figure(tuple(values)) for name, values in self._taken.items()}
        figures, batch = {}, self.training.batch
        if "step" in took:
            step = figures["step"] = took["step"].map(lambda s: s / self._substeps)
            figures["forward"] = took["forward"]
            figures["step_over_forward"] = step.over(took["forward"])
            figures["images_per_second"] = step.map(lambda s: batch / s)
            figures["flops_per_second"] = step.map(lambda s: self.flops / s)
        if "product" in took:
            peak = took["product"].map(lambda s: self._product_flops / s)
            figures["product_flops_per_second"] = peak
            figures["share_of_product"] = figures["flops_per_second"].over(peak)
        if "sampler" in took:
            figures["sampler"] = took["sampler"]
            per_step = took["sampler"].map(lambda s: s / SAMPLER_STEPS)
            figures["sampler_over_forwards"] = per_step.over(took["forward"])
        if "loop" in took:
            bare = took["bare"]
            figures["loop_over_bare"] = took["loop"].over(bare)
            figures["bare"] = bare.map(lambda s: s / self._substeps)
            figures["loop"] = took["loop"].map(lambda s: s / self._substeps)
            if self._spread_over:
                figures["checkpoint"] = took["checkpoint"]
                share = took["checkpoint"].map(lambda s: s / self._spread_over)
                share = share.over(figures["bare"])
                both = zip(figures["loop_over_bare"].values, share.values)
                figures["loop_over_bare"] = Figure(tuple(a + b for a, b in both))
        if "data" in took:
            figures["data_images_per_second"] = took["data"].map(lambda s: batch / s)
        return figures
