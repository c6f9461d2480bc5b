"""Pictures for a page: plots as SVG in the page's own colours, samples as PNG.

A plot's text and lines are drawn in stand-in colours, which become CSS variables: the
page is light or dark as its reader's screen is, and its plots are with it.
"""

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pd_jax import metrics, samplers
from pd_jax.evaluation.rows import by_series
from pd_jax.reports.grids import uri
from pd_jax.runs.stage_record import Line, StageRecord

INK, FAINT = "#010101", "#020202"
STAND_INS = {INK: "currentColor", FAINT: "var(--line)"}
TEACHER, STUDENT = "#030301", "#030302"
STAND_INS |= {TEACHER: "var(--teacher)", STUDENT: "var(--student)"}
RUNS = tuple(f"#0404{i:02x}" for i in range(1, 9))  # of a comparison
STAND_INS |= {colour: f"var(--run-{i})" for i, colour in enumerate(RUNS, 1)}
SERIES = (TEACHER, STUDENT, *RUNS[2:])  # a curve each, in the order of `by_series`
# The same in files of their own; they stay apart in print and to color-blind eyes.
PRINTED = ("#b35806", "#3a5fa8", "#17775a", "#8547a0", "#a8324a", "#6d6000", "#1f7490")
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pd_jax",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}
LEAST, MOST = 1e-30, 1e30  # magnitudes that are drawn: log axes overflow beyond
MOST_POINTS = 400  # of a curve; more cannot be told apart
NARROW = 0.022  # share of all updates below which a letter of a label has no room
FLOOR = "two halves of the data"
AXES = {"grad_norm": "gradient norm"}
# Of a line of metrics.jsonl: drawn as marks, or not at all.
NO_CURVES = ("loss", "grad_norm", "learning_rate", "skipped", "validation_loss")


class Curve(NamedTuple):
    """One line of a plot against sampling steps."""

    points: Sequence[tuple[int, float]]
    colour: str
    marker: str = "o"
    dashed: bool = False
    label: str = ""


def curves(
    rows: Iterable[dict], metric: str, colours: Sequence[str] = SERIES
) -> list[Curve]:
    """A metric's curves of a run's rows, one a series; labels name their samplers."""
    made = []
    for i, (name, entries) in enumerate(by_series(rows).items()):
        method = samplers.label(entries[0]["sampler"])
        points = [
            (entry["num_steps"], entry["metrics"][metric])
            for entry in entries
            if math.isfinite(entry["metrics"].get(metric, math.nan))
        ]
        marker = "s" if name == "teacher" else "o"
        colour = colours[i % len(colours)]
        made.append(Curve(points, colour, marker, label=f"{name}, {method}"))
    return made


