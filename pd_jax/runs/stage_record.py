"""What a run's folder says of one stage, and of the files that say it."""

import dataclasses
import math
import re
from typing import NamedTuple

from etils import epath

from pd_jax import checkpoint
from pd_jax import config as configs
from pd_jax.storage import files


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
      name: of its `Stage`.
      training: the training's name.
      num_steps: of its `Stage`; 0 for the teacher.
      planned: updates of the whole stage; None where that is not known.
      batch: examples per update.
      end: updates at which it ends: as planned, or fewer on a plateau; None where that
        is not known.
      saved: updates done in the newest checkpoint, 0 where there is none.
      saved_at: when that was made, in seconds since the epoch; None without one.
      rate: updates a second between the newest two; None where not known.
      seconds: spent up to the newest; None where that does not say.
      devices: how many of which kind, such as "4 x cpu", as the stage ended on; empty
        where that is not known.
      skipped: updates left out, as their loss or gradient was not finite.
      lines: its intervals, in order.
    """

    name: str
    training: str
    num_steps: int = 0
    planned: int | None = None
    batch: int = 0
    end: int | None = None
    saved: int = 0
    saved_at: float | None = None
    rate: float | None = None
    seconds: float | None = None
    devices: str = ""
    skipped: int = 0
    lines: list[Line] = dataclasses.field(default_factory=list)

    @property
    def done(self) -> int:
        """Updates that are saved, or at least told of in metrics.jsonl."""
        return max([self.saved, *(line.update for line in self.lines)])

    @property
    def finished(self) -> bool:
        """Whether its last update is saved."""
        return self.end is not None and self.saved >= self.end

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

    def add(self, facts: dict) -> None:
        """Adds what a checkpoint says; ValueError where its counts are none."""
        self.seconds = number(facts.get("seconds"))
        devices = re.fullmatch(r"[1-9]\d{0,8} x .+", str(facts.get("devices")))
        self.devices = devices[0] if devices else ""
        self.end = count(facts.get("end", self.planned or 0)) or self.planned
        self.skipped = max(self.skipped, count(facts.get("skipped", 0)))


def facts_of(path: epath.Path) -> dict:
    """What a checkpoint says of itself, beside its weights."""
    facts = files.read_json(path / "facts" / "metadata")
    if facts.get("format", 1) not in (1, checkpoint.FORMAT):
        raise ValueError(f"format {facts.get('format')}, of another version")
    return facts


def number(value: object) -> float | None:
    """A number that JSON held, if it is one that can be shown."""
    shown = isinstance(value, int | float) and 0 <= value < 1e15
    return float(value) if shown else None


def count(value: object) -> int:
    """A number of updates; ValueError for what is none."""
    if not (isinstance(value, int) and 0 <= value <= configs.MAX):
        raise ValueError(f"{value!r} is not a number of updates")
    return value
