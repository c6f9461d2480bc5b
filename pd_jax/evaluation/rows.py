"""Rows of the report: which there are, and their entries on disk."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from pd_jax import samplers
from pd_jax.config.setup import Setup
from pd_jax.training.method import Method
from pd_jax.training.stage import Stage

STAGE = re.compile(r"\w{1,100}", re.ASCII)


class Row(NamedTuple):
    """One line of the report.

    Attributes:
      model: "teacher" or "student".
      num_steps: sampling steps.
      stage: the stage that the weights come from; "teacher" for any teacher.
      sampler: a method of `samplers.sample`.
    """

    model: str
    num_steps: int
    stage: str
    sampler: str

    @property
    def series(self) -> str:
        """What curve it is a point of: "teacher", or a training's students.

        The latter's name is how the training's stages begin, such as "student".
        """
        return self.stage.removesuffix(f"_{self.num_steps}")

    @property
    def name(self) -> str:
        """The row's name in file names."""
        return f"{self.series}_{self.num_steps}"


def student_rows(method: Method, stage: Stage, sampler: str) -> list[Row]:
    """A stage's rows, one for each step count that its model was made for.

    They are sampled as the method says, else by `sampler`.
    """
    counts = method.step_counts(stage)
    return [Row("student", n, stage.name, method.sampler or sampler) for n in counts]


def rows(setup: Setup) -> list[Row]:
    """The report's rows: the teacher's step counts, and each student's own."""
    stages = [(training.method, stage) for training, stage in setup.stages]
    return planned_rows(setup.config.eval, stages, setup.teacher_steps)


def planned_rows(
    section: dict, stages: Iterable[tuple[Method, Stage]], teacher_steps: int = 0
) -> list[Row]:
    """The rows of a run.

    Args:
      section: the config's section `eval`.
      stages: all stages, each with its method.
      teacher_steps: those of a teacher that is itself a student; 0 for any.
    """
    sampler = section["sampler"]
    counts = [teacher_steps] if teacher_steps else section["teacher_steps"]
    teacher = [Row("teacher", n, "teacher", sampler) for n in counts]
    students = [row for each in stages for row in student_rows(*each, sampler)]
    most = section["max_steps"] or max(row.num_steps for row in students)
    return teacher + [row for row in students if row.num_steps <= most]


def row_of(entry: dict) -> Row:
    """The row of an entry from `check_entry`."""
    return Row(*(entry[field] for field in Row._fields))


def series_of(entry: dict) -> str:
    """An entry's `Row.series`."""
    return entry["stage"].removesuffix(f"_{entry['num_steps']}")


def by_series(entries: Iterable[dict]) -> dict[str, list[dict]]:
    """Entries by their series, the teacher's first, fewest steps first."""
    series = {}
    for entry in sorted(entries, key=lambda e: e["model"] != "teacher"):
        series.setdefault(series_of(entry), []).append(entry)
    return {
        name: sorted(entries, key=lambda entry: entry["num_steps"])
        for name, entries in series.items()
    }


def check_values(entry: dict) -> dict:
    """Returns values as they were read; ValueError unless they are metrics' numbers.

    Args:
      entry: {"metrics": value by name}, and "errors", why there is none of the others.
    """
    values, errors = entry.get("metrics"), entry.get("errors", [])
    if not isinstance(values, dict):
        raise ValueError(f"metrics is {values!r}")
    if not all(isinstance(v, int | float) for v in values.values()):
        raise ValueError("a metric is not a number")
    if not isinstance(errors, list) or not all(isinstance(e, str) for e in errors):
        raise ValueError("errors are not texts")
    return entry


def check_entry(entry: dict) -> dict:
    """Returns a row's entry as it was read; ValueError if it lacks something.

    Older entries name no stage: it follows from model and steps.
    """
    kinds = {"model": str, "num_steps": int, "sampler": str}
    for key, kind in kinds.items():
        if not isinstance(entry.get(key), kind):
            raise ValueError(f"{key} is {entry.get(key)!r}")
    samplers.get(entry["sampler"])
    check_values(entry)
    teacher = entry["model"] == "teacher"
    stage = "teacher" if teacher else f"student_{entry['num_steps']}"
    entry = entry | {"stage": entry.get("stage", stage)}
    # The stage becomes part of a file's name.
    if not isinstance(entry["stage"], str) or not STAGE.fullmatch(entry["stage"]):
        raise ValueError(f"stage is {entry['stage']!r}")
    return entry
