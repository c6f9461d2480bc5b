"""Where a run is, by its folder alone: beside a run at work, or of one that is broken.

Nothing is written, no device is asked and no lock is kept. What cannot be read is left
out, and named among the warnings.
"""

import dataclasses
import math
import os
import time

from tqdm import tqdm

from pd_jax.reports import report
from pd_jax.runs import record as records
from pd_jax.runs import workdir as workdirs
from pd_jax.runs.record import Record
from pd_jax.runs.stage_record import StageRecord
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused

NUMBERS = f"{'':14}{'updates':>15}{'loss':>10}{'updates/s':>11}"  # 50 columns
LAST = "last checkpoint"


@dataclasses.dataclass
class Status:
    """Where a run is.

    Attributes:
      record: what its folder says.
      in_use: whether a process has the folder now; None where that cannot be told.
    """

    record: Record
    in_use: bool | None

    @property
    def warnings(self) -> list[str]:
        """What a person should know; of a complete run, what its report warns of."""
        record = self.record
        texts = record.warnings + record.report.get("warnings", [])
        for stage in record.stages:
            if stage.skipped and not record.finished:
                skipped = f"{stage.skipped} updates skipped, not finite"
                texts.append(f"{stage.name}: {skipped}")
            if stage.planned and stage.end < stage.planned:
                early = f"after {stage.end} of {stage.planned}"
                texts.append(f"{stage.name} ended early, {early}")
        if record.set_aside:
            texts.append(f"set aside as damaged: {', '.join(record.set_aside)}")
        return texts

    @property
    def left(self) -> dict[str, float | None]:
        """Seconds left of each part, at the pace so far; None where there is none."""
        record, left = self.record, {}
        if record.finished:
            return {}
        trainings = [stage.training for stage in record.stages if stage.training]
        for part in dict.fromkeys(trainings):
            stages = [stage for stage in record.stages if stage.training == part]
            rates = [stage.rate for stage in stages if stage.rate]
            updates = sum(max(0, stage.end - self.done(stage)) for stage in stages)
            if not all(stage.finished for stage in stages):
                left[part] = updates / rates[-1] if rates else None
        if record.missing:
            steps = sum(row["num_steps"] for row in record.rows)
            steps_left = sum(row.num_steps for row in record.missing)
            seconds = record.seconds["evaluation"]
            left["evaluation"] = seconds / steps * steps_left if seconds else None
        return left

    def done(self, stage: StageRecord) -> int:
        """Updates of a stage that need not be done again."""
        at_work = self.in_use is not False or self.record.finished
        return stage.done if at_work else stage.saved


def read(workdir: str | os.PathLike) -> Status:
    """Looks at a run's folder.

    Raises:
      Refused: where there is none.
    """
    workdir = workdirs.path(workdir)
    if not workdir.is_dir():
        raise Refused(f"--workdir={workdir}: no such folder")
    if not any((workdir / name).exists() for name in ("config.json", *records.PARTS)):
        raise Refused(f"--workdir={workdir}: no folder of a run: no config.json there")
    return Status(records.look(workdir), workdirs.in_use(workdir))


def tell(status: Status) -> None:
    """Prints a status, as wide as the terminal but for long names."""
    record = status.record
    state = {
        True: "a process is at work on it",
        False: "no process is at work on it; the same command goes on",
        None: "storage that does not tell whether a process is at work on it",
    }[status.in_use]
    console.show(f"{record.folder}: {'complete' if record.finished else state}\n")
    lines = [_line(stage, status.done(stage)) for stage in record.stages]
    wide = console.width() >= console.MAX_WIDTH
    head = [f"{NUMBERS}  {LAST}" if wide else NUMBERS]
    console.show("\n".join([*head, *lines, ""]))
    total = len(record.rows) + len(record.missing)
    console.show(f"{len(record.rows)} of {total or '?'} rows measured")
    if record.rows:
        console.show(report.summary(record.rows, console.width()))
    console.show("")
    if status.left:
        parts = [
            f"{part} {'not known yet' if s is None else tqdm.format_interval(s)}"
            for part, s in status.left.items()
        ]
        console.show(f"time left, about: {', '.join(parts)}")
    if record.lines_at:
        console.show(f"metrics.jsonl: last written to {_ago(record.lines_at)}")
    sizes = record.sizes
    parts = [f"{name} {_bytes(n)}" for name, n in sizes.items() if n]
    console.show(f"on disk: {_bytes(sum(sizes.values()))}: {', '.join(parts)}")
    for warning in status.warnings:
        console.warn(f"warning: {warning}")


def _line(stage: StageRecord, done: int) -> str:
    """A line of the stages' table."""
    if not done:
        return f"{stage.name:14}{'not begun':>15}"
    loss, saved = stage.lines[-1].loss if stage.lines else math.nan, "none yet"
    if stage.saved_at:
        at = "" if stage.saved == done else f"{stage.saved}, "
        saved = f"{at}{_ago(stage.saved_at)}, {_bytes(stage.saved_bytes)}"
    cells = (
        f"{done}/{stage.end or '?'}".rjust(15),
        ("-" if math.isnan(loss) else f"{loss:.3g}").rjust(10),
        ("-" if stage.rate is None else f"{stage.rate:.3g}").rjust(11),
    )
    numbers = f"{stage.name:14}{''.join(cells)}"
    if console.width() >= console.MAX_WIDTH:
        return f"{numbers}  {saved}"
    return f"{numbers}\n  {LAST}: {saved}"


def _ago(moment: float) -> str:
    return f"{tqdm.format_interval(max(0.0, time.time() - moment))} ago"


def _bytes(number: int) -> str:
    power = min(4, max(0, len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
