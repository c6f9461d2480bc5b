"""Terminal output of a run: header, rows, summary."""

import platform

import jax
import jaxlib
import numpy as np
from etils import epath

from pd_jax import __version__, metrics
from pd_jax.config.setup import Setup
from pd_jax.evaluation.rows import series_of
from pd_jax.reports import report as reports
from pd_jax.runtime import console

FILES = ("report.html", "quality.png", "landing.png", "report.md", "report.json")


class Terminal:
    """The callback that prints."""

    def __init__(self, workdir: epath.Path, name: str):
        """For the run called `name` in `workdir`."""
        self._workdir, self._name = workdir, name

    def on_done(self, report: dict) -> None:
        """Prints the table of a run that was complete before."""
        console.say(f"everything is done already, nothing to do: {self._workdir}")
        console.show(reports.summary(report["rows"], console.width()))

    def on_begin(self, setup: Setup, present: list[str]) -> None:
        """Prints what is about to be done.

        Args:
          setup: the run's.
          present: what is in its folder already, in words.
        """
        devices = jax.devices()
        weights = sum(a.size for a in jax.tree.leaves(setup.shapes))
        stages = [stage.name for t in setup.trainings for stage in t.stages]
        count = jax.process_count()
        spread = f" of {count} processes" if count > 1 else ""
        console.say(f"{self._name}: {' -> '.join(stages)}", "bold")
        others = [(n, d) for n, d in setup.datasets.items() if d is not setup.dataset]
        more = "".join(f", {len(dataset)} of {name}" for name, dataset in others)
        console.say(
            f"{len(setup.dataset)} examples{more} of shape {setup.dataset.shape}, "
            f"{weights:,} weights, {len(devices)} {devices[0].platform} device(s)"
            f"{spread}, jax {jax.__version__}\n"
            f"{'going on in' if present else 'writing to'} {self._workdir}"
            f"{': ' * bool(present)}{', '.join(present)}"
        )
        classes = setup.dataset.num_classes
        if classes > 1 and getattr(setup.model.network, "num_classes", 0) < 2:
            console.say(
                f"labels of {classes} classes are not used: "
                f"model.num_classes={classes} trains on them"
            )
        kinds = sorted({device.device_kind for device in devices})
        console.detail(
            f"pd_jax {__version__}, jaxlib {jaxlib.__version__}, "
            f"Python {platform.python_version()} on {platform.node()}\n"
            f"devices: {', '.join(kinds)}; networks compute in "
            f"{setup.model.dtype.name}\n"
            f"compiled programs: {jax.config.jax_compilation_cache_dir or 'not kept'}"
        )

    def on_row(self, entry: dict, samples: np.ndarray) -> None:
        """Prints a row's values, for those who want details."""
        values = ", ".join(f"{k} {v:.4g}" for k, v in entry["metrics"].items())
        console.detail(
            f"{series_of(entry)}, {entry['num_steps']} step(s): "
            f"{'; '.join([values, *entry.get('errors', ())]).lstrip('; ')}; "
            f"{entry['seconds']:.1f} s"
        )

    def on_checkpoint(self, stage: str, update: int) -> None:
        """Prints that one is made, for those who want details."""
        console.detail(f"{stage}: checkpoint at update {update}")

    def on_end(self, report: dict) -> None:
        """Prints the table, warnings and times."""
        console.show(reports.summary(report["rows"], console.width()))
        if report["floor"].get("metrics"):
            console.say(reports.floor_line(report["floor"]))
        for warning in report["warnings"]:
            console.warn(f"warning: {warning}")
        for name, words in report["protocol"].items():
            if words.startswith("not measured"):
                console.say(f"{metrics.label(name)} {words}")
        times = [f"{name} {value:.0f} s" for name, value in report["seconds"].items()]
        console.say(f"time: {', '.join(times)}")
        written = [name for name in FILES if (self._workdir / name).exists()]
        console.say(f"wrote {', '.join(written)} in {self._workdir}")
