"""What a report warns of: skipped updates, rows not measured, a teacher far from the
data, students worse than their teacher.

Source of the latter two: the Frechet distance on raw values, which needs no download.
"""

import math

from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import Row, rows
from pd_jax.training.training import Training

METRIC = "frechet_pixels"
UNTRAINED = 10.0  # times what two halves of the data have, at the teacher's best


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
    texts.append(untrained(setup, evaluation))
    for row in rows(setup):
        texts += [*failures(row, evaluation), regression(row, setup, evaluation)]
    return [text for text in texts if text]


def _training(student: Row, setup: Setup) -> Training | None:
    """The training of a row, if it holds its students against their teachers."""
    for training, stage in setup.stages:
        section = setup.config[training.name]
        if stage.name == student.stage and "regression_factor" in section:
            return training
    return None


def taught_by(student: Row, setup: Setup) -> Row | None:
    """The row that a student is held against.

    Returns:
      The measured student before it in its training, for the first one the teacher,
      with the step count that is nearest to what it taught with. None for a teacher,
      and where the training has no `regression_factor`.
    """
    training = _training(student, setup)
    if training is None:
        return None
    known, ladder = rows(setup), [stage.name for stage in training.stages]
    before = known[known.index(student) - 1].stage
    before = before if before in ladder else "teacher"
    steps = student.num_steps * setup.config[training.name].factor
    taught = [row for row in known if row.stage == before]
    return min(taught, key=lambda row: abs(math.log(row.num_steps / steps)))


def failures(row: Row, evaluation: Evaluation) -> list[str]:
    """What could not be measured of a row that is done, and why."""
    return [f"{row.name}: {error}" for error in evaluation.entry(row).get("errors", ())]


def untrained(setup: Setup, evaluation: Evaluation) -> str:
    """Says that the run's own teacher is far from the data; empty if it is not."""
    if setup.trainings[0].name != "teacher":
        return ""
    values = [
        evaluation.entry(row)["metrics"].get(METRIC)
        for row in rows(setup)
        if row.model == "teacher"
    ]
    best = min((value for value in values if value is not None), default=None)
    floor = evaluation.floor.get("metrics", {}).get(METRIC)
    if best is None or floor is None or best <= UNTRAINED * floor:
        return ""
    return (
        f"the teacher's samples are far from the data: {METRIC} is {best:.3g} at best, "
        f"{floor:.3g} between two halves of the data. Train it longer "
        "(teacher.updates) before you judge its students"
    )


def regression(student: Row, setup: Setup, evaluation: Evaluation) -> str:
    """Says that a measured student is worse than its teacher; empty where it is not."""
    teacher = taught_by(student, setup)
    if teacher is None:
        return ""
    training = _training(student, setup).name
    factor = setup.config[training].regression_factor
    value, bar = (
        evaluation.entry(row)["metrics"].get(METRIC) for row in (student, teacher)
    )
    if value is None or bar is None or value <= factor * bar:
        return ""
    return (
        f"{student.name}: {METRIC} is {value:.3g}, more than "
        f"{training}.regression_factor={factor:g} times the {bar:.3g} of {teacher.name}"
    )
