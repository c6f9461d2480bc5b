"""The hot loop of one stage: never waits for the device, but one interval late."""

import math
import time

import jax
from ml_collections import ConfigDict

from pd_jax import processes
from pd_jax.data import Dataset
from pd_jax.ladder import Stage
from pd_jax.setup import Training
from pd_jax.writers import JsonLines, Progress


class Diverged(RuntimeError):
    """A loss that is not a number, or infinite."""


class Loop:
    """Feeds a stage's step, and writes its metrics as means over intervals.

    Attributes:
      done: updates done in the stage.
    """

    def __init__(
        self,
        training: Training,
        stage: Stage,
        dataset: Dataset,
        done: int,
        options: ConfigDict,
        lines: JsonLines,
        progress: Progress,
    ):
        """Goes on after `done` updates; `options` is the config's section `run`."""
        self.done = done
        self._training, self._stage = training, stage
        self._every, self._lines, self._progress = options.log_updates, lines, progress
        self._batches = dataset.batches(
            done * training.batch,
            training.batch,
            (*training.seed, stage.index),
            processes.part(),
            options.data_workers,
        )
        self._feed = training.step.feed(self._batches)
        self._held: list[dict] = []  # this interval's metrics, still on the device
        self._late: tuple[int, list[dict], float] | None = (
            None  # those of the one before
        )
        self._clock = time.monotonic(), done
        self._text = f"{stage.name}  starting"

    def passed(self, every: int) -> bool:
        """Whether the last call went past a multiple of `every` updates."""
        return self.done // every != (self.done - self._training.step.substeps) // every

    def call(self, state):
        """One call of the step; returns the new state, not waited for."""
        training = self._training
        state, metrics = training.step(state, next(self._feed), training.key)
        self.done += training.step.substeps
        self._held.append(metrics)
        if self.passed(self._every):
            self._write(self._late)
            # The interval before has just been waited for: a fair clock for this one.
            self._late = self.done, self._held, time.monotonic()
            self._held = []
        work = training.step.substeps * training.batch * training.method.forwards
        self._progress.advance(work, self._text)
        return state

    def close(self) -> None:
        """Ends the reading of data."""
        self._feed.close()
        self._batches.close()

    def flush(self) -> None:
        """Writes all that is still held; waits for the device.

        Raises:
          Diverged: where a loss is not finite.
        """
        self._write(self._late)
        jax.block_until_ready(self._held)
        self._write((self.done, self._held, time.monotonic()))
        self._late, self._held = None, []
        self._lines.flush()

    def _write(self, interval: tuple[int, list[dict], float] | None) -> None:
        if interval is None or not interval[1]:
            return
        update, metrics, clock = interval
        metrics = jax.device_get(metrics)
        entry = {"stage": self._stage.name, "update": update}
        for name in metrics[0]:
            entry[name] = float(sum(m[name] for m in metrics) / len(metrics))
        if not math.isfinite(entry["loss"]):
            raise Diverged(
                f"{self._stage.name}: the loss is {entry['loss']} at update {update}, "
                f"learning rate {entry['learning_rate']:.3g}; nothing after the last "
                "checkpoint is kept. A lower learning rate may help."
            )
        self._lines.write(entry)
        (before, at), self._clock = self._clock, (clock, update)
        rate = (update - at) / max(clock - before, 1e-9)
        self._text = (
            f"{self._stage.name}  {update}/{self._stage.updates}  "
            f"loss {entry['loss']:.3g}  {rate:.0f} updates/s"
        )
