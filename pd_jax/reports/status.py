"""Where a run is, by its folder alone: beside a run at work, or of one that is broken.

Nothing is written, no device is asked and no lock is kept. What cannot be read is left
out, and named among the warnings.
"""

import dataclasses
import os
import re
import time

from etils import epath
from tqdm import tqdm

from pd_jax import checkpoint
from pd_jax import config as configs
from pd_jax.evaluation.rows import Row, check_entry, planned_rows, row_of
from pd_jax.reports import report
from pd_jax.runs import workdir as workdirs
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import JsonLines

HEAD = f"{'':14}{'updates':>15}{'loss':>10}{'updates/s':>11}  last checkpoint"
PARTS = ("checkpoints", "evaluation", "samples", "damaged")  # of a run's folder


@dataclasses.dataclass
class StageStatus:
    """Where one stage is.

    Attributes:
      name: its name, "teacher" or "student_N".
      planned: updates of the whole stage; None where that is not known.
      saved: updates done in the newest checkpoint, 0 where there is none.
      line: the newest entry of metrics.jsonl, {} where there is none.
      end: updates at which the stage ends, fewer than planned on a plateau.
      rate: updates a second, between the newest checkpoints; None where not known.
      saved_at: when the newest checkpoint was made, in seconds since the epoch.
      saved_bytes: its size.
      skipped: updates skipped, for a loss or gradient that is not finite.
    """

    name: str
    planned: int | None
    saved: int = 0
    line: dict = dataclasses.field(default_factory=dict)
    end: int | None = None
    rate: float | None = None
    saved_at: float | None = None
    saved_bytes: int = 0
    skipped: int = 0

    @property
    def finished(self) -> bool:
        """Whether its last update is saved."""
        return self.end is not None and self.saved >= self.end


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
    stages: list[StageStatus]
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
    warnings: list[str] = []
    finished = workdirs.report_of(workdir)
    rows = _rows(workdir, warnings)
    stages, wanted = _plan(workdir, _json(workdir / "config.json", warnings))
    in_use = workdirs.in_use(workdir)
    _read_lines(workdir / "metrics.jsonl", stages)
    for stage in stages:
        _read_checkpoints(workdir / "checkpoints" / stage.name, stage, warnings)
    measured = {row_of(entry).name for entry in rows}
    missing = [row for row in wanted if row.name not in measured]
    if finished:
        said = finished.get("warnings")
        warnings += map(str, said if isinstance(said, list) else [])
        missing = []
    warnings += _doubts(stages, complete=finished is not None)
    aside = _names(workdir / "damaged")
    if aside:
        warnings.append(f"set aside as damaged: {', '.join(aside)}")
    return Status(
        workdir=os.fspath(workdir),
        complete=finished is not None,
        in_use=in_use,
        stages=stages,
        rows=rows,
        missing=missing,
        left={} if finished else _left(stages, rows, missing, in_use is not False),
        lines_at=_changed(workdir / "metrics.jsonl"),
        sizes=_sizes(workdir),
        warnings=warnings,
    )


def _json(path: epath.Path, warnings: list[str]) -> dict:
    """A JSON object; {} where there is none, with a warning where it is damaged."""
    try:
        return files.read_json(path)
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        warnings.append(str(error))
        return {}


def _names(path: epath.Path) -> list[str]:
    """What is in a folder, which may be gone."""
    try:
        return sorted(p.name for p in path.iterdir())
    except OSError:
        return []


def _changed(path: epath.Path) -> float | None:
    try:
        return path.stat().mtime
    except OSError:
        return None


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


def _plan(workdir: epath.Path, config: dict) -> tuple[list[StageStatus], list[Row]]:
    """Stages and rows of a run; by its folders, where its config does not tell."""
    names = _names(workdir / "checkpoints")
    students = [int(n[8:]) for n in names if re.fullmatch("student_[0-9]{1,8}", n)]
    students.sort(reverse=True)
    try:
        known = configs.default("digits", "mlp", **configs.trainings(config))
        for key in (*configs.trainings(config), "eval"):
            known[key].update(config[key])
        stages = configs.stages(known, names)
        rows = planned_rows(known["eval"], [(method, s) for _, method, s in stages])
        return [StageStatus(s.name, int(s.updates)) for *_, s in stages], rows
    except (LookupError, TypeError, ValueError, AttributeError):
        found = ["teacher"] * ("teacher" in names) + [f"student_{n}" for n in students]
        return [StageStatus(name, None) for name in found], []


