"""The hot loop of one stage: the device always has its next update waiting."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pd_jax.runtime import processes
from pd_jax.runtime.progress import Progress
from pd_jax.training.callbacks import Callbacks
from pd_jax.training.pace import Pace
from pd_jax.training.stage import Stage
from pd_jax.training.training import Training

BATCHES = 4  # of the training's size, in every measurement of the validation loss


class Diverged(RuntimeError):
    """A loss or gradient that is not finite, in too many updates in a row."""


class Loop:
    """Feeds a stage's step, and writes its metrics as means over intervals.

    Attributes:
      done: updates done in the stage.
      end: updates at which the stage ends; fewer than planned once its validation loss
        has stopped improving.
    """

    def __init__(
        self,
        training: Training,
        stage: Stage,
        done: int,
        facts: dict,
        options: ConfigDict,
        callbacks: Callbacks,
        progress: Progress,
    ):
        """Goes on after `done` updates.

        Args:
          done: updates done, as saved with `facts`.
          facts: this class's own of before, or none of them.
          options: the config's section `run`.
        """
        self.done, self.end = done, facts.get("end", stage.updates)
        losses = facts.get("validation_loss", {})
        self._validation = {int(update): loss for update, loss in losses.items()}
        self._skipped = facts.get("skipped", 0)
        self._in_a_row = facts.get("skipped_in_a_row", 0)
        self._training, self._stage = training, stage
        self._every, self._progress = options.log_updates, progress
        self._callbacks = callbacks
        self._most_skipped = options.most_skipped
        self._batches = training.dataset.batches(
            done * training.batch,
            training.batch,
            (*training.seed, stage.index),
            processes.part(),
            options.data_workers,
        )
        self._feed = training.step.feed(self._batches)
        self._pace = Pace()
        if training.measure:
            self._checked = _validation_batches(training)
        self._held: list[dict] = []  # this interval's metrics, still on the device
        self._late: tuple[int, list[dict]] | None = None  # those of the one before
        self._work = training.work
        self._ended = done  # updates, as far as is known
        self._loss = ""

    def passed(self, every: int) -> bool:
        """Whether the last call went past a multiple of `every` updates."""
        return self.done // every != (self.done - self._training.step.substeps) // every

    def fetch(self) -> Exception | None:
        """Takes the next call's batch; returns what kept it from coming, if anything.

        Of several processes one may fail alone: its error is raised.
        """
        try:
            self._batch = next(self._feed)
        except Exception as error:
            if processes.part() != (0, 1):
                raise
            return error
        return None

    def call(self, state):
        """One call of the step on what was fetched; the new state is not waited for."""
        training = self._training
        state, metrics = training.step(state, self._batch, training.key)
        self.done += training.step.substeps
        self._held.append(metrics)
        self._advance(self._pace.add(metrics))
        if self.passed(self._every):
            self._write(self._late)
            self._late, self._held = (self.done, self._held), []
        return state

    def _advance(self, calls: int) -> None:
        """Tells of calls that have ended."""
        if not calls:
            return
        name, updates = self._training.name, calls * self._training.step.substeps
        self._ended += updates
        text = f"{self._stage.name}  {self._ended}/{self.end}{self._loss}"
        if self._pace.rate is not None:
            rate = self._pace.rate * self._training.step.substeps
            text += f"  {rate:.0f}" if rate >= 10 else f"  {rate:#.2g}"
            text += " updates/s"
        self._progress.advance(name, updates * self._work, text)

    @property
    def facts(self) -> dict:
        """What to save with the state, for a loop that goes on from it."""
        return {
            "end": self.end,
            "validation_loss": dict(self._validation),
            "skipped": self._skipped,
            "skipped_in_a_row": self._in_a_row,
        }

    def check(self, state):
        """Measures the validation loss where due; may bring the stage's end nearer.

        Returns:
          The state, whose stage may have fewer updates than before.
        """
        training, planned = self._training, self._stage.updates
        rule = training.plateau
        if not rule.due(self.done) or self.done in self._validation:
            return state
        loss = training.measure(state, self._checked)
        # What processes decide on is one and the same number.
        self._validation[self.done] = processes.on_first_process(lambda: loss)
        self.flush()
        if self.end == planned and rule.reached(list(self._validation.values())):
            cooldown = training.method.parts.optimizer.cooldown
            self.end = rule.end(self.done, planned, cooldown)
            updates = training.step.place(jnp.int32(self.end))
            state = state.replace(stage={**state.stage, "updates": updates})
            self._progress.drop(training.name, (planned - self.end) * self._work)
            self._progress.say(
                f"{self._stage.name}: a plateau at update {self.done}, ends after "
                f"{self.end} of {planned} updates"
            )
        return state

    def close(self) -> None:
        """Ends the reading of data."""
        self._feed.close()
        self._batches.close()

    def flush(self) -> bool:
        """Writes all that is still held; waits for the device.

        Returns:
          Whether the last update was made. Weights from which no update can be made
          may be lost ones, not to be kept in place of those before.

        Raises:
          Diverged: where too many updates in a row were skipped.
        """
        self._advance(self._pace.drain())
        self._write(self._late)
        self._write((self.done, self._held))
        self._late, self._held = None, []
        self._callbacks.flush()
        return not self._in_a_row

    def _write(self, interval: tuple[int, list[dict]] | None) -> None:
        if interval is None or not interval[1]:
            return
        update, metrics = interval
        metrics = jax.device_get(metrics)
        figures = {
            name: np.concatenate([np.atleast_1d(m[name]) for m in metrics])
            for name in metrics[0]
        }
        skipped = figures.pop("skipped").astype(bool)
        entry = {"stage": self._stage.name, "update": update}
        for name, values in figures.items():
            made = values[~skipped]
            entry[name] = float(made.mean(dtype=np.float64)) if made.size else None
        entry["skipped"] = int(skipped.sum())
        numbers = np.arange(update - len(skipped) + 1, update + 1)
        if skipped.any():
            entry["skipped_at"] = [self._place(n) for n in numbers[skipped]]
        if update in self._validation:
            entry["validation_loss"] = self._validation[update]
        self._callbacks.on_metrics(entry)
        self._count(numbers, skipped, figures)
        loss = "not finite" if entry["loss"] is None else f"{entry['loss']:.3g}"
        self._loss = f"  loss {loss}"

    def _place(self, update: int) -> dict:
        """An update, and the first and last places in the data's order that it saw."""
        end = int(update) * self._training.batch
        return {
            "update": int(update),
            "examples": [end - self._training.batch, end - 1],
        }

    def _count(self, numbers: np.ndarray, skipped: np.ndarray, figures: dict) -> None:
        """Counts and tells what was skipped of updates with these numbers."""

        def tell(i):
            text = f"the loss is {figures['loss'][i]}, the gradient's norm "
            return f"{text}{figures['grad_norm'][i]} at update {numbers[i]}"

        self._skipped += int(skipped.sum())
        for i, skip in enumerate(skipped):
            self._in_a_row = self._in_a_row + 1 if skip else 0
            if self._in_a_row >= self._most_skipped:
                self._callbacks.flush()
                raise Diverged(
                    f"{self._stage.name}: {tell(i)}, with learning rate "
                    f"{figures['learning_rate'][i]:.3g}; updates skipped in a row: "
                    f"{self._in_a_row} (run.most_skipped). The last checkpoint before "
                    "them is kept. A lower learning rate may help."
                )
        if skipped.any():
            first = int(np.argmax(skipped))
            a, b = self._place(numbers[first])["examples"]
            self._progress.warn(
                f"{self._stage.name}: {skipped.sum()} of {len(skipped)} updates "
                f"skipped; {tell(first)}, with examples {a} to {b} of the data's order"
            )


def _validation_batches(training: Training) -> dict:
    """The examples of every check, evenly from all of those held back, placed."""
    held_back = training.dataset.reference
    parts = BATCHES * training.method.parts.optimizer.microbatches
    index, count = processes.part()
    rows = np.arange(BATCHES * training.batch) * len(held_back)
    rows = (rows // len(rows)).reshape(parts, count, -1)[:, index]
    return training.step.share(held_back.take(rows.ravel()), parts)
