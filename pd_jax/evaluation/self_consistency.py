"""Self-consistency: where models say that the teacher's path ends, all along it.

From the noise of the paired samples the teacher's own path z_t is walked, by its
deterministic sampler in even steps, to its end z_0. On the way each model is asked for
the data,

    f(z_t, t) = its prediction of x; of a model of two times, where it jumps to at 0
    RMSE(t)   = sqrt(mean (f(z_t, t) - z_0)^2)

A consistency function has 0 at every t: it says the same all along a path. A denoiser
has the error of the posterior's mean, which falls with t; a student of N steps is
between, as each of its steps points at data that N - 1 others correct.

A model is asked only at times at which it was trained (`Method.points_from`).

Source: Song et al. 2023 (2303.01469), definition 1.
"""

import json
import math
import time
from collections.abc import Callable

import numpy as np
from etils import epath

from pd_jax import samplers
from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import Evaluation
from pd_jax.evaluation.rows import rows
from pd_jax.runtime import processes
from pd_jax.storage import files
from pd_jax.storage.writers import write_whole
from pd_jax.training.method import on_grid

FILE = "self_consistency.json"  # in a run's folder of evaluation
MAX_TIMES, MAX_STEPS = 16, 256  # at most: asked at, and taken by the teacher


def path_steps(section: dict, most: int) -> tuple[int, int]:
    """Steps of the path, and at how many times of it models are asked.

    Args:
      section: the config's section `eval`.
      most: steps that the path may have.

    Returns:
      (steps, times), steps a multiple of times; (0, 0) where the sampler draws noise,
      so that there is no path.
    """
    if samplers.get(section["sampler"]).draws:
        return 0, 0
    most = min(most, MAX_STEPS)
    times = min(most, MAX_TIMES)
    return most // times * times, times


