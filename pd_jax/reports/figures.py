"""Pictures for a page: plots as SVG in the page's own colours, samples as PNG.

A plot's text and lines are drawn in stand-in colours, which become CSS variables: the
page is light or dark as its reader's screen is, and its plots are with it.
"""

import base64
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from pd_jax import metrics
from pd_jax.runs.record import Line, StageRecord
from pd_jax.storage.pixels import to_uint8

INK, FAINT = "#010101", "#020202"
STAND_INS = {INK: "currentColor", FAINT: "var(--line)"}
TEACHER, STUDENT = "#030301", "#030302"
STAND_INS |= {TEACHER: "var(--teacher)", STUDENT: "var(--student)"}
RUNS = tuple(f"#0404{i:02x}" for i in range(1, 9))  # of a comparison
STAND_INS |= {colour: f"var(--run-{i})" for i, colour in enumerate(RUNS, 1)}
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
SHOWN = 320  # pixels of a grid's side, at most


class Curve(NamedTuple):
    """One line of a plot against sampling steps."""

    points: Sequence[tuple[int, float]]
    colour: str
    marker: str = "o"
    dashed: bool = False


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
    curves = [
        curve._replace(points=[(n, v) for n, v in curve.points if abs(v) < MOST])
        for curve in curves
    ]
    curves = [curve for curve in curves if curve.points]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 3.0))
        axes = figure.add_axes((0.13, 0.15, 0.85, 0.83))
        for curve in curves:
            axes.plot(
                *zip(*curve.points),
                color=curve.colour,
                marker=curve.marker,
                markersize=4.5,
                linewidth=1.6,
                linestyle="--" if curve.dashed else "-",
            )
        axes.set(xscale="log", xlabel="sampling steps")
        shown = _spaced(sorted(steps))
        axes.set_xticks(shown, [str(n) for n in shown])
        values = [value for curve in curves for _, value in curve.points]
        if metrics.is_log(metric) and values and min(values) > LEAST:
            axes.set_yscale("log")
            _label_log(axes, values)
        axes.minorticks_off()
        axes.tick_params(length=0)
        axes.grid(visible=True)
        return _svg(figure, key, says)


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
    found = [(line.update, getattr(line, field)) for line in lines]
    found = np.array(found, float).reshape(-1, 2)
    found = found[(found[:, 1] > LEAST) & (found[:, 1] < MOST)]
    parts = np.array_split(found, min(MOST_POINTS, len(found)) or 1)
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def losses(stages: Sequence[StageRecord]) -> Markup:
    """Loss and gradient norm of all stages, one after the other."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.2))
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        figure.subplots_adjust(0.085, 0.11, 0.99, 0.94, hspace=0.08)
        start, total = 0, sum(stage.end for stage in stages) or 1
        for stage in stages:
            colour = STUDENT if stage.num_steps else TEACHER
            for axes, field in ((above, "loss"), (below, "grad_norm")):
                updates, values = _thinned(stage.lines, field)
                # One point alone would be no line.
                mark = "." if len(updates) == 1 else ""
                axes.plot(start + updates, values, mark + "-", color=colour, lw=1)
                axes.axvline(start, color=FAINT, linewidth=0.6)
            _mark(above, stage, start, colour)
            if stage.end > NARROW * total:
                text = str(stage.num_steps or "teacher")
                middle = start + stage.end / 2
                where = above.get_xaxis_transform()
                above.text(middle, 1.03, text, transform=where, ha="center")
            start += stage.end
        above.set(ylabel="loss", xlim=(0, total))
        below.set(ylabel="gradient norm", xlabel="updates, all stages")
        for axes, field in ((above, "loss"), (below, "grad_norm")):
            axes.tick_params(length=0)
            if any(len(_thinned(stage.lines, field)[0]) for stage in stages):
                axes.set_yscale("log")
                axes.minorticks_off()
                _label_log(axes, axes.get_ylim())
            axes.grid(visible=True, axis="y")
        below.xaxis.set_major_formatter("{x:,.0f}")
        says = "Loss and gradient norm of the teacher's training and of every student's"
        return _svg(figure, "losses", says)


def _mark(axes, stage: StageRecord, start: int, colour: str) -> None:
    """Validation losses as dots, and crosses where updates were skipped."""
    checks = [
        (start + line.update, line.validation_loss)
        for line in stage.lines
        if LEAST < line.validation_loss < MOST
    ]
    if checks:
        axes.plot(*zip(*checks), "o", color=colour, markersize=3)
    skipped = [start + line.update for line in stage.lines if line.skipped]
    if skipped:
        where = axes.get_xaxis_transform()
        low = [0.04] * len(skipped)
        axes.plot(skipped, low, "x", color=INK, markersize=4, transform=where)


def tiles(images: np.ndarray, columns: int) -> str:
    """Images [N, H, W, C] in [-1, 1] as one PNG in a data URI, with clear gaps."""
    num, height, width, channels = images.shape
    lines, gap = -(-num // columns), max(1, height // 16)
    size = lines * (height + gap) - gap, columns * (width + gap) - gap
    shown = 1 if channels == 1 else 3
    grid = np.zeros((*size, shown + 1), np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        y, x = row * (height + gap), column * (width + gap)
        grid[y : y + height, x : x + width, :shown] = to_uint8(image)[..., :shown]
        grid[y : y + height, x : x + width, shown] = 255
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    return _uri(buffer.getvalue())


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def grid(images: np.ndarray) -> str:
    """As many of the first images as a grid shows well, up to 8 x 8."""
    side = min(max(SHOWN // max(images.shape[1:3]), 3), 8)
    return tiles(images[: side * side], side)


def directions(points: np.ndarray) -> np.ndarray:
    """A colour [N, 3] for each point [N, 2]: its direction from the middle."""
    x, y = (points - points.mean(0)).T
    hue = (np.arctan2(y, x) / (2 * np.pi)) % 1.0
    rest = np.broadcast_to([0.75, 0.85], (len(hue), 2))
    return matplotlib.colors.hsv_to_rgb(np.column_stack([hue, rest]))


def landing(points: np.ndarray, colours: np.ndarray, reach: float) -> str:
    """Points [N, 2] within `reach` of the origin as a PNG in a data URI."""
    figure = Figure(figsize=(3.2, 3.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.scatter(*points.T, c=colours, s=2.5, linewidths=0)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True)
    return _uri(buffer.getvalue())


def displacements(
    theirs: np.ndarray, mine: np.ndarray, reach: float, key: str
) -> Markup:
    """Where a teacher lands [N, 2], and lines from there to where a student lands."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.0, 3.0))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.plot(*theirs.T, ".", color=TEACHER, markersize=2.5)
        axes.plot(
            *np.stack([theirs, mine], 1).transpose(2, 1, 0),
            color=STUDENT,
            linewidth=0.9,
        )
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set_axis_off()
        says = "Lines from where the teacher lands to where the student lands"
        return _svg(figure, key, says)
