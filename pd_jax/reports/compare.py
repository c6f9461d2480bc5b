"""Runs side by side: one page of several folders, and a table for the terminal."""

import os
from collections.abc import Sequence

import numpy as np
from etils import epath

from pd_jax import __version__, metrics
from pd_jax import config as configs
from pd_jax.reports import figures, page
from pd_jax.runs import record as records
from pd_jax.runs.record import Record
from pd_jax.runtime import console
from pd_jax.runtime.errors import Refused
from pd_jax.storage.writers import write_whole

MOST = len(figures.RUNS)
BEST = "the teacher at its best"


def read(folders: Sequence[str]) -> list[Record]:
    """The runs in some folders; Refused where they are too few or no runs."""
    if not 2 <= len(folders) <= MOST:
        raise Refused(
            f"--mode=compare with {len(folders)} folders: give from 2 to {MOST}, such "
            "as --mode=compare runs/digits runs/other"
        )
    places = [os.path.abspath(folder) for folder in folders]
    twice = [f for f, place in zip(folders, places) if places.count(place) > 1]
    if twice:
        raise Refused(f"{twice[0]} is given twice: give each folder once")
    try:
        return [records.read(folder) for folder in folders]
    except (ImportError, KeyError) as error:  # for what a prefix names
        raise Refused(f"{', '.join(folders)}: no such storage here: {error}") from error


def labels(runs: Sequence[Record]) -> list[str]:
    """The ends of the runs' folders, as long as it takes to tell them apart."""
    parts = [os.path.abspath(run.folder).split(os.sep) for run in runs]
    length = 1
    while len({tuple(p[-length:]) for p in parts}) < len(parts):
        length += 1
    return ["/".join(p[-length:]) for p in parts]


def metric_names(runs: Sequence[Record]) -> list[str]:
    """Metrics that any of the runs has, the main ones first."""
    names = list(dict.fromkeys(name for run in runs for name in run.metrics))
    first = [name for name in metrics.main() if name in names]
    return first + [name for name in names if name not in first]


def step_counts(runs: Sequence[Record], students: bool = False) -> list[int]:
    """Step counts of any of the runs, most first; or of their last students."""
    rows = (run.students if students else run.rows for run in runs)
    return sorted({row["num_steps"] for each in rows for row in each}, reverse=True)


def student(run: Record, num_steps: int, metric: str) -> float | None:
    """A figure of a run's last students, where it was measured."""
    rows = {row["num_steps"]: row["metrics"] for row in run.students}
    return rows.get(num_steps, {}).get(metric)


def differences(runs: Sequence[Record]) -> dict[str, list]:
    """Config keys whose values differ, and the value of each run; None: no such key."""
    flat = [dict(configs.flatten(run.config)) for run in runs]
    values = {key: [f.get(key) for f in flat] for f in flat for key in f}
    return {k: v for k, v in sorted(values.items()) if any(x != v[0] for x in v)}


def warnings(runs: Sequence[Record], names: Sequence[str]) -> list[str]:
    """What keeps figures from being compared as they stand."""
    texts = []
    for name, run in zip(names, runs):
        if not run.finished:
            texts.append(f"{name} is not finished: {page.now(run)}")
    differ = differences(runs)
    data = [key for key in differ if key.startswith(("data.", "model.num_classes"))]
    if data:
        texts.append(f"the data differ ({', '.join(data)})")
    rows = ("eval.teacher_steps", "eval.max_steps")  # which there are, and not how made
    protocol = [k for k in differ if k.startswith("eval.") and k not in rows]
    if protocol:
        texts.append(f"the figures were made in other ways ({', '.join(protocol)})")
    best = [run.reference for run in runs]
    same = all(a is not None and np.array_equal(a, best[0]) for a in best)
    if not same and "rmse_to_teacher" in metric_names(runs):
        texts.append("the teachers differ: an RMSE is to the run's own teacher")
    return texts


