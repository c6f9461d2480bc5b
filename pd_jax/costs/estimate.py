"""What a run will take, before anyone pays: memory, chip-hours, days, disk.

Of the counts of `pd_jax.costs.count` and a chip's data sheet. Time is FLOP / (chips *
peak * utilisation); the utilisation is for you to bring. The chips need not be here,
nor the data; nothing is written.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from pd_jax.config.setup import sketch
from pd_jax.costs.count import Cost, Costs, compiler_memory, count
from pd_jax.runtime import numerics, processes, registry
from pd_jax.runtime.errors import Refused

ROOMY = 0.9  # share of a chip's memory above which a step is called tight
NOTES = (
    "Not counted: compiling, reading data, writing checkpoints, Inception features.",
    "Utilisation is a guess until measured. With precision=float32 TPUs multiply in",
    "bfloat16 still, these GPUs in TF32, at half the peak above.",
)


class Chip(NamedTuple):
    """A chip as its maker states it.

    Attributes:
      flops: dense bfloat16, a second.
      memory: bytes.
      link: bytes a second that it sends to its neighbours in a slice or a node.
    """

    flops: float
    memory: float
    link: float


# Google Cloud's TPU pages, "system architecture"; NVIDIA's data sheets, SXM boards,
# where the figures with sparsity, and those of NVLink in both directions, are halved.
# A GB is taken as 10^9 bytes.
CHIPS = {
    "v4": Chip(275e12, 32e9, 300e9),
    "v5e": Chip(197e12, 16e9, 200e9),
    "v5p": Chip(459e12, 95e9, 600e9),
    "v6e": Chip(918e12, 32e9, 400e9),
    "A100": Chip(312e12, 80e9, 300e9),
    "H100": Chip(989e12, 80e9, 450e9),
    "H200": Chip(989e12, 141e9, 450e9),
}


def _number(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}" if x >= 0.01 else "<0.01"


def _si(x: float, unit: str) -> str:
    """Four digits and a prefix: 1.184 GB."""
    for prefix, scale in zip("PTGMk", (1e15, 1e12, 1e9, 1e6, 1e3)):
        if x >= scale:
            return f"{x / scale:.4g} {prefix}{unit}"
    return f"{x:.4g} {unit}" if x else "-"


def _grid(*rows: tuple) -> list[str]:
    """Lines of a table: the first column to the left, others to the right."""
    rows = [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def _remedies(cost: Cost, room: float, num_chips: int) -> Iterator[str]:
    """Keys that would bring a training's memory under `room`, each alone."""
    parts, per_device = cost.microbatches, cost.at_once * cost.microbatches
    for more in range(parts + 1, per_device + 1):
        needs = cost.needs(per_device // more, more)
        if per_device % more == 0 and needs <= room:
            yield f"--config.{cost.name}.microbatches={more}: {_si(needs, 'B')}"
            break
    for size in range(cost.at_once - 1, 0, -1):
        needs = cost.needs(size, parts)
        if needs <= room and cost.at_once % size == 0:
            chips = num_chips * cost.at_once // size
            yield f"--num_chips={chips}: {_si(needs, 'B')}"
            break
    for size in range(cost.at_once - 1, 0, -1):
        needs = cost.needs(size, parts)
        if needs <= room:
            key = f"--config.{cost.name}.batch={size * parts * num_chips}"
            yield f"{key}: {_si(needs, 'B')}; another training, though"
            break


def _verdict(cost: Cost, chip: Chip, num_chips: int) -> list[str]:
    """Whether a training fits a chip, and what would make it fit."""
    room = ROOMY * chip.memory
    if cost.total <= room:
        return [f"{cost.name}: fits"]
    verdict = "does not fit" if cost.total > chip.memory else "is tight"
    remedies = list(_remedies(cost, room, num_chips))
    if not remedies:
        least = _si(cost.needs(1, cost.at_once * cost.microbatches), "B")
        return [f"{cost.name}: {verdict}; even one image at a time needs {least}"]
    return [f"{cost.name}: {verdict}; one of", *(f"    {line}" for line in remedies)]


def _work(costs: Costs) -> list[str]:
    rows = [("", "batch", "an update", "by XLA's count", "forward passes an image")]
    for c in costs.trainings:
        passes = f"{c.flops / c.batch / costs.forward:.2f}"
        flops = _si(c.flops, "FLOP"), _si(c.xla_flops, "FLOP")
        rows.append((c.name, c.batch, *flops, passes))
    return _grid(*rows)


def _memory(costs: Costs, name: str, chip: Chip) -> list[str]:
    trainings = costs.trainings
    parts = dict.fromkeys(part for c in trainings for part in c.memory)
    rows = [
        (part, *(_si(c.memory.get(part, 0), "B") for c in trainings)) for part in parts
    ]
    return _grid(
        ("memory of a chip", *(c.name for c in trainings)),
        ("images at once", *(c.at_once for c in trainings)),
        *rows,
        ("together", *(_si(c.total, "B") for c in trainings)),
        (
            f"of {_si(chip.memory, 'B')} ({name})",
            *(f"{c.total / chip.memory:.0%}" for c in trainings),
        ),
    )


def _exchange(
    costs: Costs, chip: Chip, num_chips: int, utilisation: float
) -> list[str]:
    """What the chips tell each other: the mean of the gradients.

    A ring all-reduce sends 2 (n-1)/n times the gradients' bytes from each of n chips.
    """
    rows = [("all-reduce of gradients", "a chip sends", "time", "of computing")]
    for cost in costs.trainings:
        sent = 2.0 * (num_chips - 1) / num_chips * cost.reduced
        taken = sent / chip.link
        computing = cost.flops / (num_chips * chip.flops * utilisation)
        share = f"{taken / computing:.2%}"
        rows.append((cost.name, _si(sent, "B"), f"{1e3 * taken:.3g} ms", share))
    return _grid(*rows)


def _time(costs: Costs, pace: float, num_chips: int) -> list[str]:
    """Chip-hours of each stage, at `pace` FLOP a chip-hour."""

    def row(name, flops, cost=None, updates=0):
        hours = flops / pace
        counts = ("", "")
        if cost:
            counts = f"{updates:,}", _number(updates * cost.batch / 1e6)
        return name, *counts, _number(hours), _number(hours / num_chips / 24.0)

    rows = []
    for cost in costs.trainings:
        for s in cost.stages:
            rows.append(row(s.name, s.updates * cost.flops, cost, s.updates))
        if len(cost.stages) > 1:
            total = sum(s.updates for s in cost.stages)
            rows.append(row(f"{cost.name}, all", total * cost.flops, cost, total))
    return _grid(
        ("", "updates", "million images", "chip-hours", f"days on {num_chips}"),
        *rows,
        *([row("pairs", costs.pairs)] if costs.pairs else []),
        row("evaluation", costs.evaluation),
        row("together", costs.flops),
    )


def _chips(costs: Costs, num_chips: int, utilisation: float) -> list[str]:
    most = max(c.total for c in costs.trainings)
    rows = []
    for name, chip in CHIPS.items():
        hours = costs.flops / (3600.0 * chip.flops * utilisation)
        time = _number(hours), _number(hours / num_chips / 24.0)
        peak, memory = f"{chip.flops / 1e12:.0f}", _si(chip.memory, "B")
        rows.append((name, peak, *time, memory, f"{most / chip.memory:.0%}"))
    days = f"days on {num_chips}"
    return _grid(("chip", "TFLOP/s", "chip-hours", days, "memory", "used"), *rows)


def table(
    name: str, costs: Costs, chip_name: str, num_chips: int, utilisation: float
) -> str:
    """Costs for people, within 80 columns.

    Args:
      name: the config's.
      costs: from `count`, for as many devices.
      chip_name: a key of `CHIPS`.
      num_chips: how many share the batch.
      utilisation: share of the chips' peak that the step reaches.
    """
    chip = CHIPS[chip_name]
    each = " and ".join(f"{_si(c.checkpoint, 'B')} ({c.name})" for c in costs.trainings)
    lines = [
        f"{name} on {num_chips} x {chip_name}, at {utilisation:.0%} of "
        f"{chip.flops / 1e12:.0f} TFLOP/s (bfloat16, dense)",
        "",
        f"{costs.num_weights:,} weights; a forward pass of one image is "
        f"{_si(costs.forward, 'FLOP')}, or",
        f"{_si(costs.xla_forward, 'FLOP')} as XLA counts, with elementwise operations",
        "",
        *_work(costs),
        "",
        *_memory(costs, chip_name, chip),
        *(line for c in costs.trainings for line in _verdict(c, chip, num_chips)),
        "",
        *_exchange(costs, chip, num_chips, utilisation),
        "",
        *_time(costs, 3600.0 * chip.flops * utilisation, num_chips),
        "",
        *_chips(costs, num_chips, utilisation),
        "",
        f"disk: {_si(costs.checkpoints, 'B')} of checkpoints, "
        + (f"{_si(costs.pair_files, 'B')} of pairs, " if costs.pair_files else "")
        + f"{_si(costs.samples, 'B')} of samples; a checkpoint is",
        f"{each}, before compression; a stage keeps two",
        *NOTES,
    ]
    return "\n".join(lines)


@numerics.pinned()
def run(
    config: ConfigDict,
    name: str,
    chip: str = "v5e",
    num_chips: int = 8,
    utilisation: float = 0.4,
    compiled: bool = False,
) -> None:
    """Prints what a run takes; writes nothing.

    Args:
      config: of `pd_jax.config.default`'s form.
      name: the config's, for the heading.
      chip: a key of `CHIPS`.
      num_chips: how many share the batch.
      utilisation: share of the chips' peak that the step reaches.
      compiled: also compiles the steps for the machine at hand.

    Raises:
      Refused: for what cannot work, naming flag or config key.
    """
    registry.check(chip, CHIPS, "--chip")
    if num_chips < 1:
        raise Refused(f"--num_chips={num_chips}: must be at least 1")
    if not 0.0 < utilisation <= 1.0:
        raise Refused(f"--utilisation={utilisation}: must be above 0 and at most 1")
    processes.check_devices()
    setup = sketch(config, num_chips)
    costs = count(setup, num_chips)
    print(table(name, costs, chip, num_chips, utilisation))
    for training in setup.trainings if compiled else []:
        held, room = compiler_memory(setup, training, num_chips)
        print(
            f"{training.name}, compiled for {jax.default_backend()}: {_si(held, 'B')} "
            f"of state and batch + {_si(room, 'B')} to work in = "
            f"{_si(held + room, 'B')}"
        )
