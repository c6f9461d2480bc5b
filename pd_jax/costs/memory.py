"""Memory of a run's updates, before anything is compiled; what to say if it is short.

What an update certainly needs is coarse and cheap: the train state, and the results of
the convolutions and matrix products of one forward pass, times a factor. Measured are
arguments + temporaries of compiled updates without their state, in units of those
results. XLA:CPU, float32: 3.3 (U-Net with attention at 16x16), 3.6 (digits' MLP), 3.8
(DiT), 3.9 to 4.3 (photos32:smoke), 4.6 to 4.9 (image_folder:large, batch 8); it does
not compute again what `model.remat` asks for. bfloat16: v5e 1.2 (cifar10), 0.6
(imagenet64, near its limit), H100 2.2 (cifar10).
"""

from collections.abc import Collection, Iterator

import jax

from pd_jax.config.setup import Setup, sketch
from pd_jax.costs.count import count, held_bytes, result_bytes
from pd_jax.runtime import console, host
from pd_jax.runtime.errors import Refused
from pd_jax.training.training import Training

SHOWN = 3  # parts of an estimate, the largest
# Times the results of a forward pass: what is certainly needed, and what is enough.
CPU, CPU_AMPLE, OTHERS = 2.5, 5.0, 0.5
ROOM = 0.9  # share of a memory that may be filled


def check(setup: Setup, names: Collection[str]) -> None:
    """Compares what updates certainly need with what there is, before compiling.

    Args:
      setup: the run's.
      names: the trainings that still have updates to make.

    Raises:
      Refused: on CPU, if memory is certainly short, naming keys and values that fit. On
        accelerators, whose compilers can compute results again, it is a warning.
    """
    here = jax.local_devices()
    cpu = here[0].platform == "cpu"
    size = host.memory_bytes() if cpu else _limit(here[0])
    if size is None or not setup.config.run.check_memory:
        return
    room = ROOM * size / (len(here) if cpu else 1)
    for training in setup.trainings:
        problem = training.name in names and _problem(setup, training, room, cpu)
        if not problem:
            continue
        text = (
            f"{problem}; "
            f"{'this machine has' if cpu else 'a device has'} {_gigabytes(size)} for "
            "that and all else"
        )
        if cpu:
            raise Refused(f"{text}. {_remedies(setup, training, room)}")
        console.warn(f"warning: {text}")


def _limit(device: jax.Device) -> int | None:
    """Bytes that JAX may use of an accelerator's memory; None if unknown."""
    return (device.memory_stats() or {}).get("bytes_limit")


def _problem(setup: Setup, training: Training, room: float, cpu: bool) -> str:
    """What is certainly too much for `room` bytes on each device, in words; or ""."""
    least = CPU if cpu else OTHERS
    batch, parts = training.batch, setup.config[training.name].microbatches
    at_once = batch // len(training.step.devices) // parts
    results = result_bytes(setup, at_once, recomputes=not cpu)
    needs = held_bytes(setup, training) + least * results
    if needs <= room:
        return ""
    count = len(jax.local_devices())
    spread = f" on each of {count} devices" if count > 1 else ""
    return (
        f"an update of {training.name} needs {_gigabytes(needs)} at least{spread}, "
        f"with {training.name}.batch={batch}"
    )


def _remedies(setup: Setup, training: Training, room: float) -> str:
    """Keys and values with which a training certainly fits, in words."""
    name, devices = training.name, len(training.step.devices)
    held = held_bytes(setup, training)
    one = CPU_AMPLE * result_bytes(setup, 1, recomputes=False)
    sizes = [n for n in _divisors(training.batch // devices) if held + n * one <= room]
    if not sizes:
        return (
            "A smaller network (section model) or smaller examples are what lowers it; "
            "--config.run.check_memory=False tries it all the same"
        )
    at_once = sizes[0]
    parts = training.batch // devices // at_once
    return (
        f"What fits: --config.{name}.batch={at_once * devices}; or the same batch in "
        f"parts, --config.{name}.microbatches={parts}; or a smaller network (section "
        "model). --config.run.check_memory=False tries it all the same"
    )


def _divisors(number: int) -> Iterator[int]:
    """Divisors of a number, the largest first."""
    return (n for n in range(number, 0, -1) if number % n == 0)


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
        "make another run: if anything is saved already, it needs another --workdir"
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