def _rows(workdir: epath.Path, warnings: list[str]) -> list[dict]:
    """Entries of the rows that are measured."""
    rows = []
    for name in _names(workdir / "evaluation"):
        if not re.fullmatch(r"\w+_[0-9]+\.json", name):
            continue
        try:
            rows.append(check_entry(files.read_json(workdir / "evaluation" / name)))
        except (ValueError, OSError) as error:
            warnings.append(f"evaluation/{name} cannot be read: {error}")
    return sorted(rows, key=lambda r: (r["model"] == "student", -r["num_steps"]))


def _number(value: object) -> float | None:
    """A number that JSON held, if it is one."""
    return value if isinstance(value, int | float) and 0 <= value < 1e15 else None


def _read_lines(path: epath.Path, stages: list[StageStatus]) -> None:
    """Adds what metrics.jsonl says of each stage."""
    known = {stage.name: stage for stage in stages}
    try:
        for entry in JsonLines(path).read():
            stage = known.get(str(entry["stage"]))
            if stage is not None and isinstance(entry["update"], int):
                stage.line = entry
                stage.skipped += int(_number(entry.get("skipped")) or 0)
    except OSError:
        pass  # gone, or being written anew


def _read_checkpoints(
    path: epath.Path, stage: StageStatus, warnings: list[str]
) -> None:
    """Adds what a stage's checkpoints say."""
    stage.end = stage.planned
    updates = [int(n) for n in _names(path) if re.fullmatch("[0-9]{1,10}", n)]
    facts = []
    for update in sorted(updates)[-2:]:
        try:
            found = files.read_json(path / str(update) / "facts" / "metadata")
            if found.get("format") not in (1, checkpoint.FORMAT):
                raise ValueError(f"format {found.get('format')}, of another version")
            facts.append((update, _number(found.get("seconds"))))
        except (ValueError, OSError) as error:
            warnings.append(f"checkpoints/{stage.name}/{update}: {error}")
            continue
        stage.end = int(_number(found.get("end")) or 0) or stage.planned
        stage.skipped = max(stage.skipped, int(_number(found.get("skipped")) or 0))
    if not updates:
        return
    stage.saved = max(updates)
    newest = path / str(stage.saved)
    stage.saved_at, stage.saved_bytes = _changed(newest), _size(newest)
    known = [(0, 0.0), *((u, s) for u, s in facts if s is not None)][-2:]
    if len(known) == 2 and known[1][1] > known[0][1]:
        (before, began), (after, ended) = known
        stage.rate = (after - before) / (ended - began)


def _doubts(stages: list[StageStatus], complete: bool) -> list[str]:
    """Warnings of stages; of a complete run, what its report does not warn of."""
    found = []
    for stage in stages:
        if stage.skipped and not complete:
            found.append(f"{stage.name}: {stage.skipped} updates skipped, not finite")
        if stage.finished and stage.planned and stage.end < stage.planned:
            found.append(
                f"{stage.name} ended early, after {stage.end} of {stage.planned}"
            )
    return found


def _at(stage: StageStatus, at_work: bool) -> int:
    """Updates that need not be done again."""
    return max(stage.saved, stage.line.get("update", 0) if at_work else 0)


def _left(
    stages: list[StageStatus], rows: list[dict], missing: list[Row], at_work: bool
) -> dict[str, float | None]:
    """Seconds left of each part, at the pace so far; None where there is none yet."""
    left = {}
    for part in ("teacher", "ladder"):
        mine = [s for s in stages if (s.name == "teacher") == (part == "teacher")]
        rates = [s.rate for s in mine if s.rate]
        if mine and not all(s.finished for s in mine):
            updates = sum(max(0, (s.end or 0) - _at(s, at_work)) for s in mine)
            known = rates and all(s.end is not None for s in mine)
            left[part] = updates / rates[-1] if known else None
    if missing:
        seconds = sum(_number(row.get("seconds")) or 0.0 for row in rows)
        steps = sum(row["num_steps"] for row in rows)
        each = seconds / steps if seconds and steps else None
        steps_left = sum(row.num_steps for row in missing)
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
    console.show("\n".join([HEAD, *(_line(s, at_work) for s in status.stages), ""]))
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


def _line(stage: StageStatus, at_work: bool) -> str:
    """A line of the stages' table."""
    done = _at(stage, at_work)
    if not done:
        return f"{stage.name:14}{'not begun':>15}"
    loss, saved = _number(stage.line.get("loss")), "none yet"
    if stage.saved_at:
        at = "" if stage.saved == done else f"{stage.saved}, "
        saved = f"{at}{_ago(stage.saved_at)}, {_bytes(stage.saved_bytes)}"
    cells = (
        f"{done}/{stage.end or '?'}".rjust(15),
        ("-" if loss is None else f"{loss:.3g}").rjust(10),
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
