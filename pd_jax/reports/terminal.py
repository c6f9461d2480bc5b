"""What a run says of itself at its start, with each row, and at its end."""

import platform

import jax
import jaxlib
from etils import epath

from pd_jax import __version__
from pd_jax.config.setup import Setup
from pd_jax.reports import report
from pd_jax.runtime import console


def start(name: str, setup: Setup, workdir: epath.Path, found: list[str]) -> None:
    """Says what is about to be done.

    Args:
      name: the run's.
      setup: the run's.
      workdir: its folder.
      found: what is there already, in words.
    """
    devices = jax.devices()
    weights = sum(a.size for a in jax.tree.leaves(setup.shapes))
    stages = [stage.name for t in setup.trainings for stage in t.stages]
    count = jax.process_count()
    spread = f" of {count} processes" if count > 1 else ""
    console.say(f"{name}: {' -> '.join(stages)}", "bold")
    console.say(
        f"{len(setup.dataset)} examples of shape {setup.dataset.shape}, "
        f"{weights:,} weights, {len(devices)} {devices[0].platform} device(s)"
        f"{spread}, jax {jax.__version__}\n"
        f"{'going on in' if found else 'writing to'} {workdir}"
        f"{': ' * bool(found)}{', '.join(found)}"
    )
    kinds = sorted({device.device_kind for device in devices})
    console.detail(
        f"pd_jax {__version__}, jaxlib {jaxlib.__version__}, "
        f"Python {platform.python_version()} on {platform.node()}\n"
        f"devices: {', '.join(kinds)}; networks compute in "
        f"{setup.model.dtype.name}\n"
        f"compiled programs: {jax.config.jax_compilation_cache_dir or 'not kept'}"
    )


def row(entry: dict) -> None:
    """Tells a row's figures, to those who want details."""
    figures = ", ".join(f"{k} {v:.4g}" for k, v in entry["metrics"].items())
    console.detail(
        f"{entry['model']}, {entry['num_steps']} step(s): {figures}; "
        f"{entry['seconds']:.1f} s"
    )


def end(result: dict, setup: Setup, workdir: epath.Path, names: list[str]) -> None:
    """Shows the figures, warnings and times of a run that is complete.

    Args:
      result: the report.
      setup: the run's.
      workdir: its folder.
      names: of the report's files.
    """
    console.show(report.table(result["rows"], everything=False))
    for warning in result["warnings"]:
        console.warn(f"warning: {warning}")
    if not setup.config.eval.inception and len(setup.dataset.shape) == 3:
        console.say("FID not measured: no Inception weights given (eval.inception)")
    times = [f"{name} {seconds:.0f} s" for name, seconds in result["seconds"].items()]
    console.say(f"time: {', '.join(times)}")
    main = [name for name in names if "/" not in name]
    console.say(f"wrote {', '.join(main)} in {workdir}")
