"""What a run's folder says of the run, whether it is finished, running or stopped.

This is its only reader. Only files are read, no checkpoint's weights and no device, so
that a folder of any machine can be looked at while its run goes on.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from pd_jax import config as configs
from pd_jax.evaluation.rows import Row, by_series, check_entry, planned_rows, row_of
from pd_jax.runs.stage_record import (
    Line,
    StageRecord,
    count,
    facts_of,
    number,
)
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import JsonLines
from pd_jax.training.method import Method
from pd_jax.training.stage import Stage

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
      damage: what could not be read, and why.
    """

    folder: epath.Path
    name: str
    config: dict
    stages: list[StageRecord]
    rows: list[dict]
    missing: list[Row]
    report: dict
    seconds: dict[str, float]
    damage: list[str]

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

    @functools.cached_property
    def reference(self) -> np.ndarray | None:
        """The teacher's best samples [N, ...], which those of all rows are held to."""
        return _samples(self.folder / "evaluation" / "reference_teacher.npy")

    @property
    def exact(self) -> np.ndarray | None:
        """Where the exact probability flow takes the same noise, if that is known."""
        return self._like(_samples(self.folder / "evaluation" / "reference_exact.npy"))

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
      Refused: for a folder without config.json, or with files that are not a run's.
      OSError: for files that cannot be read.
    """
    folder = epath.Path(folder)
    if not (folder / "config.json").exists():
        raise Refused(f"{folder}: no config.json there, so it is no run's folder")
    try:
        return _Reader(folder, strict=True).record(name, report)
    except DAMAGE as error:
        cause = files.brief(error)
        raise Refused(f"{folder}: not the files of a run ({cause})") from error


def look(folder: str | os.PathLike) -> Record:
    """Reads what can be read of a folder; the rest is told in `Record.damage`."""
    return _Reader(epath.Path(folder), strict=False).record(None, None)


class _Reader:
    """Reads one folder; `strict`: files that are not a run's end it."""

    def __init__(self, folder: epath.Path, strict: bool):
        self.folder, self.strict = folder, strict
        self.damage: list[str] = []

    def attempt(self, read: Callable[[], Any], otherwise: Any, about: str = "") -> Any:
        """What `read` returns, or something else where that is damaged."""
        try:
            return read()
        except (*DAMAGE, OSError) as error:
            if self.strict:
                raise
            if not isinstance(error, FileNotFoundError):
                self.damage.append(about + files.brief(error))
            return otherwise

    def record(self, name: str | None, report: dict | None) -> Record:
        """All of it."""
        config = self.attempt(lambda: files.read_json(self.folder / "config.json"), {})
        if report is None:
            report = self.attempt(self._report, {})
        begun = self._names("checkpoints")
        planned, missing = self.attempt(
            lambda: _planned(config, [*begun, *report.get("updates", {})]),
            ([], []),
            "config.json: ",
        )
        if "updates" in report:  # without the stages that were left out
            planned = [each for each in planned if each[-1].name in report["updates"]]
        stages = self._stages(config, planned, begun, report)
        entries = self._entries()
        rows = self.attempt(
            lambda: [_row(row) for row in report.get("rows", entries)], entries
        )
        rows.sort(key=lambda row: (row["model"] != "teacher", -row["num_steps"]))
        measured = {row_of(row).name for row in rows}
        missing = [row for row in missing if row.name not in measured and not report]
        seconds = {"evaluation": sum(number(row.get("seconds")) or 0.0 for row in rows)}
        seconds |= {str(k): float(v) for k, v in report.get("seconds", {}).items()}
        name = str(name or report.get("config") or self.folder.name)
        return Record(
            folder=self.folder,
            name=name,
            config=config,
            stages=stages,
            rows=rows,
            missing=missing,
            report=report,
            seconds=seconds,
            damage=self.damage,
        )

    def _names(self, folder: str) -> list[str]:
        """What is in a folder, which may be gone."""
        try:
            return sorted(path.name for path in (self.folder / folder).iterdir())
        except OSError:
            return []

    def _report(self) -> dict:
        """A complete run's report; {} where there is none."""
        path = self.folder / "report.json"
        if not path.exists():
            return {}
        report = {"warnings": [], "protocol": {}, "versions": {}}
        report |= files.read_json(path)
        texts = [*report["warnings"], *report["protocol"].values()]
        if not all(isinstance(t, str) for t in [*texts, *report["versions"].values()]):
            raise ValueError("warnings, protocol and versions are not all texts")
        for updates in report["updates"].values():
            count(updates["done"])
        for row in report["rows"]:
            _row(row)
        return report

    def _stages(
        self,
        config: dict,
        planned: list[tuple[str, Method, Stage]],
        begun: list[str],
        report: dict,
    ) -> list[StageRecord]:
        """All planned stages; those with checkpoints, where no plan is known."""
        lines = self._lines()
        stages = [
            StageRecord(
                stage.name,
                training,
                0 if training == "teacher" else stage.num_steps,
                int(stage.updates),
                int(config[training]["batch"]),
                int(stage.updates),
            )
            for training, _, stage in planned
        ]
        for stage in stages or [StageRecord(name, "") for name in _ordered(begun)]:
            stage.lines = lines.get(stage.name, [])
            self._checkpoints(stage)
            if stage.name in report.get("updates", {}):  # checkpoints may be gone
                stage.saved = stage.end = report["updates"][stage.name]["done"]
                stage.lines = [line for line in stage.lines if line.update <= stage.end]
            if not planned:
                stages.append(stage)
        return stages

    def _lines(self) -> dict[str, list[Line]]:
        """All intervals by stage."""
        lines = {}
        try:
            for entry in JsonLines(self.folder / "metrics.jsonl").read():
                line = self.attempt(
                    lambda entry=entry: Line.of(entry), None, "a line: "
                )
                if line is not None:
                    lines.setdefault(str(entry["stage"]), []).append(line)
        except OSError:  # it is gone, or a folder: the run itself will say so
            pass
        return lines

    def _checkpoints(self, stage: StageRecord) -> None:
        """Adds what a stage's checkpoints say.

        Orbax keeps facts in a JSON file beside the weights, which are not opened.
        """
        place = f"checkpoints/{stage.name}"
        updates = [n for n in self._names(place) if re.fullmatch("[0-9]{1,10}", n)]
        stage.skipped = sum(line.skipped for line in stage.lines)
        paces = [(0, 0.0)]
        for update in sorted(map(int, updates))[-2:]:
            path = self.folder / place / str(update)
            stage.saved, stage.saved_at = update, modified(path)
            try:
                facts = facts_of(path)
            except (ValueError, OSError) as error:  # not there yet, or damaged
                self.damage.append(f"{place}/{update}: {error}")
                continue
            self.attempt(lambda facts=facts: stage.add(facts), None)
            if stage.seconds is not None:
                paces.append((update, stage.seconds))
        (before, began), (after, ended) = ([(0, 0.0), *paces])[-2:]
        if ended > began:
            stage.rate = (after - before) / (ended - began)

    def _entries(self) -> list[dict]:
        """The rows that are measured; what cannot be read will be measured again."""
        entries = []
        for name in self._names("evaluation"):
            if re.fullmatch(r"\w+_[0-9]+\.json", name):
                try:
                    path = self.folder / "evaluation" / name
                    entries.append(_row(files.read_json(path)))
                except (*DAMAGE, OSError) as error:
                    self.damage.append(f"evaluation/{name} cannot be read: {error}")
        return entries


