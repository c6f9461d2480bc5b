"""What a run's folder says of one stage."""

import dataclasses
import math
import re
from typing import NamedTuple

from etils import epath

from pd_jax import checkpoint
from pd_jax import config as configs
from pd_jax.space import KINDS
from pd_jax.training.stage import Stage


class Line(NamedTuple):
    """One interval of a stage, as in metrics.jsonl.

    Attributes:
      update: its last update.
      values: all other numbers of the entry, by name.
    """

    update: int
    values: dict[str, float]

    @classmethod
    def of(cls, entry: dict) -> "Line":
        """Of an entry; ValueError where its counts are none."""
        values = {
            str(name): float(value)
            for name, value in entry.items()
            if isinstance(value, int | float) and name != "update"
        }
        count(entry.get("skipped", 0))
        return cls(count(entry["update"]), values)

    @property
    def loss(self) -> float:
        """The mean loss; NaN where the entry has none."""
        return self.values.get("loss", math.nan)

    @property
    def grad_norm(self) -> float:
        """The gradient's mean norm; NaN where the entry has none."""
        return self.values.get("grad_norm", math.nan)

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
      name: its name.
      training: the training's name; "" where config.json does not tell.
      stage: as planned; None where config.json does not tell.
      step_counts: the sampling steps that its model is made for.
      batch: examples per update.
      end: updates at which it ends: as planned, or fewer on a plateau; None where that
        is not known.
      done: updates that are saved, or at least named in metrics.jsonl.
      saved: updates done in the newest checkpoint, 0 where there is none.
      newest: that checkpoint's folder.
      rate: updates a second between the newest two; None where not known.
      seconds: spent up to the newest; None where that does not say.
      devices: how many of which kind, such as "4 x cpu", as the stage ended on; empty
        where that is not known.
      taught_by: the stage before, or a released teacher's file; None for neither.
      skipped: updates left out, as their loss or gradient was not finite.
      kind: what the data is, of `pd_jax.space`; "" where no checkpoint tells.
      classes: names of the data's classes, by label; [] if they have none.
      lines: its intervals, in order.
    """

    name: str
    training: str = ""
    stage: Stage | None = None
    step_counts: tuple[int, ...] = ()
    batch: int = 0
    end: int | None = None
    done: int = 0
    saved: int = 0
    newest: epath.Path | None = None
    rate: float | None = None
    seconds: float | None = None
    devices: str = ""
    taught_by: str | None = None
    skipped: int = 0
    kind: str = ""
    classes: list[str] = dataclasses.field(default_factory=list)
    lines: list[Line] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        self.end = self.planned

    @property
    def planned(self) -> int | None:
        """Updates of the whole stage; None where that is not known."""
        return self.stage and self.stage.updates

    @property
    def num_steps(self) -> int:
        """Sampling steps that it trains for; 0 for the teacher."""
        return self.stage.num_steps if self.stage and self.training != "teacher" else 0

    @property
    def finished(self) -> bool:
        """Whether its last update is saved."""
        return self.end is not None and self.saved >= self.end

    @property
    def saved_at(self) -> float | None:
        """When the newest checkpoint was made, in seconds since the epoch."""
        return self.newest and modified(self.newest)

    @property
    def saved_bytes(self) -> int:
        """Size of the newest checkpoint."""
        return size(self.newest) if self.newest else 0

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

    def add(self, facts: dict, before: int) -> None:
        """Adds what a newer checkpoint says of itself.

        Args:
          facts: what it says.
          before: updates done in the one before.

        Raises:
          ValueError: where it is of another version, or its counts are none.
        """
        if facts.get("format", 1) not in (1, checkpoint.FORMAT):
            raise ValueError(f"format {facts.get('format')}, of another version")
        end, skipped = facts.get("end") or self.planned, facts.get("skipped", 0)
        self.end, self.skipped = end and count(end), count(skipped)
        began, self.seconds = self.seconds or 0.0, number(facts.get("seconds"))
        if self.seconds and self.seconds > began:
            self.rate = (self.saved - before) / (self.seconds - began)
        devices = re.fullmatch(r"[1-9]\d{0,8} x .+", str(facts.get("devices")))
        self.devices = devices[0] if devices else ""
        self.taught_by = facts.get("teacher")
        kind = facts.get("data", {}).get("kind")
        self.kind = kind if kind in KINDS else ""
        classes = facts.get("labels")
        self.classes = list(map(str, classes)) if isinstance(classes, list) else []


def modified(path: epath.Path) -> float | None:
    """When a file was written, in seconds since the epoch; None where it is gone."""
    try:
        return path.stat().mtime
    except OSError:
        return None


def size(path: epath.Path) -> int:
    """Bytes of a file, or of all below a folder; some may go meanwhile."""
    try:
        if path.is_dir():
            return sum(map(size, path.iterdir()))
        return path.stat().length
    except OSError:
        return 0


def number(value: object) -> float | None:
    """A number that JSON held, if it is one that can be shown."""
    shown = isinstance(value, int | float) and 0 <= value < 1e15
    return float(value) if shown else None


def count(value: object) -> int:
    """A number of updates; ValueError for what is none."""
    if not (isinstance(value, int) and 0 <= value <= configs.MAX):
        raise ValueError(f"{value!r} is not a number of updates")
    return value