def _svg(figure: Figure, key: str, says: str) -> Markup:
    """A figure as an element of a page.

    Args:
      figure: the figure.
      key: unique in the page.
      says: what it shows, for those who do not see it.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue().decode()
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', text).groups()
    body = text.partition("</metadata>")[2] or re.split(r"<svg[^>]*>", text)[1]
    body = body.rpartition("</svg>")[0]
    for stand_in, colour in STAND_INS.items():
        body = body.replace(stand_in, colour)
    # Several of them share a page, and its names.
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{key}-", body)
    body = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", body)
    return Markup(
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(says)}">'
        f"{body}</svg>"
    )


def against_steps(
    metric: str,
    curves: Iterable[Curve],
    steps: Sequence[int],
    key: str,
    says: str,
    floor: float | None = None,
) -> Markup | None:
    """A metric against sampling steps, both on log axes where they can be.

    Args:
      metric: its name.
      curves: its values.
      steps: where the axis of steps has labels.
      key: unique in the page.
      says: what it shows, for those who do not see it.
      floor: the metric of one half of the data against the other.

    Returns:
      An element; None if all values are of one number of steps, which are no curve.
    """
    curves = list(curves)
    if not is_curve(curves):
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.add_axes((0.13, 0.15, 0.85, 0.83))
        _draw(axes, metric, curves, steps, floor)
        return _svg(figure, key, says)


def along_path(
    times: Sequence[float],
    models: Mapping[str, Sequence[float | None]],
    key: str,
    says: str,
) -> tuple[Markup, list[str]]:
    """Values of models at times of a path, noise on the left.

    Args:
      times: from 1 down.
      models: each one's values, None where there is none.
      key: unique in the page.
      says: what it shows, for those who do not see it.

    Returns:
      An element; and each model's color as CSS.
    """
    colours = [SERIES[i % len(SERIES)] for i in range(len(models))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0))
        axes, drawn = figure.add_axes((0.13, 0.15, 0.85, 0.83)), [np.zeros(0)]
        for i, (values, colour) in enumerate(zip(models.values(), colours)):
            points = [
                (t, v) for t, v in zip(times, values) if v is not None and v < MOST
            ]
            if points:
                mark = "o" if i else "s"
                axes.plot(*zip(*points), mark + "-", color=colour, ms=4.5, lw=1.6)
                drawn.append(np.array([v for _, v in points]))
        axes.set(xlim=(1.03, -0.03), xlabel="time t, from noise to data")
        _scale(axes, np.concatenate(drawn))
        axes.grid(visible=True)
        return _svg(figure, key, says), [STAND_INS[colour] for colour in colours]


def is_curve(curves: Iterable[Curve]) -> bool:
    """Whether there are values of two numbers of steps."""
    return len({n for curve in curves for n, v in curve.points if abs(v) < MOST}) > 1


def quality(rows: Sequence[dict], floor: Mapping[str, float]) -> bytes | None:
    """Every metric of a run's rows against sampling steps; a PNG of its own.

    Args:
      rows: entries of the report.
      floor: by name, metrics of one half of the data against the other.

    Returns:
      None if all rows are of one number of steps.
    """
    drawn = {
        name: curves(rows, name, PRINTED)
        for name in dict.fromkeys(name for row in rows for name in row["metrics"])
    }
    drawn = {name: each for name, each in drawn.items() if is_curve(each)}
    if not drawn:
        return None
    steps = {row["num_steps"] for row in rows}
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    with matplotlib.rc_context(STYLE | {"grid.color": "#dde1e7"}):
        figure = Figure(figsize=(4.6 * columns, 3.8 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        for axes, (name, each) in zip(panels, drawn.items()):
            _draw(axes, name, each, steps, floor.get(name))
            better = metrics.direction(name)
            title = f"{metrics.label(name)}{better and f': {better}'}"
            axes.set_title(title, fontsize=10)
        panels[0].legend(frameon=False)
        return _png(figure)


def _draw(
    axes: Axes,
    metric: str,
    curves: Iterable[Curve],
    steps: Iterable[int],
    floor: float | None = None,
) -> None:
    """A metric against sampling steps, on some axes."""
    values = []
    for curve in curves:
        points = [(n, v) for n, v in curve.points if abs(v) < MOST]
        if not points:
            continue
        values += [value for _, value in points]
        axes.plot(
            *zip(*points),
            color=curve.colour,
            marker=curve.marker,
            markersize=4.5,
            linewidth=1.6,
            linestyle="--" if curve.dashed else "-",
            label=curve.label,
        )
    if floor is not None and abs(floor) < MOST:
        values.append(floor)
        axes.axhline(floor, color=INK, linewidth=1.0, linestyle=":", label=FLOOR)
    axes.set(xscale="log", xlabel="sampling steps")
    shown = _spaced(sorted(steps))
    axes.set_xticks(shown, [str(n) for n in shown])
    if metrics.is_log(metric) and values and min(values) > LEAST:
        axes.set_yscale("log")
        _label_log(axes, values)
    axes.minorticks_off()
    axes.tick_params(length=0)
    axes.grid(visible=True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()


def _spaced(steps: Sequence[int], room: float = 0.045) -> list[int]:
    """Those of the steps whose labels do not touch on a log axis."""
    reach = math.log(steps[-1] / steps[0]) or 1.0
    shown = [steps[0]]
    for n in steps[1:]:
        if math.log(n / shown[-1]) / reach > room * len(str(n)) / 1.6:
            shown.append(n)
    return shown


def _label_log(axes, values: Sequence[float]) -> None:
    """A few labels on a log axis, however little of it the values span."""
    decades = math.log10(max(values) / min(values))
    if decades > 0.3:
        subs = (1, 2, 5) if decades < 3.0 else (1,)
        locator = matplotlib.ticker.LogLocator(subs=subs, numticks=8)
    else:
        locator = matplotlib.ticker.MaxNLocator(4)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter("{x:.3g}")


def _thinned(lines: Sequence[Line], field: str) -> tuple[np.ndarray, np.ndarray]:
    """(updates, values) of a stage's curve, averaged to `MOST_POINTS` at most."""
    points = [(line.update, line.values.get(field, math.nan)) for line in lines]
    points = np.array(points, float).reshape(-1, 2)
    points = points[np.abs(points[:, 1]) < MOST]
    parts = np.array_split(points, min(MOST_POINTS, len(points)) or 1)
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _fields(stages: Sequence[StageRecord]) -> list[str]:
    """What is drawn of the stages' lines: the loss, the gradient, a method's own."""
    lines = (line for stage in stages for line in stage.lines)
    own = dict.fromkeys(name for line in lines for name in line.values)
    return ["loss", "grad_norm", *(name for name in own if name not in NO_CURVES)]


def _scale(axes: Axes, values: np.ndarray) -> None:
    """A log axis, but where there are values below zero."""
    axes.tick_params(length=0)
    if len(values) and values.min() >= 0.0 and values.max() > LEAST:
        axes.set_yscale("log")
        axes.minorticks_off()
        _label_log(axes, axes.get_ylim())
    axes.grid(visible=True, axis="y")


def losses(stages: Sequence[StageRecord]) -> list[tuple[str, Markup]]:
    """Loss, gradient norm and a method's own curves of each training, on its own axes.

    Returns:
      Each training's name and its plot, its stages one after the other; none of a
      training that has but one interval yet.
    """
    names = dict.fromkeys(stage.training for stage in stages)
    students = dict.fromkeys(stage.training for stage in stages if stage.num_steps)
    colours = dict(zip(students, SERIES[1:]))
    drawn = []
    for i, name in enumerate(names):
        own = [stage for stage in stages if stage.training == name]
        if sum(len(stage.lines) for stage in own) > 1:
            colour = colours.get(name, TEACHER)
            drawn.append((name, _losses(name, own, colour, f"losses-{i}")))
    return drawn


