"""What a run's folder says of the run, whether it is finished, running or stopped.

Only files are read, no checkpoint's weights and no device, so that a folder of any
machine can be looked at while its run goes on.
"""

import dataclasses
import functools
import math
import os
import re
from typing import NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from pd_jax import config as configs
from pd_jax.evaluation.rows import by_series, check_entry, row_of
from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import JsonLines
from pd_jax.training.stage import Stage

# What files that are not as a run wrote them lead to.
DAMAGE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError),
    *(TypeError, ValueError),
)


class Line(NamedTuple):
    """One interval of a stage, as in metrics.jsonl.

    Attributes:
      update: its last update.
      values: all other numbers of the entry, by name.
    """

    update: int
    values: dict[str, float]

    @property
    def loss(self) -> float:
        """The mean loss; NaN where the entry has none."""
        return self.values.get("loss", math.nan)

    @property
    def validation_loss(self) -> float:
        """The validation loss, NaN where none was measured."""
        return self.values.get("validation_loss", math.nan)

    @property
    def skipped(self) -> int:
        """Updates left out."""
        return int(self.values.get("skipped", 0))


@dataclasses.dataclass
class StageRecord:
    """One stage, as far as it has come.

    Attributes:
      name, num_steps, planned: of its `Stage`; 0 steps for the teacher.
      training: the training's name.
      batch: examples per update.
      done: updates that are saved, or at least told of in metrics.jsonl.
      end: updates at which it ends: as planned, or fewer on a plateau.
      finished: whether its last update is saved.
      seconds: spent up to the last checkpoint; None where that does not say.
      devices: how many of which kind, such as "4 x cpu", as the stage ended on; empty
        where that is not known.
      skipped: updates left out, as their loss or gradient was not finite.
      lines: its intervals, in order.
    """

    name: str
    training: str
    num_steps: int
    planned: int
    batch: int
    done: int
    end: int
    finished: bool
    seconds: float | None
    devices: str
    skipped: int
    lines: list[Line]

    @property
    def num_devices(self) -> int:
        """How many devices; 0 where that is not known."""
        return int(self.devices.partition(" x ")[0] or 0)

    @property
    def device_hours(self) -> float | None:
        """Devices times hours."""
        if self.seconds is None or not self.num_devices:
            return None
        return self.seconds * self.num_devices / 3600

    @property
    def examples_per_second(self) -> float | None:
        """Over all devices, compilation included."""
        return self.done * self.batch / self.seconds if self.seconds else None


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
      report: its report.json, or {} before the run is finished.
      seconds: of "evaluation" at least.
    """

    folder: epath.Path
    name: str
    config: dict
    stages: list[StageRecord]
    rows: list[dict]
    report: dict
    seconds: dict[str, float]

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
        return _read(folder, name, report)
    except DAMAGE as error:
        cause = files.brief(error)
        raise Refused(f"{folder}: not the files of a run ({cause})") from error


def _read(folder: epath.Path, name: str | None, report: dict | None) -> Record:
    config = files.read_json(folder / "config.json")
    if report is None:
        done = folder / "report.json"
        report = files.read_json(done) if done.exists() else {}
    entries = _entries(folder)
    if report:
        rows, seconds = report["rows"], report["seconds"]
        report = {"warnings": [], "protocol": {}, "versions": {}} | report
        _check_texts(report)
    else:
        rows = entries
        seconds = {"evaluation": sum(float(e.get("seconds", 0.0)) for e in entries)}
    rows = [_row(row) for row in rows]
    rows.sort(key=lambda row: (row["model"] != "teacher", -row["num_steps"]))
    name = str(name or report.get("config") or folder.name)
    seconds = {str(key): float(value) for key, value in seconds.items()}
    stages = _stages(folder, ConfigDict(config), report)
    return Record(folder, name, config, stages, rows, report, seconds)


def _check_texts(report: dict) -> None:
    """Checks what else of a report is shown as it is."""
    texts = [*report["warnings"], *report["protocol"].values()]
    if not all(isinstance(t, str) for t in [*texts, *report["versions"].values()]):
        raise ValueError("warnings, protocol and versions are not all texts")


def _entries(folder: epath.Path) -> list[dict]:
    """The rows that are measured; what cannot be read will be measured again."""
    place, found = folder / "evaluation", []
    for path in sorted(place.glob("*.json")) if place.exists() else ():
        try:
            found.append(check_entry(files.read_json(path)))
        except (OSError, ValueError):
            continue
    return found


def _row(entry: dict) -> dict:
    """A row whose numbers are in range."""
    entry = check_entry(entry)
    if entry["model"] not in ("teacher", "student"):
        raise ValueError(f"a row's model is {entry['model']!r}")
    if not 1 <= entry["num_steps"] <= configs.MAX_STEPS:
        raise ValueError(f"a row has {entry['num_steps']!r} steps")
    return entry | {"metrics": {k: float(v) for k, v in entry["metrics"].items()}}


def _stages(folder: epath.Path, config: ConfigDict, report: dict) -> list[StageRecord]:
    lines = _lines(folder)
    kept = folder / "checkpoints"
    begun = {*lines, *(p.name for p in (kept.iterdir() if kept.exists() else ()))}
    updates = report.get("updates", {})
    planned = configs.stages(config, begun | set(updates))
    if updates:  # without the stages that were left out
        planned = [each for each in planned if each[-1].name in updates]
    trainings = {stage.name: name for name, _, stage in planned}
    planned = [stage for *_, stage in planned]
    facts = {stage.name: _facts(folder, stage) for stage in planned}
    found = []
    for stage in planned:
        saved, kept = facts[stage.name] or (0, {})
        mine = lines.get(stage.name, [])
        end = _count(kept.get("end", stage.updates))
        done = max([saved, *(line.update for line in mine)])
        finished = saved >= end
        if stage.name in report.get("updates", {}):  # its checkpoints may be gone
            done = end = _count(report["updates"][stage.name]["done"])
            finished = True
        found.append(
            StageRecord(
                stage.name,
                trainings[stage.name],
                0 if trainings[stage.name] == "teacher" else stage.num_steps,
                stage.updates,
                int(config[trainings[stage.name]].batch),
                done,
                end,
                finished,
                float(kept["seconds"]) if "seconds" in kept else None,
                _devices(kept.get("devices")),
                _count(kept.get("skipped", 0)),
                mine,
            )
        )
    return found


def _lines(folder: epath.Path) -> dict[str, list[Line]]:
    """All intervals by stage."""
    found = {}
    try:
        for entry in JsonLines(folder / "metrics.jsonl").read():
            values = {
                str(name): float(value)
                for name, value in entry.items()
                if isinstance(value, int | float) and name != "update"
            }
            _count(entry.get("skipped", 0))
            line = Line(_count(entry["update"]), values)
            found.setdefault(str(entry["stage"]), []).append(line)
    except OSError:  # it is gone, or a folder: the run itself will say so
        pass
    return found


def _devices(value: object) -> str:
    """Devices as a run notes them, or the empty string."""
    told = re.fullmatch(r"[1-9]\d{0,8} x .+", str(value))
    return told[0] if told else ""


def _count(value: object) -> int:
    if not (isinstance(value, int) and 0 <= value <= configs.MAX):
        raise ValueError(f"{value!r} is not a number of updates")
    return value


def _facts(folder: epath.Path, stage: Stage) -> tuple[int, dict] | None:
    """(updates, facts) of a stage's newest whole checkpoint.

    Orbax keeps facts in a JSON file beside the weights, which are not opened.
    """
    place = folder / "checkpoints" / stage.name
    names = [path.name for path in place.iterdir()] if place.exists() else []
    for update in sorted((int(n) for n in names if n.isdecimal()), reverse=True):
        try:
            return update, files.read_json(place / str(update) / "facts" / "metadata")
        except (OSError, ValueError):  # not there yet, or damaged
            continue
    return None


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
