"""What to say where a device's memory is not enough."""

import jax

from pd_jax.config.setup import Setup, sketch
from pd_jax.costs.count import count

SHOWN = 3  # parts of an estimate, the largest


def advice(setup: Setup, part: str) -> str:
    """What lowers the memory of a run's part, to put after what is wrong.

    Args:
      setup: the run's.
      part: a training's name, or "evaluation".
    """
    return (_of_sampling if part == "evaluation" else _of_training)(setup, part)


def _of_sampling(setup: Setup, name: str) -> str:
    size = setup.config.run.eval_batch
    return (
        f"; the same command goes on with a smaller run.eval_batch than {size}, and "
        "what is measured stays the same"
    )


def _of_training(setup: Setup, name: str) -> str:
    config, section = setup.config, setup.config[name]
    keys = [
        f"a smaller {name}.batch than {section.batch}",
        f"a larger {name}.microbatches than {section.microbatches}",
    ]
    if "remat" in config.model:
        keys.append(f"model.remat (now {config.model.remat})")
    *first, last = keys
    return (
        f"{_estimate(setup, name)}. What lowers it: {', '.join(first)} or {last}. They "
        "make another run, which needs another --workdir"
    )


def _estimate(setup: Setup, name: str) -> str:
    """What a step takes, in words; empty where that cannot be told."""
    num = jax.device_count()
    config = setup.config.copy_and_resolve_references()
    config.precision = setup.model.dtype.name  # "auto" is another one elsewhere
    try:
        costs = count(sketch(config, num), num)
    except Exception:  # the error that led here matters more
        return ""
    cost = next(cost for cost in costs.trainings if cost.name == name)
    parts = sorted(cost.memory, key=cost.memory.get, reverse=True)[:SHOWN]
    words = ", ".join(f"{part} {_gigabytes(cost.memory[part])}" for part in parts)
    return (
        f"; a step needs {_gigabytes(cost.total)} on each of {num} devices by "
        f"estimate ({words})"
    )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
