"""Rows of the report: which there are, and their entries on disk."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from pd_jax import samplers
from pd_jax.config.setup import Setup
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
    def name(self) -> str:
        """The row's name in file names."""
        end = f"_{self.num_steps}"
        return self.stage if self.stage.endswith(end) else self.stage + end


def student_rows(stages: Iterable[Stage], sampler: str) -> list[Row]:
    """The rows of students, each of the step counts that it was made for."""
    return [Row("student", s.num_steps, s.name, sampler) for s in stages]


def rows(setup: Setup) -> list[Row]:
    """The report's rows: the teacher's step counts, and each student's own."""
    section = setup.config.eval
    return planned_rows(section, setup.trainings[-1].stages, setup.teacher_steps)


def planned_rows(section: dict, stages: list[Stage], own: int = 0) -> list[Row]:
    """Rows by the config's section `eval`, the students' stages and a teacher's steps.

    A teacher that is itself a student has one step count, its `own`.
    """
    sampler, counts = section["sampler"], [own] if own else section["teacher_steps"]
    teacher = [Row("teacher", n, "teacher", sampler) for n in counts]
    students = student_rows(stages, sampler)
    most = section["max_steps"] or max(row.num_steps for row in students)
    return teacher + [row for row in students if row.num_steps <= most]


def row_of(entry: dict) -> Row:
    """The row of an entry from `check_entry`."""
    return Row(*(entry[field] for field in Row._fields))


def check_entry(entry: dict) -> dict:
    """Returns a row's entry as it was read; ValueError if it lacks something.

    Older entries name no stage: it follows from model and steps.
    """
    kinds = {"model": str, "num_steps": int, "sampler": str, "metrics": dict}
    for key, kind in kinds.items():
        if not isinstance(entry.get(key), kind):
            raise ValueError(f"{key} is {entry.get(key)!r}")
    samplers.get(entry["sampler"])
    if not all(isinstance(v, int | float) for v in entry["metrics"].values()):
        raise ValueError("a metric is not a number")
    teacher = entry["model"] == "teacher"
    stage = "teacher" if teacher else f"student_{entry['num_steps']}"
    entry = entry | {"stage": entry.get("stage", stage)}
    # The stage becomes part of a file's name.
    if not isinstance(entry["stage"], str) or not STAGE.fullmatch(entry["stage"]):
        raise ValueError(f"stage is {entry['stage']!r}")
    return entry
