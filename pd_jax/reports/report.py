"""The report for people: report.md, plots and sample grids."""

import io
import pathlib

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from pd_jax import metrics, samplers
from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import Row, row_of
from pd_jax.storage.pixels import to_uint8
from pd_jax.storage.writers import write_whole

# Two colours that stay apart in print and to colour-blind eyes.
COLOURS = {"teacher": "#b35806", "student": "#3a5fa8"}


def metric_names(rows: list[dict]) -> list[str]:
    """All metrics of the rows; those measured by an older version may have fewer."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def table(rows: list[dict], everything: bool = True) -> str:
    """The rows as Markdown: steps down, metrics across, "teacher / student" in a cell.

    Not `everything`: the three main metrics, within the 80 columns of a terminal.
    """
    names = metric_names(rows)
    if not everything:
        names = [name for name in metrics.main() if name in names][:3]
    found = {
        (r["num_steps"], metric, r["model"]): f"{value:#.3g}"
        for r in rows
        for metric, value in r["metrics"].items()
        if metric in names
    }
    lines = [["steps", *names], ["", *["teacher / student"] * len(names)]]
    for steps in sorted({r["num_steps"] for r in rows}, reverse=True):
        cells = [
            " / ".join(
                found.get((steps, metric, model), "").rjust(7) for model in COLOURS
            )
            for metric in names
        ]
        lines.append([str(steps), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(text)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()


def plot_quality(rows: list[dict]) -> bytes:
    """Every metric against sampling steps, teacher and students, log axes; a PNG."""
    names = metric_names(rows)
    sampler = samplers.get(rows[0]["sampler"]).label
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for axes, metric in zip(panels, names):
        for model, marker in (("teacher", "s"), ("student", "o")):
            points = sorted(
                (r["num_steps"], r["metrics"][metric])
                for r in rows
                if r["model"] == model and metric in r["metrics"]
            )
            if not points:
                continue
            label = {"teacher": f"teacher, {sampler}", "student": "distilled students"}
            style = dict(marker=marker, color=COLOURS[model], label=label[model])
            axes.plot(*zip(*points), **style)
        axes.set(xscale="log", xlabel="sampling steps")
        axes.set_title(metrics.label(metric), fontsize=10)
        steps = sorted({r["num_steps"] for r in rows})
        axes.set_xticks(steps, [str(s) for s in steps])
        if metrics.is_log(metric):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[len(names) - 1].legend(frameon=False)
    return _png(figure)


def image_grid(images: np.ndarray, side: int = 8, pixels: int = 512) -> bytes:
    """The first side x side images [N, H, W, C] in [-1, 1] as one PNG."""
    images = images[: side * side]
    height, width, channels = images.shape[1:]
    scale = max(1, pixels // (side * max(height, width)))
    size = side * (height + 1) - 1, side * (width + 1) - 1, channels
    grid = np.full(size, 255, np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, side)
        y, x = row * (height + 1), column * (width + 1)
        grid[y : y + height, x : x + width] = to_uint8(image)
    grid = grid.repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(grid[..., 0] if channels == 1 else grid[..., :3]).save(
        buffer, format="PNG"
    )
    return buffer.getvalue()


def plot_landing(
    evaluation: Evaluation, rows: list[Row], exact: bool, reach: float
) -> bytes:
    """Where the same noise lands under each model, for data in the plane; a PNG.

    Points are coloured by the direction of their noise, so that a point in the wrong
    place shows as a colour in the wrong place.
    """
    panels = [
        (f"{row.model}, {row.num_steps} step{'s' * (row.num_steps > 1)}", row.name)
        for row in rows
    ]
    if exact:
        panels.insert(0, ("exact map", "reference_exact"))
    columns = min(5, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns, 2.7 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    for ax, (title, name) in zip(axes, panels):
        points = evaluation.saved_samples(name)
        noise = evaluation.noise(len(points))
        colour = np.arctan2(noise[:, 1], noise[:, 0])
        ax.scatter(*points.T, c=colour, cmap="hsv", s=3, linewidths=0)
        limits = (-1.15 * reach, 1.15 * reach)
        ax.set(title=title, xlim=limits, ylim=limits, aspect="equal")
        ax.title.set_fontsize(9)
        ax.tick_params(labelsize=7)
    return _png(figure)


def pictures(evaluation: Evaluation, setup: Setup, rows: list[Row]) -> dict[str, bytes]:
    """The pictures of samples: a grid a row for images, one figure for the plane."""
    if len(setup.dataset.shape) == 3:
        grids = {f"samples/{r.name}.png": r.name for r in rows}
        grids["samples/teacher_reference.png"] = "reference_teacher"
        return {
            file: image_grid(evaluation.saved_samples(name))
            for file, name in grids.items()
        }
    if setup.dataset.shape == (2,):
        exact = setup.dataset.denoise is not None
        students = [r for r in rows if r.model == "student"]
        few = [r for r in rows if r.model == "teacher" and r.num_steps in (1, 4)]
        few_rows = np.arange(min(len(setup.dataset), 10_000))
        reach = float(np.abs(setup.dataset.take(few_rows)["image"]).max())
        return {"landing.png": plot_landing(evaluation, few + students, exact, reach)}
    return {}


class Report:
    """The callback that writes the report for people, plots and pictures."""

    def __init__(self, workdir: epath.Path):
        """Of the run in `workdir`."""
        self._workdir = workdir

    def on_begin(self, setup: Setup, present: list[str]) -> None:
        """Learns what the run is made of."""
        self._setup = setup

    def on_report(self, report: dict, evaluation: Evaluation) -> None:
        """Writes all files."""
        _write(self._workdir, report, evaluation, self._setup)


def _write(
    workdir: epath.Path, report: dict, evaluation: Evaluation, setup: Setup
) -> None:
    rows = report["rows"]
    files = {"quality.png": plot_quality(rows)}
    files |= pictures(evaluation, setup, [row_of(entry) for entry in rows])
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in report["seconds"].items())
    early = ", ".join(
        f"{stage} after {updates['done']} of {updates['planned']} updates"
        for stage, updates in report["updates"].items()
        if updates["done"] < updates["planned"]
    )
    protocol = report["protocol"]
    lines = [
        f"# {report['config']}",
        "",
        "Teacher and distilled students:",
        "",
        table(rows),
        "",
        *(f"**Warning:** {warning}.\n" for warning in report["warnings"]),
        *(
            f"- {name}: {words}"
            for name, words in protocol.items()
            if name in ("samples", *metric_names(rows))
            or words.startswith("not measured")
        ),
        "",
        f"Time: {seconds}.",
        "",
        *([f"Ended early, on a plateau: {early}.", ""] if early else []),
        "![quality against steps](quality.png)",
        "",
        "The same noise, in the same place of every picture:",
        "",
        *(
            f"{pathlib.PurePath(name).stem}\n\n![{name}]({name})\n"
            for name in files
            if name != "quality.png"
        ),
    ]
    files["report.md"] = "\n".join(lines)
    for name, content in files.items():
        write_whole(workdir / name, content)
