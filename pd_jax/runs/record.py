"""What a run's folder says of the run, whether it is finished, running or stopped.

This is its only reader. Only files are read, no checkpoint's weights and no device, so
that a folder of any machine can be looked at while its run goes on.
"""

import contextlib
import dataclasses
import functools
import os
import re
import shlex
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from etils import epath

from pd_jax import config as configs
from pd_jax.evaluation import self_consistency
from pd_jax.evaluation.rows import (
    Row,
    by_series,
    check_entry,
    check_values,
    planned_rows,
    row_of,
)
from pd_jax.runs.stage_record import Line, StageRecord, count, modified, number, size
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space
from pd_jax.storage import files
from pd_jax.storage.writers import JsonLines

PARTS = ("checkpoints", "evaluation", "samples", "damaged")  # of a run's folder

# What files that are not as a run wrote them lead to.
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)


@dataclasses.dataclass
class Record:
    """All that a run's folder says.

    Attributes:
      folder: the folder.
      name: the run's name.
      config: its config.json.
      stages: in order.
      rows: what is measured: entries of `check_entry`'s form, teacher first, many
        steps first.
      missing: rows that are not.
      report: its report.json, or {} before the run is finished.
      seconds: of "evaluation" at least.
      warnings: what could not be read, and why.
      kind: what the data is, of `pd_jax.space`; "" where no checkpoint tells.
    """

    folder: epath.Path
    name: str
    config: dict
    stages: list[StageRecord]
    rows: list[dict]
    missing: list[Row]
    report: dict
    seconds: dict[str, float]
    warnings: list[str]
    kind: str = ""

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return bool(self.report)

    @property
    def metrics(self) -> list[str]:
        """Names of all metrics, in the rows' order."""
        return list(dict.fromkeys(name for row in self.rows for name in row["metrics"]))

    @property
    def step_counts(self) -> list[int]:
        """All rows' step counts, most first."""
        return sorted({row["num_steps"] for row in self.rows}, reverse=True)

    @property
    def title(self) -> str:
        """What the run distils by."""
        return configs.title(self.config)

    @property
    def series(self) -> dict[str, list[dict]]:
        """The rows as curves: `evaluation.rows.by_series`."""
        return by_series(self.rows)

    @property
    def students(self) -> list[dict]:
        """Rows of the last training's students, fewest steps first."""
        made = [rows for rows in self.series.values() if rows[0]["model"] == "student"]
        return made[-1] if made else []

    def row(self, series: str, num_steps: int) -> dict | None:
        """A row of a series by its steps, where it was measured."""
        rows = self.series.get(series, ())
        return next((row for row in rows if row["num_steps"] == num_steps), None)

    def value(self, series: str, num_steps: int, metric: str) -> float | None:
        """One figure, where it was measured."""
        row = self.row(series, num_steps)
        return row and row["metrics"].get(metric)

    def sampling(self, series: str, num_steps: int) -> dict[str, float]:
        """What sampling took: "batch" and "batch_seconds"; {} if that is not known."""
        row = self.row(series, num_steps)
        if row is None:
            return {}
        times = self.report.get("sampling", {}).get(row_of(row).name)
        times = times or row.get("sampling")
        times = times if isinstance(times, dict) else {}
        found = {k: number(times.get(k)) for k in ("batch", "batch_seconds")}
        return found if all(found.values()) else {}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes on disk, by part."""
        sizes = dict.fromkeys((*PARTS, "other"), 0)
        for name in names(self.folder):
            sizes[name if name in PARTS else "other"] += size(self.folder / name)
        return sizes

    @property
    def set_aside(self) -> list[str]:
        """Names of the checkpoints that were damaged."""
        return names(self.folder / "damaged")

    @property
    def lines_at(self) -> float | None:
        """When metrics.jsonl was last written to, in seconds since the epoch."""
        return modified(self.folder / "metrics.jsonl")

    @functools.cached_property
    def reference(self) -> np.ndarray | None:
        """The teacher's best samples [N, ...], which those of all rows are held to."""
        return _samples(self.folder / "evaluation" / "reference_teacher.npy")

    @functools.cached_property
    def space(self) -> Space | None:
        """What the reference's samples are; None without it."""
        if self.reference is None:
            return None
        shape = self.reference.shape[1:]
        with contextlib.suppress(Refused):  # of files that do not belong together
            return Space.of(shape, self.kind)
        return Space.of(shape)

    @property
    def exact(self) -> np.ndarray | None:
        """Where the exact probability flow takes the same noise, if that is known."""
        return self._like(_samples(self.folder / "evaluation" / "reference_exact.npy"))

    @functools.cached_property
    def examples(self) -> np.ndarray | None:
        """Some examples of the data [N, ...]."""
        return self._like(_samples(self.folder / "evaluation" / "examples.npy"))

    @functools.cached_property
    def examples_labels(self) -> np.ndarray | None:
        """The examples' labels [N]; None without."""
        path = self.folder / "evaluation" / "examples_labels.npy"
        return None if self.examples is None else _labels(path, len(self.examples))

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Labels [N] of the samples of every row and of the reference; None without."""
        path = self.folder / "evaluation" / "labels.npy"
        return None if self.reference is None else _labels(path, len(self.reference))

    @property
    def class_names(self) -> list[str]:
        """The classes' names by label; [] if they have none, or no checkpoint tells."""
        return next((stage.classes for stage in self.stages if stage.classes), [])

    @functools.cached_property
    def floor(self) -> dict:
        """Figures of one half of the data against the other, as a row; {} without."""
        found = self.report.get("floor")
        path = self.folder / "evaluation" / "floor.json"
        if found is None and path.exists():
            found = _attempt(lambda: _values(files.read_json(path)), {}, self.warnings)
        return found or {}

    @functools.cached_property
    def self_consistency(self) -> dict:
        """How far models agree with themselves along a path; {} without."""
        found = self.report.get("self_consistency")
        path = self.folder / "evaluation" / self_consistency.FILE
        if found is None and path.exists():
            read = functools.partial(files.read_json, path)
            found = _attempt(lambda: self_consistency.check(read()), {}, self.warnings)
        return found or {}

    def samples(self, row: dict) -> np.ndarray | None:
        """The first samples of a row [N, ...], from the same noise as the reference."""
        path = self.folder / "evaluation" / f"{row_of(row).name}.npy"
        return self._like(_samples(path))

    def _like(self, x: np.ndarray | None) -> np.ndarray | None:
        """`x` where its examples have the reference's shape, else None."""
        mine = None if self.reference is None else self.reference.shape[1:]
        return None if x is None or x.shape[1:] != mine else x


