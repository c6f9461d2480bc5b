"""A run's page: report.html, one file that needs nothing else, for eyes and for print.

It is made from the run's folder alone, of whatever is there so far, so that a run can
be watched from the page while it goes on.
"""

import contextlib
import functools
import math
import shlex
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from etils import epath

from pd_jax import __version__, metrics, samplers
from pd_jax import config as configs
from pd_jax.evaluation.rows import row_of
from pd_jax.reports import figures, grids
from pd_jax.runs import record as records
from pd_jax.runs.record import Record
from pd_jax.space import LATENTS, POINTS, SIGNALS
from pd_jax.storage.writers import write_whole

FILE = "report.html"
RENEWED_SECONDS = 30  # at most so often, but at the ends of stages
PAIRS = 10  # pairs shown side by side
FEWEST = 3  # students whose worst pairs are shown
WORST = 8
LINES = 200  # pairs in the plane that are drawn as lines
ONE_PLACE = 0.02  # extent of points in the plane that no reader could tell apart
COARSE = 48  # pixels of an image below which they are shown as squares


@functools.cache
def environment() -> jinja2.Environment:
    """The templates; what is put into them is escaped."""
    env = jinja2.Environment(
        loader=jinja2.PackageLoader("pd_jax.reports"),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"figure": figure_text, "seconds": seconds_text, "plain": plain}
    env.filters |= {"command": plain_command, "rate": rate_text}
    env.globals |= {"label": metrics.label, "direction": metrics.direction}
    return env


def figure_text(value: float | None) -> str:
    """A figure as in the report's table: three digits; empty for None."""
    if value is None:
        return ""
    return f"{value:#.3g}".removesuffix(".")


def rate_text(value: float) -> str:
    """How many a second: at least three digits, in groups of three."""
    return f"{value:,.0f}" if value >= 100 else figure_text(value)


def seconds_text(seconds: float | None) -> str:
    """A time as people say it: 8.4 s, 12 min, 3.1 h, 4.2 days."""
    if seconds is None:
        return ""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def plain(value: object) -> str:
    """A config value; of a whole path only the end, as the rest is a machine's."""
    if isinstance(value, str) and value.startswith(("/", "~")):
        return f"…/{value.rstrip('/').rpartition('/')[2]}"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "(none)"
    return "(empty)" if value == "" else str(value)


def keys(config: dict) -> list[tuple[str, list[dict]]]:
    """All keys by section, with their values, defaults, and whether these differ."""
    try:
        names = configs.data_sets(config), config["model"]["name"]
        default = configs.default(*names, **configs.trainings(config))
        defaults = dict(configs.flatten(default))
    except (KeyError, TypeError, ValueError):  # a data set or network not known here
        defaults = {}
    defaults |= {name: None for name in ("data.name", "model.name")}
    sections = {}
    for key, value in configs.flatten(config):
        section, _, name = key.rpartition(".")
        default = defaults.get(key)
        entry = {"name": name, "value": value, "default": default}
        entry["changed"] = value != default
        sections.setdefault(section, []).append(entry)
    return list(sections.items())


def kind(record: Record) -> tuple[bool, bool]:
    """Whether samples are images with pixels to be seen, and whether points."""
    space = record.space
    coarse = space is not None and space.has_areas and max(space.shape[:2]) < COARSE
    return coarse, space is not None and space.kind == POINTS


def channels(record: Record) -> int:
    """How many channels of each sample are shown side by side; 0 for pictures."""
    latents = record.space is not None and record.space.kind == LATENTS
    return min(record.space.shape[-1], grids.MAX_CHANNELS) if latents else 0


class Picture(NamedTuple):
    """Samples in one picture, as an element of a page.

    Attributes:
      src: a PNG as a data URI.
      classes: what the rows show, from above; () if they are not a class each.
      note: what cannot be seen.
    """

    src: str
    classes: Sequence[str] = ()
    note: str = ""


def names_of(classes: Iterable[int], names: Sequence[str]) -> list[str]:
    """Classes by name, those without one by number."""
    return [names[c] if 0 <= c < len(names) else str(c) for c in classes]


def picture(
    record: Record, x: np.ndarray | None, labels: np.ndarray | None = None
) -> Picture | None:
    """Samples in one picture: a grid of images, or points in the plane.

    A point has the colour of where the reference takes its noise, so that a point in
    the wrong place shows as a colour in the wrong place.

    Args:
      record: the run's.
      x: samples [N, ...], or None for none.
      labels: [N], for a row each.
    """
    if x is None or record.space is None:
        return None
    if record.space.kind == POINTS:
        best = record.reference if record.exact is None else record.exact
        best = None if x is record.examples else best
        note = "all in one place" if np.ptp(x, axis=0).max() < ONE_PLACE else ""
        return Picture(figures.landing(x, best, record.reference), note=note)
    shown = grids.pictures(x, record.space, record.reference)
    if shown is None:
        return None
    like = [] if record.labels is None else grids.classes(record.labels)
    found, places = grids.arranged(len(shown), grids.side(shown), labels, like)
    names = names_of(found, record.class_names)
    return Picture(grids.tiles(shown, places), names)


