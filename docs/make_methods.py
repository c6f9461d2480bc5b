"""Fills the tables of docs/methods.md with what finished runs measured.

    python docs/make_methods.py FOLDER [--run] [--seeds 0 1]

A table's first head is a config, a row's first cell a method, and keys of its training:
row `tract` `start=64` of table `mixture2d` is of the runs, one for each seed,

    python -m pd_jax.main --config=configs/mixture2d.py:tract --config.seed=SEED \
        --config.student.start=64 --workdir=FOLDER/mixture2d-tract-start=64-SEED

--run makes those that have not finished, or goes on with them, one after the other.
Cells under "K", "1 step", "2 steps", ..., "time, s" (of the whole run) and "bound" are
filled here; others, and which rows there are, are written by hand. A row whose runs
have not all finished stays as it is.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

from pd_jax import samplers

ROOT = pathlib.Path(__file__).parents[1]
METRICS = {"mixture2d": ("rmse_to_exact", ".3f"), "digits": ("frechet_pixels", ".2f")}
BOUNDS = {  # on the ring, by steps: a method that misses one is experimental
    "boot": {1: 0.06},
    "consistency_distillation": {1: 0.07},
    "consistency_training": {1: 0.15},
    "continuous_consistency": {1: 0.15},
    "knowledge_distillation": {1: 0.03},
    "mean_flow": {1: 0.15},
    "shortcut": {1: 0.18},
    "tract": {2: 0.05},
    "trajectory": {1: 0.13, 4: 0.05},
}


def cells(line: str) -> list[str]:
    """What stands between the bars of a table's line; [] of any other line."""
    parts = [part.strip() for part in line.split("|")]
    return parts[1:-1] if line.startswith("|") else []


def codes(cell: str) -> list[str]:
    """What a cell has in backticks."""
    return re.findall("`([^`]+)`", cell)


def rows(text: str) -> list[tuple[int, list[str], list[str], list[str]]]:
    """Line number, config with method and keys, heads and cells of each table's row."""
    found, heads = [], []
    for number, line in enumerate(text.splitlines()):
        parts = cells(line)
        if not parts:
            heads = []
        elif not heads:
            heads = parts
        elif codes(heads[0]) and codes(heads[0])[0] in METRICS and codes(parts[0]):
            found.append((number, codes(heads[0]) + codes(parts[0]), heads, parts))
    return found


def command(run: list[str], seed: int, folder: pathlib.Path) -> list[str]:
    """What makes a run; `run` is its config, method and keys."""
    name, method, *keys = run
    variant = "" if method == "progressive" else f":{method}"
    path = ROOT / "configs" / f"{name}.py"
    section = "student" if variant else "ladder"
    return [
        *(sys.executable, "-m", "pd_jax.main", f"--config={path}{variant}"),
        *(f"--config.{section}.{key}" for key in keys),
        f"--config.seed={seed}",
        f"--workdir={workdir(run, seed, folder)}",
    ]


def workdir(run: list[str], seed: int, folder: pathlib.Path) -> pathlib.Path:
    """A run's folder."""
    return folder / "-".join([*run, str(seed)])


def measured(run: list[str], reports: list[dict]) -> dict[int, list[float]]:
    """The students' values by number of steps, each with one of every report.

    Noise put on anew ties a sample to no noise: such rows have no RMSE.
    """
    metric, values = METRICS[run[0]][0], {}
    for report in reports:
        for row in report["rows"]:
            num = row["num_steps"]
            draws = num > 1 and samplers.get(row["sampler"]).draws
            if row["model"] == "student" and not (draws and "rmse" in metric):
                values.setdefault(num, []).append(row["metrics"][metric])
    return values


def filled(
    run: list[str], heads: list[str], old: list[str], folders: list[pathlib.Path]
) -> list[str]:
    """A row's cells, of its runs' folders."""
    new = dict(zip(heads, old, strict=True))
    bounds = BOUNDS.get(run[1], {}) if run[0] == "mixture2d" and not run[2:] else {}
    if "bound" in new:
        words = (f"{b:g}" + f" ({n} steps)" * (n > 1) for n, b in bounds.items())
        new["bound"] = ", ".join(words)
    if not all((folder / "report.json").exists() for folder in folders):
        return list(new.values())
    reports = [json.loads((f / "report.json").read_text()) for f in folders]
    config = json.loads((folders[0] / "config.json").read_text())
    section = config[config["chain"][-1]]
    values = measured(run, reports)
    reached = all(v <= bound for n, bound in bounds.items() for v in values[n])
    mark = [] if reached else ["experimental"]
    new[heads[0]] = ", ".join([f"`{code}`" for code in run[1:]] + mark)
    for head in new:
        if steps := re.fullmatch(r"(\d+) steps?", head):
            of_steps = values.get(int(steps[1]), [])
            new[head] = ", ".join(format(v, METRICS[run[0]][1]) for v in of_steps)
    if "K" in new:
        new["K"] = str(section.get("grid", section.get("start", "")))
    if "time, s" in new:
        seconds = (report["seconds"]["total"] for report in reports)
        new["time, s"] = ", ".join(f"{value:.0f}" for value in seconds)
    return list(new.values())


def text(old: str, folder: pathlib.Path, seeds: list[int]) -> str:
    """The document with its tables filled."""
    lines = old.splitlines()
    for number, run, heads, parts in rows(old):
        folders = [workdir(run, seed, folder) for seed in seeds]
        new = filled(run, heads, parts, folders)
        lines[number] = f"|{'|'.join(f' {c} ' if c else ' ' for c in new)}|"
    return "\n".join(lines) + "\n"


def main(given: list[str]) -> None:
    """Makes the runs that are asked for, and writes the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--run", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args(given)
    path = ROOT / "docs" / "methods.md"
    for _, run, _, _ in rows(path.read_text()) if args.run else []:
        for seed in args.seeds:
            if not (workdir(run, seed, args.folder) / "report.json").exists():
                subprocess.run(command(run, seed, args.folder), check=False)
    path.write_text(text(path.read_text(), args.folder, args.seeds))


if __name__ == "__main__":
    main(sys.argv[1:])
