"""What a report warns of: updates that were skipped, students worse than their teacher.

Source of the latter's figure: the Frechet distance on pixels, which needs no download.
"""

import math

from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import Row, rows

METRIC = "frechet_pixels"


def warnings(
    setup: Setup, evaluation: Evaluation, facts: dict[str, list[dict]]
) -> list[str]:
    """All warnings of a run that is complete.

    Args:
      setup: the run's.
      evaluation: with all rows measured.
      facts: what each training's stages keep beside their weights, by training.
    """
    texts = [
        f"{stage.name}: {metadata['skipped']} of {metadata['end']} updates skipped, "
        "with a loss or gradient that is not finite (skipped_at in metrics.jsonl)"
        for training in setup.trainings
        for stage, metadata in zip(training.stages, facts[training.name])
        if metadata.get("skipped")
    ]
    students = [row for row in rows(setup) if row.model == "student"]
    texts += [regression(row, setup, evaluation) for row in students]
    return [text for text in texts if text]


def taught_by(student: Row, setup: Setup) -> Row:
    """The row that a student is held against.

    Returns:
      The measured student before it, for the first one the teacher, with the step count
      that is nearest to what it taught with.
    """
    known = rows(setup)
    before = next(i for i, row in enumerate(known) if row.stage == student.stage) - 1
    steps = student.num_steps * setup.config.ladder.factor
    taught = [row for row in known if row.stage == known[before].stage]
    return min(taught, key=lambda row: abs(math.log(row.num_steps / steps)))


def regression(student: Row, setup: Setup, evaluation: Evaluation) -> str:
    """Says that a measured student is worse than its teacher; empty where it is not."""
    factor = setup.config.ladder.regression_factor
    teacher = taught_by(student, setup)
    value, bar = (evaluation.entry(r)["metrics"][METRIC] for r in (student, teacher))
    if value <= factor * bar:
        return ""
    return (
        f"{student.name}: {METRIC} is {value:.3g}, more than "
        f"ladder.regression_factor={factor:g} times the {bar:.3g} of {teacher.name}"
    )