def table(runs: Sequence[Record], names: Sequence[str], width: int = 80) -> str:
    """The students by the two main metrics, within the columns of a terminal."""
    letters = "ABCDEFGH"[: len(runs)]
    room = max(1, (width - 8) // 9)
    lines = [f"{letter}: {name}" for letter, name in zip(letters, names)]
    for metric in [m for m in metric_names(runs) if m in metrics.main()][:2]:
        better = metrics.direction(metric)
        lines += ["", f"{metrics.label(metric)}, students{better and f', {better}'}:"]
        for first in range(0, len(runs), room):
            part = slice(first, first + room)
            lines.append("   steps" + "".join(f"{c:>9}" for c in letters[part]))
            for n in step_counts(runs, students=True):
                values = [student(run, n, metric) for run in runs[part]]
                cells = "".join(f"{page.figure_text(v):>9}" for v in values)
                lines.append(f"{n:>8}{cells}")
    return "\n".join(lines)


def _plots(runs: Sequence[Record]) -> list[dict]:
    """For each metric a plot of all runs' students, and their teachers dashed."""
    plots, steps = [], step_counts(runs)
    for i, metric in enumerate(metric_names(runs)):
        curves = []
        for run, colour in zip(runs, figures.RUNS):
            for curve in figures.curves(run.rows, metric):
                dashed = curve.marker == "s"
                curves.append(curve._replace(colour=colour, dashed=dashed))
        says = f"{metrics.label(metric)} against sampling steps, of all runs"
        plot = figures.against_steps(metric, curves, steps, f"quality-{i}", says)
        if plot:
            plots.append({"metric": metric, "plot": plot})
    return plots


def _positions(runs: Sequence[Record]) -> list[dict]:
    """What the slider goes through: the teachers' best, then each student's grids."""
    best = [page.picture(run, run.reference, run.labels) for run in runs]
    positions = [{"says": BEST, "tick": "teacher", "pictures": best}]
    for n in step_counts(runs, students=True):
        rows = [{row["num_steps"]: row for row in run.students}.get(n) for run in runs]
        shown = [
            page.picture(run, run.samples(row), run.labels) if row else None
            for run, row in zip(runs, rows)
        ]
        says = f"student, {n} step{'s' * (n > 1)}"
        positions.append({"says": says, "tick": str(n), "pictures": shown})
    return [each for each in positions if any(each["pictures"])]


def _parts(runs: Sequence[Record]) -> list[str]:
    """What takes time in any of the runs: trainings in order, then the rest."""
    names = dict.fromkeys(name for run in runs for name in run.seconds)
    rest = ("evaluation", "total")
    return [name for name in names if name not in rest] + list(rest)


def html(runs: Sequence[Record], names: Sequence[str]) -> str:
    """The page."""
    template = page.environment().get_template("compare.html")
    return template.render(
        runs=runs,
        names=names,
        version=__version__,
        metrics=metric_names(runs),
        step_counts=step_counts(runs),
        warnings=warnings(runs, names),
        plots=_plots(runs),
        positions=_positions(runs),
        kinds=[page.kind(run) for run in runs],
        titles=dict.fromkeys(run.title for run in runs),
        parts=_parts(runs),
        student=student,
        differences=differences(runs),
        hours=[page.device_hours(run) for run in runs],
    )


def run(folders: Sequence[str], out: str) -> None:
    """Compares the runs in some folders: writes a page, and prints a table.

    Args:
      folders: two or more, of runs that are finished or not.
      out: the page's file.

    Raises:
      Refused: for folders that hold no run, or too few, or a file of another kind.
    """
    if not out.endswith(".html"):
        raise Refused(f"--out={out}: the page is HTML; give a name that ends in .html")
    runs = read(folders)
    names = labels(runs)
    text = html(runs, names)
    write_whole(epath.Path(out), text)
    console.show(table(runs, names, console.width()))
    for warning in warnings(runs, names):
        console.warn(f"warning: {warning}")
    console.say(f"wrote {out}")
