"""Measuring: every model samples from one noise set, and the samples are compared."""

import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax.metrics import Moments, frechet_distance, rmse
from pd_jax.samplers import sample
from pd_jax.setup import Setup
from pd_jax.writers import write_whole

EXACT_STEPS = 4096  # of Heun's method: the exact flow to 1e-5 on the ring


class Row(NamedTuple):
    """One line of the report: a model and its number of steps."""

    model: str
    num_steps: int

    @property
    def name(self) -> str:
        """The row's name in file names."""
        return f"{self.model}_{self.num_steps}"


def rows(setup: Setup) -> list[Row]:
    """The report's rows: the teacher's step counts, and each student's own."""
    teacher = [Row("teacher", n) for n in setup.config.eval.teacher_steps]
    stages = setup.trainings[-1].stages
    return teacher + [Row("student", stage.num_steps) for stage in stages]


class Evaluation:
    """The evaluation of one run; rows that are on disk are not made again.

    Attributes:
      noise: the noise set, [N, ...].
    """

    def __init__(self, setup: Setup, workdir: pathlib.Path):
        self._setup = setup
        self._directory = workdir / "evaluation"
        self._config = setup.config.eval
        self.noise, self._labels = self._inputs()
        sharded = setup.trainings[-1].step.sharding
        devices = sharded.mesh.size
        self._batch = min(setup.config.run.eval_batch, len(self.noise))
        self._batch = -(-self._batch // devices) * devices
        self._split = sharded.update(spec=jax.sharding.PartitionSpec("batch"))
        self._sampler = jax.jit(self._sample, static_argnames=("exact", "method"))

    def _inputs(self):
        """Noise [N, ...] and labels [N] or None: each a function of seed and place."""
        num, shape = self._config.num_samples, self._setup.dataset.shape
        root = jax.random.key(self._config.seed)

        @jax.vmap
        def draw(place):
            return jax.random.normal(jax.random.fold_in(root, place), shape)

        noise = jax.jit(draw)(jnp.arange(num))
        labels = None
        if getattr(self._setup.model.network, "num_classes", 0):
            rng = np.random.default_rng(self._config.seed)
            known = self._setup.dataset.labels
            labels = known[rng.integers(len(known), size=num)]
        return np.asarray(noise), labels

    def _sample(self, params, z, label, num_steps, place, *, exact, method):
        if exact:
            denoise = self._setup.dataset.denoise
        else:
            denoise = self._setup.model.denoiser(params, label)
        root = jax.random.fold_in(jax.random.key(self._config.seed), 1)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(root, place)
        clip = self._config.clip
        return sample(denoise, z, num_steps, self._setup.schedule, method, clip, keys)

    def samples(
        self,
        params: dict | None,
        num_steps: int,
        num: int,
        method: str | None = None,
    ) -> Iterator[np.ndarray]:
        """Samples from the first `num` noises, batch by batch.

        Args:
          params: a network's weights; None for the exact denoiser.
          num_steps: sampling steps.
          num: how many.
          method: the sampler; the config's where None.
        """
        for first in range(0, num, self._batch):
            place = np.arange(first, first + self._batch)
            rows = np.minimum(place, num - 1)  # the last batch is filled up
            label = None if self._labels is None else self._labels[rows]
            z, label, place = jax.device_put(
                (self.noise[rows], label, place.astype(np.uint32)), self._split
            )
            x = self._sampler(
                params,
                z,
                label,
                jnp.int32(num_steps),
                place,
                exact=params is None,
                method=method or self._config.sampler,
            )
            yield np.asarray(x)[: num - first]

    def _path(self, name: str) -> pathlib.Path:
        return self._directory / name

    def done(self, row: Row) -> bool:
        """Whether a row's samples and figures are on disk."""
        return bool(self.entry(row))

    def work(self, row: Row) -> int:
        """A row's forward passes of one example."""
        return row.num_steps * self._config.num_samples

    @property
    def reference_work(self) -> dict[str, int]:
        """Forward passes of one example for each kind of reference samples."""
        num = self._config.paired_samples
        work = {"reference_teacher": num * self._config.reference_steps}
        if self._setup.dataset.denoise is not None:
            work["reference_exact"] = num * 2 * EXACT_STEPS
        return work

    def has(self, name: str) -> bool:
        """Whether samples are kept under a row's or a reference's name."""
        try:
            with open(self._path(f"{name}.npy"), "rb") as file:
                np.load(file)
        except (OSError, ValueError, EOFError):
            return False  # not there, or cut short: it is made again
        return True

    def _collect(self, name, batches, advance) -> np.ndarray:
        """All batches, kept as a file, which serves the next time."""
        if self.has(name):
            return self.kept(name)
        parts = []
        for part in batches:
            parts.append(part)
            advance(len(part))
        whole = np.concatenate(parts)
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = self._path(f".{name}.tmp.npy")
        np.save(temporary, whole)
        temporary.replace(self._path(f"{name}.npy"))
        return whole

    def prepare(self, teacher: dict | None, advance: Callable) -> None:
        """Makes, or reads, the samples that others are compared with one by one.

        Args:
          teacher: the teacher's weights; None for the exact denoiser.
          advance: called with (work done, what is going on) after every batch.
        """
        num, steps = self._config.paired_samples, self._config.reference_steps
        self._moments = Moments.of(self._setup.dataset.images)
        self._references = {
            "rmse_to_teacher": self._collect(
                "reference_teacher",
                self.samples(teacher, steps, num),
                lambda n: advance(n * steps, "sampling: reference"),
            )
        }
        if self._setup.dataset.denoise is not None:
            self._references["rmse_to_exact"] = self._collect(
                "reference_exact",
                self.samples(None, EXACT_STEPS, num, "heun"),
                lambda n: advance(n * 2 * EXACT_STEPS, "sampling: exact map"),
            )

    def measure(
        self, row: Row, params: dict | None, seconds: float, advance: Callable
    ) -> None:
        """Samples a row, computes its metrics and keeps both; `prepare` comes first.

        Args:
          row: the row.
          params: its weights; None for the exact denoiser.
          seconds: spent on the row so far.
          advance: as for `prepare`.
        """
        began = time.monotonic()
        text = f"sampling: {row.model}, {row.num_steps} steps"
        x = self._collect(
            row.name,
            self.samples(params, row.num_steps, self._config.num_samples),
            lambda n: advance(n * row.num_steps, text),
        )
        metrics = {"frechet_pixels": frechet_distance(x, self._moments)}
        for name, reference in self._references.items():
            metrics[name] = rmse(x[: len(reference)], reference)
        entry = {
            "model": row.model,
            "sampler": self._config.sampler,
            "num_steps": row.num_steps,
            "metrics": metrics,
            "seconds": seconds + time.monotonic() - began,
        }
        write_whole(self._path(f"{row.name}.json"), json.dumps(entry, indent=1))

    def protocol(self) -> dict[str, str]:
        """How each figure was made, in words."""
        ev, num = self._config, len(self._setup.dataset.images)
        clip = "clipped to [-1, 1]" if ev.clip else "not clipped"
        paired = f"root mean squared difference of {ev.paired_samples} samples to "
        return {
            "samples": f"{ev.num_samples} a row from one noise set (seed {ev.seed}), "
            f"sampler {ev.sampler}, predictions {clip}",
            "frechet_pixels": f"Frechet distance of {ev.num_samples} samples to the "
            f"{num} training examples, on their raw values",
            "rmse_to_teacher": f"{paired}the teacher's own of {ev.reference_steps} "
            "steps from the same noise",
            "rmse_to_exact": f"{paired}where the exact probability flow takes the "
            "same noise",
        }

    def entry(self, row: Row) -> dict:
        """A finished row's entry; empty where there is none that can be read."""
        try:
            return json.loads(self._path(f"{row.name}.json").read_text())
        except (OSError, ValueError):
            return {}

    def kept(self, name: str) -> np.ndarray:
        """Samples kept under a row's or a reference's name."""
        return np.load(self._path(f"{name}.npy"))