def _positions(record: Record) -> list[dict]:
    """What the slider goes through: each step count, and its models' pictures."""
    positions = []
    for steps in record.step_counts:
        shown = {}
        for name in record.series:
            row = record.row(name, steps)
            x = record.samples(row) if row else None
            shown[name] = picture(record, x, record.labels)
        if any(shown.values()):
            positions.append({"steps": steps, "pictures": shown})
    return positions


def _examples_labels(record: Record) -> np.ndarray | None:
    """Labels of the data, if samples have them too."""
    return None if record.labels is None else record.examples_labels


def _students(record: Record) -> list[tuple[int, np.ndarray]]:
    """(steps, samples) of all students that can be paired, most steps first."""
    pairs = [(row["num_steps"], record.samples(row)) for row in record.students[::-1]]
    return [(n, x) for n, x in pairs if x is not None]


def _pairs(record: Record) -> dict | None:
    """The same noise under the teacher and under every student, and the worst of it."""
    best, space, students = record.reference, record.space, _students(record)
    if not students or space is None or space.kind == SIGNALS:
        return None
    strips, worst, labels = [], [], record.labels
    chosen, classes = np.arange(min(PAIRS, len(best))), []
    if labels is not None:  # one of each class
        found, places = grids.arranged(len(best), 1, labels)
        chosen, classes = places[:, 0], names_of(found, record.class_names)

    def strip(x):
        return grids.tiles(grids.pictures(x, space, best), chosen[None])

    if space.has_areas:
        strips = [("teacher's best", strip(best))]
        strips += [
            (f"{n} step{'s' * (n > 1)}", strip(x))
            for n, x in students
            if len(x) > chosen.max()
        ]
    for steps, x in students[-FEWEST:]:
        num = min(len(x), len(best))
        square = (x[:num].astype(np.float64) - best[:num]) ** 2
        error = np.sqrt(square.reshape(num, -1).mean(1))
        order = np.argsort(-error, kind="stable")
        pairs = {"steps": steps, "num": num, "median": float(np.median(error))}
        pairs["worst"] = float(error[order[0]])
        if space.has_areas:
            pairs["pairs"] = [
                {
                    "error": float(error[i]),
                    "src": grids.tiles(
                        grids.pictures(np.stack([best[i], x[i]]), space, best),
                        np.array([[0], [1]]),
                    ),
                    "names": []
                    if labels is None
                    else names_of([labels[i]], record.class_names),
                }
                for i in order[:WORST]
            ]
        else:
            some = order[:: -(-num // LINES)]  # from the worst to the best
            reach = 1.15 * float(np.abs(best).max()) or 1.0
            pairs["plot"] = figures.displacements(
                best[some], x[some], reach, f"pairs-{steps}"
            )
        worst.append(pairs)
    return {"classes": classes, "num": len(chosen), "strips": strips, "worst": worst}


def _quality(record: Record) -> list[dict]:
    """Each metric: its plot, its values by steps, and its floor."""
    found, steps = [], record.step_counts
    floor = record.floor.get("metrics", {})
    for i, metric in enumerate(record.metrics):
        curves = figures.curves(record.rows, metric)
        says = f"{metrics.label(metric)} against sampling steps"
        key = f"quality-{i}"
        plot = figures.against_steps(
            metric, curves, steps, key, says, floor.get(metric)
        )
        rows = [(n, [record.value(s, n, metric) for s in record.series]) for n in steps]
        rows = [row for row in rows if any(value is not None for value in row[1])]
        found.append(
            {"metric": metric, "plot": plot, "rows": rows, "floor": floor.get(metric)}
        )
    return found


def _along_path(record: Record) -> dict | None:
    """How far models agree with themselves: a plot, and values by time."""
    found = record.self_consistency
    if not found.get("rmse"):
        return None
    times, models = found["times"], found["rmse"]
    every = max(1, len(times) // 4)  # as many columns as a narrow screen has room for
    says = "Error of the data that a model points at, against the time of the path"
    plot, colours = figures.along_path(times, models, "along-path", says)
    return {
        "plot": plot,
        "times": [f"{t:.3g}" for t in times[::every]],
        "rows": [
            (name, colour, values[::every])
            for (name, values), colour in zip(models.items(), colours)
        ],
        "path": f"{found['steps']} steps of {samplers.label(found['sampler'])}",
        "left_out": found["left_out"],
    }


def _sampling(record: Record) -> list[tuple[int, list[dict]]]:
    """What a batch took by steps, for each series: {} for what is not known."""
    rows = [
        (n, [record.sampling(name, n) for name in record.series])
        for n in record.step_counts
    ]
    return [row for row in rows if any(row[1])]


def _batches(record: Record) -> list[int]:
    """The sizes of the batches that sampling was measured with."""
    times = (each for _, row in _sampling(record) for each in row if each)
    return sorted({int(each["batch"]) for each in times})


def plain_command(command: str) -> str:
    """A command, of whole paths only the ends, as of values."""
    words = [word.partition("=") for word in shlex.split(command)]
    shown = [
        f"{name}={plain(value)}" if equals else plain(name)
        for name, equals, value in words
    ]
    return shlex.join(word.replace("…", "...") for word in shown)


def _legend(record: Record) -> list[tuple[str, str, str]]:
    """Each series' name, its color as CSS, and what its curve is called."""
    if not record.metrics:
        return []
    return [
        (name, figures.STAND_INS[curve.colour], curve.label)
        for name, curve in zip(
            record.series, figures.curves(record.rows, record.metrics[0])
        )
    ]


def summary(record: Record) -> dict | None:
    """The fewest-step student beside the teacher, by the first of the main metrics."""
    metric = next((m for m in metrics.main() if m in record.metrics), None)
    if metric is None:
        return None
    student, teacher = (
        [
            (row["num_steps"], row["metrics"][metric])
            for row in rows
            if math.isfinite(row["metrics"].get(metric, math.nan))
        ]
        for rows in (record.students, record.series.get("teacher", []))
    )
    if not student or not teacher:
        return None
    steps = student[0][0]
    near = min(teacher, key=lambda point: abs(math.log(point[0] / steps)))
    return {
        "metric": metric,
        "student": student[0],
        "teacher": teacher[-1],
        "near": near if near != teacher[-1] else None,
    }


def warnings(record: Record) -> list[str]:
    """What a reader should know first: of the report, or of the stages so far."""
    texts = list(record.report.get("warnings", []))
    if not record.finished:
        texts += [
            f"{stage.name}: {stage.skipped} updates skipped, with a loss or gradient "
            "that is not finite"
            for stage in record.stages
            if stage.skipped
        ]
        texts += [
            f"{row_of(row).name}: {error}"
            for row in record.rows
            for error in row.get("errors", ())
        ]
    return texts + [
        f"{stage.name}: ended early, after {stage.end} of {stage.planned} updates, as "
        "its validation loss had stopped improving"
        for stage in record.stages
        if stage.end < stage.planned
    ]


def now(record: Record) -> str:
    """Where a run is that is not finished."""
    for number, stage in enumerate(record.stages, 1):
        if not stage.finished:
            at = f"stage {number} of {len(record.stages)}, {stage.name}"
            if not stage.done:
                return f"{at}: not trained yet, 0 of {stage.end} updates"
            return f"{at}: {stage.done} of {stage.end} updates"
    return f"all {len(record.stages)} stages done; {len(record.rows)} rows measured"


def stages(record: Record) -> list[str]:
    """Each stage's steps, in words; of a teacher, that it is one."""
    counts = {}
    for row in record.rows:
        counts.setdefault(row["stage"], []).append(str(row["num_steps"]))
    return [
        ", ".join(counts.get(stage.name, [str(stage.num_steps)]))
        if stage.num_steps
        else stage.name
        for stage in record.stages
    ]


def device_hours(record: Record) -> float | None:
    """Of a whole run that is finished, on the devices of its last stage."""
    counts = [stage.num_devices for stage in record.stages if stage.num_devices]
    total = record.seconds.get("total")
    return counts[-1] * total / 3600 if counts and total else None


def html(record: Record) -> str:
    """The page of a run, as far as it has come."""
    template = environment().get_template("report.html")
    coarse, plane = kind(record)
    return template.render(
        run=record,
        version=__version__,
        stages=stages(record),
        legend=_legend(record),
        now="" if record.finished else now(record),
        written=time.strftime("%Y-%m-%d %H:%M:%S"),
        summary=summary(record),
        warnings=warnings(record),
        quality=_quality(record),
        positions=_positions(record),
        reference=picture(record, record.reference, record.labels),
        examples=picture(record, record.examples, _examples_labels(record)),
        coarse=coarse,
        plane=plane,
        channels=channels(record),
        pairs=_pairs(record),
        losses=figures.losses(record.stages),
        along_path=_along_path(record),
        sampling=_sampling(record),
        batches=_batches(record),
        hours=device_hours(record),
        devices=sorted({stage.devices for stage in record.stages if stage.devices}),
        keys=keys(record.config),
    )


class Page:
    """The callback that keeps the page of a run up to date."""

    def __init__(self, folder: epath.Path, name: str):
        """Of the run in `folder`, by its `name`."""
        self._folder, self._name = folder, name
        self._written = -math.inf

    def on_checkpoint(self, stage: str, update: int) -> None:
        """Writes it anew, unless it is young."""
        if time.monotonic() - self._written >= RENEWED_SECONDS:
            self._renew()

    def on_stop(self, stage: str, update: int) -> None:
        """Writes it anew."""
        self._renew()

    def on_report(self, report: dict, evaluation: object) -> None:
        """Writes it for good."""
        self._write(report)

    def _renew(self) -> None:
        # What cannot be shown, or written, ends no run.
        with contextlib.suppress(OSError, ValueError):
            self._write()
        self._written = time.monotonic()

    def _write(self, report: dict | None = None) -> None:
        record = records.read(self._folder, self._name, report)
        write_whole(self._folder / FILE, html(record))
