"""What `pd_jax.bench` measured, for people: a column for each variant."""

import os
import platform
import statistics
from collections.abc import Iterator

import jax
import jaxlib

from pd_jax import __version__
from pd_jax.bench.subject import SAMPLER_STEPS
from pd_jax.costs.estimate import CHIPS
from pd_jax.runtime import console

# JAX's names of devices whose figures `CHIPS` has; boards of other speeds are left out.
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "A100",
    "NVIDIA A100-SXM4-80GB": "A100",
    "NVIDIA H100 80GB HBM3": "H100",
    "NVIDIA H200": "H200",
}


def facts() -> dict:
    """What the figures were measured on, as JSON has it."""
    device = jax.devices()[0]
    chip = KINDS.get(device.device_kind)
    return {
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "data_sheet_flops_per_second": CHIPS[chip].flops if chip else None,
        },
        "host": {
            "cores": len(os.sched_getaffinity(0)),
            "load_average": os.getloadavg(),
        },
        "versions": {
            "pd_jax": __version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "python": platform.python_version(),
        },
    }


def _digits(x: float) -> str:
    """Three digits, or all before the point."""
    if x >= 100:
        return f"{x:,.0f}"
    return f"{x:#.3g}".rstrip(".")


def _figure(values: list[float] | None, scale: float = 1.0) -> str:
    """Median and half of the range, as a share of it."""
    if not values:
        return "-"
    median = statistics.median(values)
    text = _digits(median * scale)
    if len(values) > 1:
        text += f" ±{(max(values) - min(values)) / 2.0 / abs(median):.0%}"
    return text


def _start(start: dict) -> dict[str, str]:
    """What the first step takes, as rows."""
    if not start.get("cold"):
        return {}
    cold, warm = start["cold"], start["warm"]

    def of(entries, key):
        return _figure([entry[key] for entry in entries])

    cells = {
        "first call of the step, s": of(cold, "call"),
        "  tracing": of(cold, "trace"),
        "  lowering": of(cold, "lower"),
        "  compiling": of(cold, "compile"),
        "first call, warm cache, s": of(warm, "call"),
        "  warm / cold": _figure([w["call"] / c["call"] for w, c in zip(warm, cold)]),
        "process to first step, s": of(cold, "start"),
        "the same, warm cache, s": of(warm, "start"),
    }
    memory = start["memory"]
    for key, label in (("peak", "peak memory, GB"), ("compiler", "memory, GB*")):
        if key in memory:
            cells[label] = _digits(memory[key] / 1e9)
    return cells


def _cells(variant: dict, device: dict) -> dict[str, str]:
    """A variant's column, by label."""
    rounds = {name: f["rounds"] for name, f in variant["figures"].items()}
    cells = {"batch": str(variant["batch"])}
    if variant["failed"]:
        return cells
    cells |= _start(variant["start"])

    def row(label, name, scale=1.0):
        if name in rounds:
            cells[label] = _figure(rounds[name], scale)

    row("step, ms", "step", 1e3)
    row("forward, ms", "forward", 1e3)
    row("step / forward", "step_over_forward")
    row("images/s", "images_per_second")
    row("TFLOP/s", "flops_per_second", 1e-12)
    row("  % of a matrix product's", "share_of_product", 100.0)
    peak = device["data_sheet_flops_per_second"]
    if peak:
        row(
            "  % of the data sheet's",
            "flops_per_second",
            100.0 / peak / device["count"],
        )
    if "step" in rounds:
        cells["  multiplies in"] = variant["multiplies_in"]
    row(f"sampler of {SAMPLER_STEPS} steps, ms", "sampler", 1e3)
    row(f"  / {SAMPLER_STEPS} forwards", "sampler_over_forwards")
    row("loop, ms an update", "loop", 1e3)
    row("checkpoint, ms", "checkpoint", 1e3)
    row("  loop / bare steps", "loop_over_bare")
    row("data, images/s", "data_images_per_second")
    for name, over in (("step", "stages"), ("sampler", "rows")):
        if name in variant["compilations"]:
            count = variant["compilations"][name]
            cells[f"compiles of the {name}"] = (
                f"{count['compilations']} ({count[over]} {over})"
            )
    return cells


def _notes(result: dict) -> list[str]:
    """What the columns do not say."""
    variants = result["variants"]
    notes = [f"{v['name']}: {v['failed']}" for v in variants if v["failed"]]
    notes += {f"data: {v['data']}" for v in variants if v["data"] != "its own"}
    if any("compiler" in v["start"].get("memory", {}) for v in variants):
        notes.append("* by the compiler: the device does not tell what it holds")
    return notes


def table(result: dict) -> str:
    """The figures, in columns that fit a terminal; `result` is as JSON has it."""
    device, first = result["device"], result["variants"][0]
    heads, columns = [], []
    for variant in result["variants"]:
        (key, value), *_ = [*variant["changes"].items(), ("as", "given")]
        heads.append((key.rpartition(".")[2], value))
        columns.append(_cells(variant, device))
    labels = list(dict.fromkeys(label for column in columns for label in column))
    lines = [
        f"{result['config']}, {result['training']}: {device['count']} x "
        f"{device['kind']}, {result['host']['cores']} CPU cores, jax "
        f"{result['versions']['jax']}",
        f"{first['num_weights']:,} weights, {_digits(first['update_flops'] / 1e9)} "
        f"GFLOP an update; medians of {result['repeats']} rounds ± half the range",
    ]
    if first["loop_updates"]:
        lines.append(f"the loop in parts of {first['loop_updates']} updates")
    heads = [*zip(*heads)] if len(columns) > 1 else []
    rows = [("", *head) for head in heads]
    rows += [(label, *(c.get(label, "-") for c in columns)) for label in labels]
    for block in _blocks(rows):
        lines += ["", *block]
    notes = _notes(result)
    return "\n".join([*lines, *([""] if notes else []), *notes])


def _blocks(rows: list[tuple[str, ...]]) -> Iterator[list[str]]:
    """Rows as lines, in blocks that fit the width, each with the first two columns."""
    wide, *widths = (max(map(len, column)) for column in zip(*rows))
    rest = list(range(1, len(widths)))
    while True:
        shown = [0]
        while rest:
            used = wide + sum(2 + widths[i] for i in [*shown, rest[0]])
            if used > console.width() and len(shown) > 1:
                break
            shown.append(rest.pop(0))
        yield [
            "  ".join([label.ljust(wide), *(cells[i].rjust(widths[i]) for i in shown)])
            for label, *cells in rows
        ]
        if not rest:
            break