def read(
    folder: str | os.PathLike, name: str | None = None, report: dict | None = None
) -> Record:
    """Reads a run's folder.

    Args:
      folder: the folder.
      name: the run's name; as its report says, or else the folder's, where None.
      report: the report, where it is not on disk yet.

    Raises:
      Refused: where config.json, report.json or metrics.jsonl are not a run's.
    """
    folder = epath.Path(folder)
    config_of(folder)
    record, wrong = _read(folder, name, report)
    if wrong:
        raise Refused(f"{folder}: not the files of a run ({wrong[0]})")
    return record


def look(folder: str | os.PathLike) -> Record:
    """Reads what can be read of a folder, whatever it is."""
    record, wrong = _read(epath.Path(folder))
    record.warnings[:0] = wrong
    return record


def config_of(folder: epath.Path) -> dict:
    """A run's config.json; Refused where there is none."""
    path = folder / "config.json"
    if not path.exists():
        raise Refused(f"{folder}: no config.json there: no folder of a run")
    return files.read_json(path)


def report_of(folder: epath.Path) -> dict:
    """A complete run's report; {} where there is none that can be read."""
    return _attempt(lambda: _report(folder), {}, [])


def names(folder: epath.Path) -> list[str]:
    """What is in a folder, which may be gone."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _attempt(
    read: Callable[[], Any], otherwise: Any, errors: list[str], about: str = ""
) -> Any:
    """What `read` returns; where it fails something else, with the error added."""
    try:
        return read()
    except (*DAMAGE, OSError) as error:
        errors.append(about + files.brief(error))
        return otherwise


def _read(
    folder: epath.Path, name: str | None = None, report: dict | None = None
) -> tuple[Record, list[str]]:
    """All of a folder; and what is wrong with the files that make it a run's."""
    wrong, warnings = [], []
    report = _attempt(lambda: _report(folder, report), {}, wrong)
    config = _attempt(lambda: config_of(folder), None, wrong)
    updates, begun = report.get("updates", {}), names(folder / "checkpoints")
    planned, missing = [], []
    if config is not None:
        plan = functools.partial(_planned, config, {*begun, *updates})
        planned, missing = _attempt(plan, ([], []), wrong, "config.json: ")
    lines = _lines(folder / "metrics.jsonl", wrong)
    stages = planned or [StageRecord(name) for name in begun]
    for stage in stages:
        stage.lines = lines.get(stage.name, [])
        _add_checkpoints(stage, folder / "checkpoints" / stage.name, warnings)
        if stage.name in updates:  # its checkpoints may be gone
            stage.done = stage.end = updates[stage.name]["done"]
    if not planned:  # as they were made
        stages = sorted((s for s in stages if s.saved), key=lambda s: s.saved_at or 0.0)
    elif updates:  # without those that were left out
        stages = [stage for stage in stages if stage.name in updates]
    rows = report.get("rows") or _rows(folder / "evaluation", warnings)
    rows.sort(key=lambda row: (row["model"] != "teacher", -row["num_steps"]))
    measured = {row_of(row).name for row in rows}
    seconds = {"evaluation": sum(number(row.get("seconds")) or 0.0 for row in rows)}
    record = Record(
        folder=folder,
        name=str(name or report.get("config") or folder.name),
        config=config or {},
        stages=stages,
        rows=rows,
        missing=[r for r in missing if r.name not in measured and not report],
        report=report,
        seconds=seconds | report.get("seconds", {}),
        warnings=warnings,
        kind=next((stage.kind for stage in stages if stage.kind), ""),
    )
    return record, wrong