def _losses(name: str, stages: Sequence[StageRecord], colour: str, key: str) -> Markup:
    """The curves of one training."""
    fields = _fields(stages)
    with matplotlib.rc_context(STYLE):
        ratios = (3, *[2] * (len(fields) - 1))
        figure = Figure(figsize=(4.6, 0.8 + 0.6 * sum(ratios)))
        panels = figure.subplots(len(fields), 1, sharex=True, height_ratios=ratios)
        rim = 0.46 / figure.get_figheight()
        figure.subplots_adjust(0.15, rim, 0.94, 1.0 - 0.55 * rim, hspace=0.08)
        total = sum(stage.end for stage in stages) or 1
        for axes, field in zip(np.atleast_1d(panels), fields):
            start, drawn = 0, [np.zeros(0)]
            for stage in stages:
                updates, values = _thinned(stage.lines, field)
                # One point alone would be no line.
                mark = "." if len(updates) == 1 else ""
                axes.plot(start + updates, values, mark + "-", color=colour, lw=1)
                axes.axvline(start, color=FAINT, linewidth=0.6)
                if field == "loss":
                    _mark(axes, stage, start, total, colour)
                start += stage.end
                drawn.append(values)
            axes.set(ylabel=AXES.get(field, field.replace("_", " ")), xlim=(0, total))
            _scale(axes, np.concatenate(drawn))
        axes.set(xlabel="updates" if len(stages) == 1 else "updates, stage by stage")
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.align_ylabels()
        return _svg(figure, key, f"Loss and gradient norm of {name}")


def _mark(axes: Axes, stage: StageRecord, start: int, total: int, colour: str) -> None:
    """A stage's name, validation losses as dots, crosses for skipped updates."""
    where = axes.get_xaxis_transform()
    short = stage.name.endswith(f"_{stage.num_steps}")
    text = str(stage.num_steps) if short else stage.name
    if stage.end > NARROW * len(text) * total:
        middle = start + stage.end / 2
        axes.text(middle, 1.03, text, transform=where, ha="center")
    checks = [
        (start + line.update, line.validation_loss)
        for line in stage.lines
        if LEAST < line.validation_loss < MOST
    ]
    if checks:
        axes.plot(*zip(*checks), "o", color=colour, markersize=3)
    skipped = [start + line.update for line in stage.lines if line.skipped]
    if skipped:
        low = [0.04] * len(skipped)
        axes.plot(skipped, low, "x", color=INK, markersize=4, transform=where)


def directions(points: np.ndarray) -> np.ndarray:
    """A colour [N, 3] for each point [N, 2]: its direction from the middle."""
    x, y = (points - points.mean(0)).T
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1.0
    rest = np.broadcast_to([0.75, 0.85], (len(hue), 2))
    return matplotlib.colors.hsv_to_rgb(np.column_stack([hue, rest]))


def _land(
    axes: Axes, points: np.ndarray, best: np.ndarray | None, frame: np.ndarray
) -> None:
    """Points [N, 2], each in the color of where the best takes the same noise.

    Without a best they are gray; the frame holds the points that it is given.
    """
    reach = 1.15 * float(np.abs(frame).max()) or 1.0
    num = len(points) if best is None else min(len(points), len(best))
    colours = "#808080" if best is None else directions(best[:num])
    axes.scatter(*points[:num].T, c=colours, s=2.5, linewidths=0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")


def landings(panels: Sequence[tuple[str, np.ndarray]], best: np.ndarray) -> bytes:
    """Where the same noise lands under several models, in the plane; a PNG.

    Args:
      panels: each one's title and points [N, 2].
      best: where the noise should land, [N, 2]. A point in the wrong place shows as a
        color in the wrong place.
    """
    columns = min(5, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, points) in zip(axes, panels):
        _land(ax, points, best, best)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=7)
    return _png(figure)


def landing(points: np.ndarray, best: np.ndarray | None, frame: np.ndarray) -> str:
    """One of `landings`, bare, in the frame of some points; a PNG in a data URI.

    Without a best the points are no noise's, such as the data's, and gray.
    """
    figure = Figure(figsize=(3.2, 3.2))
    axes = figure.add_axes((0, 0, 1, 1))
    _land(axes, points, best, frame)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True)
    return uri(buffer.getvalue())


def displacements(best: np.ndarray, mine: np.ndarray, reach: float, key: str) -> Markup:
    """Where a teacher lands [N, 2], and lines from there to where a student lands."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.0, 3.0))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot(*best.T, ".", color=TEACHER, markersize=2.5)
        axes.plot(
            *np.stack([best, mine], 1).transpose(2, 1, 0),
            color=STUDENT,
            linewidth=0.9,
        )
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set_axis_off()
        says = "Lines from where the teacher lands to where the student lands"
        return _svg(figure, key, says)