def check(entry: dict) -> dict:
    """Returns an entry of the report as it was read; ValueError if it is none."""
    times, models, left_out = (entry.get(k) for k in ("times", "rmse", "left_out"))
    if not isinstance(times, list) or not all(map(_is_number, times)):
        raise ValueError(f"times is {times!r}")
    if not isinstance(models, dict) or not isinstance(left_out, dict):
        raise ValueError("rmse and left_out have no models")
    if not all(isinstance(text, str) for text in left_out.values()):
        raise ValueError("left_out is not texts")
    if not isinstance(entry.get("steps"), int):
        raise ValueError(f"steps is {entry.get('steps')!r}")
    if not isinstance(entry.get("sampler"), str):
        raise ValueError(f"sampler is {entry.get('sampler')!r}")
    samplers.get(entry["sampler"])
    for values in models.values():
        good = isinstance(values, list) and len(values) == len(times)
        if not good or not all(v is None or _is_number(v) for v in values):
            raise ValueError("rmse is not a number for each time")
    return entry


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class SelfConsistency:
    """The self-consistency of a run's models; those on disk are not asked again."""

    def __init__(self, setup: Setup, workdir: epath.Path, evaluation: Evaluation):
        self._setup, self._evaluation = setup, evaluation
        self._file = workdir / "evaluation" / FILE
        section = setup.config.eval
        self.num_steps, num = path_steps(section, evaluation.reference_steps)
        # Evenly spaced, whatever the spacing of the rows' steps.
        self._sampler = section.sampler.partition("@")[0]
        self._places = list(range(num, 0, -1))
        self._found = processes.on_first_process(self._read)

    def _read(self) -> dict:
        empty = {
            "times": [i / len(self._places) for i in self._places],
            "steps": self.num_steps,
            "sampler": self._sampler,
            "rmse": {},
            "left_out": {},
        }
        try:
            found = check(files.read_json(self._file))
        except (OSError, ValueError):
            return empty
        same = all(found.get(k) == empty[k] for k in ("times", "steps", "sampler"))
        return found if same else empty

    @property
    def models(self) -> list[str]:
        """The stages whose models are asked, the teacher's first; those of rows."""
        named = dict.fromkeys(row.stage for row in rows(self._setup))
        return list(named) if self.num_steps else []

    @property
    def missing(self) -> list[str]:
        """Those that were not asked yet."""
        return [name for name in self.models if name not in self._found["rmse"]]

    @property
    def path_work(self) -> int:
        """Forward passes of one example for the path."""
        return self._each * self._drawn

    @property
    def work(self) -> int:
        """Those of one model that is asked."""
        return len(self._places) * self._drawn

    @property
    def _each(self) -> int:
        return self.num_steps * samplers.get(self._sampler).evaluations

    @property
    def _drawn(self) -> int:
        return self._evaluation.drawn(self._setup.config.eval.paired_samples)

    @property
    def seconds(self) -> float:
        """What it took."""
        return self._found.get("seconds", 0.0)

    def measure(
        self, weights_of: Callable[[str], dict | None], advance: Callable
    ) -> None:
        """Asks the models that are missing.

        Args:
          weights_of: a model's weights by its name; None for the exact denoiser.
          advance: as for `Evaluation.prepare`.
        """
        missing, began = self.missing, time.monotonic()
        if not missing:
            return
        path = self._path(self._evaluation.place(weights_of("teacher")), advance)
        for name in missing:
            params = self._evaluation.place(weights_of(name))
            values, why = self._values(params, path, self._known(name), advance)
            self._found["rmse"][name] = values
            self._found["left_out"] |= {name: why} if why else {}
            now = time.monotonic()
            self._found["seconds"], began = self.seconds + now - began, now
            if processes.is_first():
                write_whole(self._file, json.dumps(self._found, indent=1))

    def _known(self, name: str) -> list[int]:
        """The times i/n at which a model is asked: i."""
        num = len(self._places)
        for training, stage in self._setup.stages:
            if stage.name == name:
                return training.method.points_from(stage, num)
        return on_grid(num, self._setup.teacher_steps)

    def _path(self, teacher: dict | None, advance: Callable) -> np.ndarray:
        """Places on the teacher's path at all times, and its end, [T + 1, N, ...]."""
        num, stops = self._setup.config.eval.paired_samples, len(self._places)
        evaluation, parts = self._evaluation, []
        given = teacher, self.num_steps, num, self._sampler, stops
        for part in evaluation.samples(*given):
            parts.append(part if stops > 1 else part[None])
            work = self._each * evaluation.batch
            advance(work, "self-consistency: the teacher's path")
        return np.concatenate([evaluation.noise(num)[None], np.concatenate(parts, 1)])

    def _values(
        self, params: dict | None, path: np.ndarray, known: list[int], advance: Callable
    ) -> tuple[list[float | None], str]:
        """A model's RMSE at all times, None where there is none, and why."""
        if not np.all(np.isfinite(path)):
            return [None] * len(self._places), "the teacher's path is not finite"
        evaluation, parts = self._evaluation, []
        times = self._found["times"]
        for part in evaluation.data_from(params, path[:-1], times):
            parts.append(part)
            advance(len(times) * evaluation.batch, "self-consistency: models")
        off = np.concatenate(parts, 1).astype(np.float64) - path[-1]
        rmse = np.sqrt(np.square(off).reshape(len(times), -1).mean(1))
        values = dict(zip(self._places, rmse.tolist()))
        bad = [i for i in known if not math.isfinite(values[i])]
        if bad:
            why = "what it says of the data is not finite at some times"
        elif len(known) < len(times):
            shown = ", ".join(
                f"{t:g}" for i, t in zip(self._places, times) if i in known
            )
            why = f"trained at t = {shown} alone of the times"
        else:
            why = ""
        asked = set(known).difference(bad)
        return [v if i in asked else None for i, v in values.items()], why

    def entry(self) -> dict:
        """The report's entry.

        Returns:
          {"times": falling; "steps", "sampler": of the path; "rmse": by model, one for
          each time, None where it is not asked; "left_out": by model, or for all, why}.
        """
        entry = {k: v for k, v in self._found.items() if k != "seconds"}
        if not self.num_steps:
            sampler = self._setup.config.eval.sampler
            words = "draws noise: no path leads from a noise to its sample"
            entry["left_out"] = {"all": f'eval.sampler="{sampler}" {words}'}
        return entry