def modified(path: epath.Path) -> float | None:
    """When a file was written, in seconds since the epoch; None where it is gone."""
    try:
        return path.stat().mtime
    except OSError:
        return None


def _planned(
    values: dict, begun: list[str]
) -> tuple[list[tuple[str, Method, Stage]], list[Row]]:
    """Stages and rows of a config.json, whatever its data and network are here."""
    trainings = configs.trainings(values)
    config = configs.default("digits", "mlp", **trainings)
    for key in (*trainings, "eval"):  # keys that it has not yet are as by default
        config[key].update(values[key])
    stages = configs.stages(config, begun)
    return stages, planned_rows(config.eval, [(method, s) for _, method, s in stages])


def _ordered(names: list[str]) -> list[str]:
    """Stages by name alone: the teacher, then those of many steps first."""

    def steps(name):
        digits = re.search("[0-9]{1,9}$", name)
        return -int(digits[0]) if digits else 0

    return sorted(names, key=lambda name: (name != "teacher", steps(name)))


def _row(entry: dict) -> dict:
    """A row whose numbers are in range."""
    entry = check_entry(entry)
    if entry["model"] not in ("teacher", "student"):
        raise ValueError(f"a row's model is {entry['model']!r}")
    if not 1 <= entry["num_steps"] <= configs.MAX_STEPS:
        raise ValueError(f"a row has {entry['num_steps']!r} steps")
    return entry | {"metrics": {k: float(v) for k, v in entry["metrics"].items()}}


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
