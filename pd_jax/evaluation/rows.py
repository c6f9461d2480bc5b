"""Rows of the report: which there are, and their entries as they are kept."""

from typing import NamedTuple

from pd_jax import samplers
from pd_jax.config.setup import Setup


class Row(NamedTuple):
    """One line of the report: a model and its number of steps."""

    model: str
    num_steps: int

    @property
    def name(self) -> str:
        """The row's name in file names."""
        return f"{self.model}_{self.num_steps}"


def rows(setup: Setup) -> list[Row]:
    """The report's rows: the teacher's step counts, and each student's own."""
    students = [stage.num_steps for stage in setup.trainings[-1].stages]
    return planned_rows(setup.config.eval, students, setup.teacher_steps)


def planned_rows(section: dict, students: list[int], own: int = 0) -> list[Row]:
    """Rows by the config's section `eval`, the students' step counts and a teacher's.

    A teacher that is itself a student has one step count, its `own`.
    """
    teacher = [Row("teacher", n) for n in ([own] if own else section["teacher_steps"])]
    most = section["max_steps"] or max(students)
    return teacher + [Row("student", n) for n in students if n <= most]


def check_entry(entry: dict) -> dict:
    """Returns a row's entry as it was read; ValueError where it lacks something."""
    kinds = {"model": str, "sampler": str, "num_steps": int, "metrics": dict}
    for key, kind in kinds.items():
        if not isinstance(entry.get(key), kind):
            raise ValueError(f"{key} is {entry.get(key)!r}")
    samplers.get(entry["sampler"])
    if not all(isinstance(v, int | float) for v in entry["metrics"].values()):
        raise ValueError("a metric is not a number")
    return entry
