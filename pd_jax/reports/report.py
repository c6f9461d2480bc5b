"""The report for people: report.md, plots and sample grids."""

import pathlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from pd_jax import config as configs
from pd_jax import metrics
from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import Row, by_series, row_of
from pd_jax.reports import figures, grids
from pd_jax.space import POINTS
from pd_jax.storage.writers import write_whole


def metric_names(rows: list[dict]) -> list[str]:
    """All metrics of the rows; those measured by an older version may have fewer."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))


def table(
    rows: list[dict],
    names: Sequence[str] | None = None,
    series: Sequence[str] | None = None,
) -> str:
    """The rows as Markdown: steps down, metrics across, "teacher / student" in cells.

    Args:
      rows: entries of the report.
      names: the metrics; default all.
      series: the curves; default all.
    """
    curves = by_series(rows)
    names = metric_names(rows) if names is None else names
    series = list(curves) if series is None else series
    values = {
        (entry["num_steps"], metric, name): f"{value:#.3g}"
        for name in series
        for entry in curves[name]
        for metric, value in entry["metrics"].items()
    }
    lines = [["steps", *names], ["", *[" / ".join(series)] * len(names)]]
    steps = {entry["num_steps"] for name in series for entry in curves[name]}
    for n in sorted(steps, reverse=True):
        cells = [
            " / ".join(values.get((n, m, name), "").rjust(7) for name in series)
            for m in names
        ]
        lines.append([str(n), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(c.rjust(w) for c, w in zip(line, widths)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|")
    return "\n".join(text)


def summary(rows: list[dict], width: int) -> str:
    """As `table`, of as many main metrics as fit a width, three at most.

    Where not even one fits there is a table for each few curves.
    """
    names = [name for name in metrics.main() if name in metric_names(rows)][:3]
    series = list(by_series(rows))

    def fits(text: str) -> bool:
        return len(text.partition("\n")[0]) <= width

    while len(names) > 1 and not fits(table(rows, names)):
        names.pop()
    for size in range(len(series), 0, -1):
        parts = [series[i : i + size] for i in range(0, len(series), size)]
        texts = [table(rows, names, part) for part in parts]
        if all(map(fits, texts)):
            break
    return "\n\n".join(texts)


def _labels(evaluation: Evaluation) -> np.ndarray | None:
    """Labels [N] of the samples of each row that are shown; None without."""
    if not evaluation.has("labels"):
        return None
    num = len(evaluation.saved_samples("reference_teacher"))
    return evaluation.saved_samples("labels")[:num]


def pictures(evaluation: Evaluation, setup: Setup, rows: list[Row]) -> dict[str, bytes]:
    """The pictures of samples: a grid a row where they have areas, else the plane's.

    There are none of samples that are not finite.
    """
    saved, space = evaluation.saved_samples, setup.space
    if space.has_areas:
        names = {"samples/data.png": "examples"}
        names |= {f"samples/{row.name}.png": row.name for row in rows}
        names["samples/teacher_reference.png"] = "reference_teacher"
        best, labels, files = saved("reference_teacher"), _labels(evaluation), {}
        for file, name in names.items():
            if not evaluation.has(name):  # of an earlier version
                continue
            x, own = grids.pictures(saved(name), space, best), labels
            if name == "examples" and labels is not None:
                own = saved("examples_labels")
            if x is not None:
                like = [] if labels is None else grids.classes(labels)
                _, places = grids.arranged(len(x), 8, own, like)
                files[file] = grids.image_grid(x, places)
        return files
    if space.kind != POINTS:
        return {}
    exact = setup.dataset.denoise is not None
    best = saved("reference_exact" if exact else "reference_teacher")
    panels = [("exact map" if exact else "teacher at its best", best)]
    for row in rows:
        if row.model == "student" or row.num_steps in (1, 4):
            title = f"{row.series}, {row.num_steps} step{'s' * (row.num_steps > 1)}"
            panels.append((title, saved(row.name)))
    panels = [(title, x) for title, x in panels if np.all(np.isfinite(x))]
    if not np.all(np.isfinite(best)):
        return {}
    return {"landing.png": figures.landings(panels, best)}


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


def floor_line(floor: dict) -> str:
    """What the metrics are of one half of the data against the other, in words."""
    one, other = floor["num_examples"]
    values = (f"{name} {value:#.3g}" for name, value in floor["metrics"].items())
    return f"Two halves of the data ({one} and {other} examples): {', '.join(values)}."


def _better(name: str) -> str:
    better = metrics.direction(name)
    return better and f" ({better})"


def _self_consistency(found: dict) -> list[str]:
    """How far models agree with themselves along the path, as Markdown."""
    texts = []
    for name, values in found["rmse"].items():
        measured = [value for value in values if value is not None]
        words = []
        if values[0] is not None:
            words.append(f"{values[0]:#.3g} from the noise")
        if len(measured) > 1:
            words.append(f"{np.mean(measured):#.3g} over {len(measured)} times")
        texts += [f"{name} {', '.join(words)}"] if words else []
    if not texts:
        return [f"Self-consistency: {why}.\n" for why in found["left_out"].values()]
    return [
        "Self-consistency, RMSE of the data that a model points at from the teacher's "
        "path to where that ends, at times that the model was trained at (0 of an "
        f"exact consistency model): {'; '.join(texts)}.",
        "",
    ]


def _speed(report: dict) -> list[str]:
    """What sampling took, as Markdown."""
    rows = [
        f"| {name} | {times['batch'] / times['batch_seconds']:,.3f} "
        f"| {1000 * times['batch_seconds']:,.3f} | {times['batch']} |"
        for name, times in report["sampling"].items()
    ]
    head = ["| | samples/s | ms a batch | batch |", "|---|---:|---:|---:|"]
    return [*head, *rows, ""] if rows else []


def _classes(evaluation: Evaluation) -> str:
    """Which class each row of a picture is, in words; "" without classes."""
    labels = _labels(evaluation)
    if labels is None:
        return ""
    names = evaluation.class_names(grids.classes(labels))
    return f"; a row for each class, from above {', '.join(names)}"


def _write(
    workdir: epath.Path, report: dict, evaluation: Evaluation, setup: Setup
) -> None:
    rows = report["rows"]
    measured = metric_names(rows)
    floor = report["floor"].get("metrics", {})
    quality = figures.quality(rows, floor)
    files = {"quality.png": quality} if quality else {}
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
        f"{configs.title(setup.config)}: teacher and students.",
        "",
        table(rows),
        "",
        *([f"{floor_line(report['floor'])}\n"] if floor else []),
        *(f"**Warning:** {warning}.\n" for warning in report["warnings"]),
        *(
            f"- {name}{_better(name)}: {words}"
            for name, words in protocol.items()
            if name in ("samples", "floor", *measured)
            or words.startswith("not measured")
        ),
        "",
        *_self_consistency(report["self_consistency"]),
        f"Time: {seconds}.",
        "",
        *_speed(report),
        f"Made {report['made']['date']} on {report['made']['devices']} "
        f"({report['made']['processor']}) with "
        f"{', '.join(f'{k} {v}' for k, v in report['versions'].items())}:",
        "",
        f"    {report['made']['command']}",
        "",
        *([f"Ended early, on a plateau: {early}.", ""] if early else []),
        *(["![quality against steps](quality.png)", ""] if quality else []),
        f"The same noise, in the same place of every picture{_classes(evaluation)}:",
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
