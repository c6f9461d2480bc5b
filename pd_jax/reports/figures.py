"""Pictures for a page: plots as SVG in the page's own colours, samples as PNG.

A plot's text and lines are drawn in stand-in colours, which become CSS variables: the
page is light or dark as its reader's screen is, and its plots are with it.
"""

import io
import math
import re
from collections.abc import Iterable, Sequence
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
NARROW = 0.025  # share of all updates below which a stage gets no label
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
    metric: str, curves: Iterable[Curve], steps: Sequence[int], key: str, says: str
) -> Markup:
    """A metric against sampling steps, both on log axes where they can be."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.add_axes((0.13, 0.15, 0.85, 0.83))
        _draw(axes, metric, curves, steps)
        return _svg(figure, key, says)


def quality(rows: Sequence[dict]) -> bytes:
    """Every metric of a run's rows against sampling steps; a PNG of its own."""
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    steps = {row["num_steps"] for row in rows}
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE | {"grid.color": "#dde1e7"}):
        figure = Figure(figsize=(4.6 * columns, 3.8 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes in panels[len(names) :]:
            axes.set_visible(False)
        for axes, metric in zip(panels, names):
            _draw(axes, metric, curves(rows, metric, PRINTED), steps)
            axes.set_title(metrics.label(metric), fontsize=10)
        panels[len(names) - 1].legend(frameon=False)
        return _png(figure)


def _draw(
    axes: Axes, metric: str, curves: Iterable[Curve], steps: Iterable[int]
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


def losses(stages: Sequence[StageRecord]) -> Markup:
    """Loss, gradient norm and a method's own curves, one stage after the other."""
    fields = _fields(stages)
    colours = dict.fromkeys(stage.training for stage in stages if stage.num_steps)
    colours = dict(zip(colours, SERIES[1:]))
    with matplotlib.rc_context(STYLE):
        ratios = (3, *[2] * (len(fields) - 1))
        figure = Figure(figsize=(9.0, 1.0 + 0.64 * sum(ratios)))
        panels = figure.subplots(len(fields), 1, sharex=True, height_ratios=ratios)
        rim = 0.46 / figure.get_figheight()
        figure.subplots_adjust(0.085, rim, 0.99, 1.0 - 0.55 * rim, hspace=0.08)
        total = sum(stage.end for stage in stages) or 1
        for axes, field in zip(panels, fields):
            start, drawn = 0, [np.zeros(0)]
            for stage in stages:
                updates, values = _thinned(stage.lines, field)
                # One point alone would be no line.
                mark = "." if len(updates) == 1 else ""
                colour = colours.get(stage.training, TEACHER)
                axes.plot(start + updates, values, mark + "-", color=colour, lw=1)
                axes.axvline(start, color=FAINT, linewidth=0.6)
                if field == "loss":
                    _mark(axes, stage, start, total, colour)
                start += stage.end
                drawn.append(values)
            axes.set(ylabel=AXES.get(field, field.replace("_", " ")), xlim=(0, total))
            _scale(axes, np.concatenate(drawn))
        panels[-1].set(xlabel="updates, all stages")
        panels[-1].xaxis.set_major_formatter("{x:,.0f}")
        says = "Loss and gradient norm of the teacher's training and of every student's"
        return _svg(figure, "losses", says)


def _mark(axes: Axes, stage: StageRecord, start: int, total: int, colour: str) -> None:
    """A stage's name, validation losses as dots, crosses for skipped updates."""
    where = axes.get_xaxis_transform()
    if stage.end > NARROW * total:
        short = stage.name.endswith(f"_{stage.num_steps}")
        text = str(stage.num_steps) if short else stage.name
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


def _land(axes: Axes, points: np.ndarray, best: np.ndarray) -> None:
    """Points [N, 2], each in the color of where the best takes the same noise."""
    reach = 1.15 * float(np.abs(best).max()) or 1.0
    num = min(len(points), len(best))
    axes.scatter(*points[:num].T, c=directions(best[:num]), s=2.5, linewidths=0)
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
        _land(ax, points, best)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=7)
    return _png(figure)


def landing(points: np.ndarray, best: np.ndarray) -> str:
    """One of `landings`, bare, as a PNG in a data URI."""
    figure = Figure(figsize=(3.2, 3.2))
    axes = figure.add_axes((0, 0, 1, 1))
    _land(axes, points, best)
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