def _report(folder: epath.Path, report: dict | None = None) -> dict:
    """A report, of `folder` by default, whose numbers are in range; {} for none."""
    path = folder / "report.json"
    if report is None and not path.exists():
        return {}
    report = report or files.read_json(path)
    parts = ("protocol", "versions", "updates", "floor", "sampling", "made")
    report = {"warnings": []} | {name: {} for name in parts} | report
    texts = [*report["warnings"], *report["protocol"].values()]
    texts += report["made"].values()
    if not all(isinstance(t, str) for t in [*texts, *report["versions"].values()]):
        raise ValueError("warnings, protocol and versions are not all texts")
    if not report["rows"]:
        raise ValueError("a report without rows")
    if report.get("self_consistency"):
        self_consistency.check(report["self_consistency"])
    if report.get("floor"):
        report["floor"] = _values(report["floor"])
    shlex.split(report["made"].get("command", ""))
    report["sampling"] = {k: dict(v) for k, v in report["sampling"].items()}
    for updates in report["updates"].values():
        count(updates["done"])
    seconds = {str(key): float(value) for key, value in report["seconds"].items()}
    return report | {"rows": list(map(_row, report["rows"])), "seconds": seconds}


def _planned(
    values: dict, begun: Collection[str]
) -> tuple[list[StageRecord], list[Row]]:
    """Stages and rows of a config.json, whatever its data and network are here."""
    trainings = configs.trainings(values)
    config = configs.default("digits", "mlp", **trainings)
    for key in (*trainings, "eval"):  # keys that it has not yet are as by default
        config[key].update(values[key])
    stages = configs.stages(config, begun)
    records = [
        StageRecord(stage.name, name, stage, method.step_counts(stage))
        for name, method, stage in stages
    ]
    for record in records:
        record.batch = int(config[record.training].batch)
    return records, planned_rows(config.eval, [(method, s) for _, method, s in stages])


def _lines(path: epath.Path, wrong: list[str]) -> dict[str, list[Line]]:
    """All intervals by stage."""
    lines, errors = {}, []
    with contextlib.suppress(OSError):  # it is gone, or a folder: the run will say so
        for entry in JsonLines(path).read():
            line = _attempt(functools.partial(Line.of, entry), None, errors)
            if line:
                lines.setdefault(str(entry["stage"]), []).append(line)
    if errors:
        wrong.append(f"metrics.jsonl: {len(errors)} lines cannot be read: {errors[0]}")
    return lines


def _add_checkpoints(stage: StageRecord, place: epath.Path, errors: list[str]) -> None:
    """Adds what a stage's checkpoints say.

    Orbax keeps facts in a JSON file beside the weights, which are not opened.
    """
    updates = [int(n) for n in names(place) if re.fullmatch("[0-9]{1,10}", n)]
    before = 0
    for update in sorted(updates)[-2:]:
        stage.saved, stage.newest = update, place / str(update)
        try:
            stage.add(files.read_json(stage.newest / "facts" / "metadata"), before)
            before = update
        except (*DAMAGE, OSError) as error:
            errors.append(f"checkpoints/{stage.name}/{update}: {files.brief(error)}")
    stage.skipped = max(stage.skipped, sum(line.skipped for line in stage.lines))
    stage.done = max([stage.saved, *(line.update for line in stage.lines)])


def _rows(place: epath.Path, errors: list[str]) -> list[dict]:
    """The rows that are measured; what cannot be read will be measured again."""
    rows = [
        _attempt(
            functools.partial(lambda path: _row(files.read_json(path)), place / name),
            None,
            errors,
            f"evaluation/{name} cannot be read: ",
        )
        for name in names(place)
        if re.fullmatch(r"\w+_[0-9]+\.json", name)
    ]
    return [row for row in rows if row]


def _row(entry: dict) -> dict:
    """A row whose numbers are in range."""
    entry = check_entry(entry)
    if entry["model"] not in ("teacher", "student"):
        raise ValueError(f"a row's model is {entry['model']!r}")
    if not 1 <= entry["num_steps"] <= configs.MAX_STEPS:
        raise ValueError(f"a row has {entry['num_steps']!r} steps")
    return _values(entry)


def _values(entry: dict) -> dict:
    """Values by metric, as floats."""
    values = check_values(entry)["metrics"]
    return entry | {"metrics": {k: float(v) for k, v in values.items()}}


def _labels(path: epath.Path, num: int) -> np.ndarray | None:
    """Labels [num] of that many samples, or None where there are none that can be."""
    try:
        labels = files.parse_npy(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return None
    fits = labels.dtype.kind in "iu" and labels.ndim == 1 and len(labels) >= num
    return labels[:num].astype(np.int64) if fits else None


def _samples(path: epath.Path) -> np.ndarray | None:
    """Samples [N, ...] as float32, or None where there are none that can be shown."""
    try:
        x = files.parse_npy(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return None
    if x.dtype.kind != "f" or x.ndim < 2 or not x.size:
        return None
    x = x.astype(np.float32)
    return x if np.all(np.isfinite(x)) else None
