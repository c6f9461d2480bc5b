"""Where a run is, by its folder alone: beside a run at work, or of one that is broken.

Nothing is written, no device is asked and no lock is kept. What cannot be read is left
out, and named among the warnings.
"""

import dataclasses
import math
import os
import time

from etils import epath
from tqdm import tqdm

from pd_jax.evaluation.rows import Row
from pd_jax.reports import report
from pd_jax.runs import record as records
from pd_jax.runs import workdir as workdirs
from pd_jax.runs.stage_record import StageRecord
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused

HEAD = f"{'':14}{'updates':>15}{'loss':>10}{'updates/s':>11}  last checkpoint"
PARTS = ("checkpoints", "evaluation", "samples", "damaged")  # of a run's folder


@dataclasses.dataclass
class Status:
    """Where a run is.

    Attributes:
      workdir: its folder.
      complete: whether its report is written.
      in_use: whether a process has the folder now; None where that cannot be told.
      stages: all stages that are known of, in order.
      rows: entries of the rows that are measured, as in report.json.
      missing: rows that are not.
      left: seconds left of each part, None where not known yet.
      lines_at: when metrics.jsonl was last written to, in seconds since the epoch.
      sizes: bytes on disk, by part.
      warnings: what a person should know.
    """

    workdir: str
    complete: bool
    in_use: bool | None
    stages: list[StageRecord]
    rows: list[dict]
    missing: list[Row]
    left: dict[str, float | None]
    lines_at: float | None
    sizes: dict[str, int]
    warnings: list[str]


def read(workdir: str | os.PathLike) -> Status:
    """Looks at a run's folder.

    Raises:
      Refused: where there is none.
    """
    workdir = workdirs.path(workdir)
    if not workdir.is_dir():
        raise Refused(f"--workdir={workdir}: no such folder")
    if not any((workdir / name).exists() for name in ("config.json", *PARTS)):
        raise Refused(f"--workdir={workdir}: no folder of a run: no config.json there")
    record, in_use = records.look(workdir), workdirs.in_use(workdir)
    aside = _names(workdir / "damaged")
    warnings = record.damage + record.report.get("warnings", [])
    warnings += _doubts(record.stages, record.finished)
    if aside:
        warnings.append(f"set aside as damaged: {', '.join(aside)}")
    return Status(
        workdir=os.fspath(workdir),
        complete=record.finished,
        in_use=in_use,
        stages=record.stages,
        rows=record.rows,
        missing=record.missing,
        left={} if record.finished else _left(record, in_use is not False),
        lines_at=records.modified(workdir / "metrics.jsonl"),
        sizes=_sizes(workdir),
        warnings=warnings,
    )


def _names(path: epath.Path) -> list[str]:
    """What is in a folder, which may be gone."""
    try:
        return sorted(p.name for p in path.iterdir())
    except OSError:
        return []


def _size(path: epath.Path) -> int:
    """Bytes of a file, or of all below a folder; some may go meanwhile."""
    try:
        if path.is_dir():
            return sum(map(_size, path.iterdir()))
        return path.stat().length
    except OSError:
        return 0


def _sizes(workdir: epath.Path) -> dict[str, int]:
    sizes = dict.fromkeys((*PARTS, "other"), 0)
    for name in _names(workdir):
        sizes[name if name in PARTS else "other"] += _size(workdir / name)
    return sizes


def _doubts(stages: list[StageRecord], complete: bool) -> list[str]:
    """Warnings of stages; of a complete run, what its report does not warn of."""
    texts = []
    for stage in stages:
        if stage.skipped and not complete:
            texts.append(f"{stage.name}: {stage.skipped} updates skipped, not finite")
        if stage.finished and stage.planned and stage.end < stage.planned:
            texts.append(
                f"{stage.name} ended early, after {stage.end} of {stage.planned}"
            )
    return texts


def _at(stage: StageRecord, at_work: bool) -> int:
    """Updates that need not be done again."""
    return stage.done if at_work else stage.saved


def _left(record: records.Record, at_work: bool) -> dict[str, float | None]:
    """Seconds left of each part, at the pace so far; None where there is none yet."""
    left = {}
    for part in dict.fromkeys(stage.training for stage in record.stages):
        stages = [stage for stage in record.stages if stage.training == part]
        rates = [stage.rate for stage in stages if stage.rate]
        if not all(stage.finished for stage in stages):
            updates = sum(max(0, (s.end or 0) - _at(s, at_work)) for s in stages)
            known = rates and all(stage.end is not None for stage in stages)
            left[part] = updates / rates[-1] if known else None
    if record.missing:
        seconds = record.seconds["evaluation"]
        steps = sum(row["num_steps"] for row in record.rows)
        each = seconds / steps if seconds and steps else None
        steps_left = sum(row.num_steps for row in record.missing)
        left["evaluation"] = each * steps_left if each else None
    return left


def tell(status: Status) -> None:
    """Prints a status, within 80 columns but for long names."""
    state = {
        True: "a process is at work on it",
        False: "no process is at work on it; the same command goes on",
        None: "storage that does not tell whether a process is at work on it",
    }[status.in_use]
    console.show(f"{status.workdir}: {'complete' if status.complete else state}\n")
    at_work = status.in_use is not False
    folder = epath.Path(status.workdir) / "checkpoints"
    lines = [_line(s, folder / s.name, at_work) for s in status.stages]
    console.show("\n".join([HEAD, *lines, ""]))
    total = len(status.rows) + len(status.missing)
    console.show(f"{len(status.rows)} of {total or '?'} rows measured")
    if status.rows:
        console.show(report.table(status.rows, everything=False))
    console.show("")
    if status.left:
        console.show(f"time left, about: {_times(status.left)}")
    if status.lines_at:
        console.show(f"metrics.jsonl: last written to {_ago(status.lines_at)}")
    parts = [f"{name} {_bytes(n)}" for name, n in status.sizes.items() if n]
    total = _bytes(sum(status.sizes.values()))
    console.show(f"on disk: {total}: {', '.join(parts)}")
    for warning in status.warnings:
        console.warn(f"warning: {warning}")


def _line(stage: StageRecord, folder: epath.Path, at_work: bool) -> str:
    """A line of the stages' table; `folder` is that of its checkpoints."""
    done = _at(stage, at_work)
    if not done:
        return f"{stage.name:14}{'not begun':>15}"
    loss = stage.lines[-1].loss if stage.lines else math.nan
    saved = "none yet"
    if stage.saved_at:
        at = "" if stage.saved == done else f"{stage.saved}, "
        size = _size(folder / str(stage.saved))
        saved = f"{at}{_ago(stage.saved_at)}, {_bytes(size)}"
    cells = (
        f"{done}/{stage.end or '?'}".rjust(15),
        ("-" if math.isnan(loss) else f"{loss:.3g}").rjust(10),
        ("-" if stage.rate is None else f"{stage.rate:.3g}").rjust(11),
    )
    return f"{stage.name:14}{''.join(cells)}  {saved}"


def _times(left: dict[str, float | None]) -> str:
    parts = [
        f"{part} {'not known yet' if s is None else tqdm.format_interval(s)}"
        for part, s in left.items()
    ]
    return ", ".join(parts)


def _ago(moment: float) -> str:
    return f"{tqdm.format_interval(max(0.0, time.time() - moment))} ago"


def _bytes(number: int) -> str:
    power = min(4, max(0, len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
