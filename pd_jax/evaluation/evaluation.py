"""Measuring: every model samples from one noise set, and the samples are compared."""

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from pd_jax import metrics, samplers
from pd_jax.arcs import Denoiser
from pd_jax.config.setup import Setup
from pd_jax.evaluation.rows import Row, check_entry, check_values, rows
from pd_jax.metrics import Reference, Summary, inception, load_statistics, lpips
from pd_jax.runtime import compilation, console, numerics, processes
from pd_jax.space import PICTURES, num_not_finite
from pd_jax.storage import draws, files
from pd_jax.storage.writers import write_whole
from pd_jax.students import Student

# The exact flow to 1e-5 on the ring.
EXACT_SAMPLER, EXACT_STEPS = "heun", 4096
GRID = 64  # samples of a grid
EXAMPLES = 256  # of the data, kept to be seen beside samples
FLOOR = "floor.json"  # the figures of one half of the data against the other


@dataclasses.dataclass(frozen=True)
class Exact:
    """The exact denoiser of a data set, as a student's model; it has no weights.

    Attributes:
      denoise: the denoiser.
    """

    denoise: Denoiser

    def cast(self, params: None) -> None:
        """Nothing."""
        return params

    def denoiser(self, params: None, label: jax.Array | None = None) -> Denoiser:
        """The denoiser, whatever the label; a second time says nothing to it."""
        return lambda z, logsnr, until=None: self.denoise(z, logsnr)


class Evaluation:
    """The evaluation of one run; rows that are on disk are not made again."""

    def __init__(self, setup: Setup, workdir: epath.Path):
        self._setup = setup
        self._directory = workdir / "evaluation"
        self._config = setup.config.eval
        mesh = setup.trainings[-1].step.mesh
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._same = NamedSharding(mesh, PartitionSpec())
        batch = min(setup.config.run.eval_batch, self._config.num_samples)
        self.batch = -(-batch // mesh.size) * mesh.size
        self._kept = max(self._config.paired_samples, GRID)  # samples of each row
        self._labels = self._draw_labels()
        offered = {
            "pictures": setup.space.kind == PICTURES,
            "features": self._config.inception,
            "perceptual": setup.config.perceptual.weights,
            "reference_teacher": True,
            "reference_exact": setup.dataset.denoise is not None,
        }
        self._lacking = {name for name, offer in offered.items() if not offer}
        self._metrics = [
            m for m in metrics.every() if not self._lacking.intersection(m.needs)
        ]
        self._key = numerics.key(self._config.seed)
        self.reference_steps = setup.teacher_steps or self._config.reference_steps
        self._compiled = set()  # the samplers that this process has called
        self._batch_seconds = []  # of each batch, but the first of a sampler
        self._have = set(processes.on_first_process(self._find))

    def _draw_labels(self) -> np.ndarray | None:
        """Labels [N], one for each noise, or None."""
        if getattr(self._setup.model.network, "num_classes", 0) < 2:
            return None
        rng = np.random.default_rng(self._config.seed)
        return self._setup.dataset.draw_labels(rng, self._config.num_samples)

    def _find(self) -> list[str]:
        """Files that are there and whole; others are made again."""
        names = []
        paths = self._directory.iterdir() if self._directory.exists() else ()
        for path in sorted(paths):
            try:
                if path.name == FLOOR:
                    check_values(files.read_json(path))
                elif path.suffix == ".json":
                    check_entry(files.read_json(path))
                elif path.suffix == ".npy":
                    _load(path)
                elif path.suffix == ".npz":
                    Reference.from_bytes(path.read_bytes())
            except (OSError, ValueError):
                continue
            names.append(path.name)
        return names

    def noise(self, num: int) -> np.ndarray:
        """The noise that the first `num` samples start from."""
        draw = jax.jit(samplers.noise, static_argnums=2)
        place = jnp.arange(num, dtype=jnp.uint32)
        return np.asarray(draw(self._key, place, self._setup.dataset.shape))

    def place(self, params: dict | None) -> dict | None:
        """Weights on all devices, as `samples` and `data_from` take them."""
        return jax.device_put(params, self._same)

    def student(self, params: dict | None) -> Student:
        """A model to sample from: of weights, or the exact denoiser's if None."""
        model = Exact(self._setup.dataset.denoise)
        if params is not None:
            model = self._setup.model
        return Student(
            model,
            params,
            0,
            self._setup.schedule,
            self._setup.space,
            self._config.sampler,
            getattr(self._setup.model.network, "num_classes", 0),
        )

    def samples(
        self,
        params: dict | None,
        num_steps: int,
        num: int,
        method: str | None = None,
        stops: int = 1,
    ) -> Iterator[np.ndarray]:
        """Samples from the first `num` noises, batch by batch.

        Args:
          params: a network's weights; None for the exact denoiser.
          num_steps: sampling steps.
          num: how many.
          method: the sampler; the config's where None.
          stops: as of `Student.draw`.

        Returns:
          Floats [b, ...]; with more than one stop [stops, b, ...].
        """
        student = self.student(params)
        for place, label in self._batches(num):
            began = time.monotonic()
            with compilation.without_gc():  # of the first call
                x = student.draw(
                    self._key, place, label, num_steps, self._split, method, stops
                )
            x = np.asarray(x)
            program = params is None, method or self._config.sampler, stops
            if program in self._compiled:
                self._batch_seconds.append(time.monotonic() - began)
            self._compiled.add(program)
            left = slice(num - int(place[0]))
            yield x[left] if stops == 1 else x[:, left]

    def data_from(
        self, params: dict | None, path: np.ndarray, times: Sequence[float]
    ) -> Iterator[np.ndarray]:
        """The data that a model points at from places on paths, batch by batch.

        Args:
          params: as for `samples`.
          path: of the first N noises, at each of the times, [T, N, ...].
          times: [T], above 0.

        Returns:
          Floats [T, b, ...].
        """
        student, num = self.student(params), path.shape[1]
        for place, label in self._batches(num):
            z = path[:, np.minimum(place, num - 1)]
            with compilation.without_gc():  # of the first call
                x = student.data_from(z, np.float32(times), label, self._split)
            yield np.asarray(x)[:, : num - int(place[0])]

    def _batches(self, num: int) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Places of the first `num` noises, and their labels; the last is padded."""
        for first in range(0, num, self.batch):
            place = np.arange(first, first + self.batch, dtype=np.uint32)
            label = None
            if self._labels is not None:
                label = self._labels[np.minimum(place, num - 1)]
            yield place, label

    def trace(self) -> jax.stages.Traced:
        """The sampler of a batch, traced on shapes, to be lowered for any platform."""
        return self.student(self._setup.shapes).trace(self.batch, self._split)

    def _path(self, name: str) -> epath.Path:
        return self._directory / name

    def _keep(self, name: str, content: bytes | str | np.ndarray) -> None:
        """Writes a file, in the first process."""
        self._have.add(name)
        if isinstance(content, np.ndarray):
            file = io.BytesIO()
            np.save(file, content)
            content = file.getvalue()
        if processes.is_first():
            write_whole(self._path(name), content)

    def done(self, row: Row) -> bool:
        """Whether a row's samples and figures are on disk."""
        return f"{row.name}.json" in self._have

    def work(self, row: Row) -> int:
        """A row's forward passes of one example."""
        each = self._passes(row.num_steps, row.sampler)
        return each * self.drawn(self._config.num_samples)

    def drawn(self, num: int) -> int:
        """Samples that are drawn for so many: the last batch is padded."""
        return -(-num // self.batch) * self.batch

    def _passes(self, num_steps: int, sampler: str) -> int:
        """Forward passes of one sample."""
        return num_steps * samplers.get(sampler).evaluations

    @property
    def reference_work(self) -> dict[str, int]:
        """Forward passes of one example for each kind of reference samples."""
        num = self.drawn(self._config.paired_samples)
        each = self._passes(self.reference_steps, self._config.sampler)
        work = {"reference_teacher": num * each}
        if self._setup.dataset.denoise is not None:
            work["reference_exact"] = num * self._passes(EXACT_STEPS, EXACT_SAMPLER)
        return work

    @property
    def begun(self) -> bool:
        """Whether anything that was measured is kept."""
        return bool(self._have)

    def has(self, name: str) -> bool:
        """Whether samples are kept under a row's or a reference's name."""
        return f"{name}.npy" in self._have

    @functools.cached_property
    def _features(self) -> Callable | None:
        """uint8 images to Inception features, on all devices; None without weights."""
        if not self._config.inception:
            return None
        params = inception.load_weights(self._config.inception)
        bias = np.asarray(params["fc.bias"])
        params = jax.device_put(params, self._same)
        network = jax.jit(inception.features, out_shardings=self._same)

        def features(images: np.ndarray) -> dict[str, np.ndarray]:
            num = len(images)
            rows = np.minimum(np.arange(self.batch), num - 1)  # filled up
            outputs = network(params, jax.device_put(images[rows], self._split))
            # Published scores are of logits without the last layer's bias.
            outputs["logits"] = np.asarray(outputs["logits"]) - bias
            return {name: np.asarray(a)[:num] for name, a in outputs.items()}

        return features

    @functools.cached_property
    def _perceptual(self) -> Callable | None:
        """How different pictures look, by LPIPS; None without weights."""
        section = self._setup.config.perceptual
        path, size = section.weights, section.size
        if not path:
            return None
        params = lpips.load_weights(path)
        network = jax.jit(lpips.compare, static_argnums=3)

        def perceptual(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            parts = []
            for first in range(0, len(a), 64):
                rows = np.minimum(np.arange(first, first + 64), len(a) - 1)
                parts.append(network(params, a[rows], b[rows], size))
            return np.concatenate(parts)[: len(a)]

        return perceptual

    def _reference(self, advance: Callable) -> Reference:
        """Figures of the data, read or made; pool's from `eval.statistics` if given."""
        name = "reference_data.npz"
        if {name, FLOOR} <= self._have:
            reference = Reference.from_bytes(self._path(name).read_bytes())
        else:
            reference = self._read_data(advance)
            self._keep(name, reference.to_bytes())
        if self._config.statistics and self._features is not None:
            reference.pool = load_statistics(self._config.statistics)
        return reference

    def _read_data(self, advance: Callable) -> Reference:
        """Figures of the data; keeps those of its halves, and examples to be seen."""
        data, seed = self._setup.dataset.reference, self._config.seed
        num = min(self._config.num_reference or len(data), len(data))
        rows = np.sort(draws.rows(num, len(data), seed))
        first = np.zeros(num, bool)
        first[draws.rows(num // 2, num, seed)] = True
        whole, *halves = (Summary(self._setup.space, self._features) for _ in range(3))
        for start in range(0, num, self.batch):
            part = slice(start, start + self.batch)
            values = whole.values(data.take(rows[part])["image"])
            whole.add_values(values)
            for half, chosen in zip(halves, (first[part], ~first[part])):
                if chosen.any():
                    half.add_values({name: x[chosen] for name, x in values.items()})
            advance(0, f"data: {whole.num} of {num} examples")
        shown = data.take(draws.rows(EXAMPLES, len(data), seed))
        self._keep("examples.npy", shown["image"])
        if "label" in shown:
            self._keep("examples_labels.npy", shown["label"])
        self._keep(FLOOR, json.dumps(self._floor(*halves, shown["image"]), indent=1))
        return Reference.of(whole)

    def _floor(self, one: Summary, other: Summary, shown: np.ndarray) -> dict:
        """What is measured of one half of the data against the other."""
        least = min(one.num, other.num)
        chosen = [
            metric
            for metric in self._metrics
            if metric.least <= least
            and not any(need.startswith("reference") for need in metric.needs)
        ]
        entry = {"metrics": {}, "num_examples": [one.num, other.num]}
        if chosen:
            both = metrics.Comparison(one, Reference.of(other), shown, {})
            entry["metrics"], _ = values_of(both, chosen)
        return entry

    @property
    def floor(self) -> dict:
        """What is measured of one half of the data against the other; {} without it."""
        try:
            return check_values(files.read_json(self._path(FLOOR)))
        except (OSError, ValueError):
            return {}

    def _paired(self, name: str, batches, each: int, advance: Callable) -> np.ndarray:
        """Samples that others are compared with one by one; read or made."""
        if self.has(name):
            return self.saved_samples(name)
        parts, text = [], f"sampling: {name.replace('_', ', ')}"
        advance(0, text)
        for part in batches:
            parts.append(part)
            advance(self.batch * each, text)
        self._keep(f"{name}.npy", np.concatenate(parts))
        return np.concatenate(parts)

    def prepare(self, teacher: dict | None, advance: Callable) -> None:
        """Makes, or reads, what samples are compared with.

        Args:
          teacher: the teacher's weights; None for the exact denoiser.
          advance: called with (work done, what is going on) after every batch.
        """
        num, steps = self._config.paired_samples, self.reference_steps
        teacher = self.place(teacher)
        self._data = self._reference(advance)
        if self._labels is not None:
            self._keep("labels.npy", self._labels[: self._kept])
        batches = self.samples(teacher, steps, num)
        self._references = {
            "reference_teacher": self._paired(
                "reference_teacher",
                batches,
                self._passes(steps, self._config.sampler),
                advance,
            )
        }
        if self._setup.dataset.denoise is not None:
            batches = self.samples(None, EXACT_STEPS, num, EXACT_SAMPLER)
            each = self._passes(EXACT_STEPS, EXACT_SAMPLER)
            self._references["reference_exact"] = self._paired(
                "reference_exact", batches, each, advance
            )

    def measure(
        self, row: Row, params: dict | None, seconds: float, advance: Callable
    ) -> None:
        """Samples a row, computes its metrics and keeps both; `prepare` comes first.

        What a batch took, without compilation, is kept beside them.

        A row whose samples are not finite has no metrics, and says so in "errors".

        Args:
          row: the row.
          params: its weights; None for the exact denoiser.
          seconds: spent on the row so far.
          advance: as for `prepare`.
        """
        began = time.monotonic()
        text = f"sampling: {row.model}, {row.num_steps} steps"
        params = self.place(params)
        summary, first, wrong = Summary(self._setup.space, self._features), [], 0
        num, each = self._config.num_samples, self._passes(row.num_steps, row.sampler)
        self._batch_seconds.clear()
        for x in self.samples(params, row.num_steps, num, row.sampler):
            first.append(x[: max(0, self._kept - sum(map(len, first)))])
            wrong += num_not_finite(x)
            if not wrong:
                summary.add(x)
            advance(self.batch * each, text)
        x = np.concatenate(first)
        values, errors = {}, [f"{wrong} of {num} samples are not finite"] * (wrong > 0)
        if not wrong:
            both = metrics.Comparison(
                summary, self._data, x, self._references, self._perceptual
            )
            values, errors = values_of(both, self._metrics)
        if not self._batch_seconds:  # the only one has been compiled for
            next(self.samples(params, row.num_steps, 1, row.sampler))
        batch_seconds = float(np.median(self._batch_seconds))
        entry = {
            **row._asdict(),
            "metrics": values,
            **({"errors": errors} if errors else {}),
            "sampling": {"batch": self.batch, "batch_seconds": batch_seconds},
            "seconds": seconds + time.monotonic() - began,
        }
        self._keep(f"{row.name}.npy", x)
        self._keep(f"{row.name}.json", json.dumps(entry, indent=1))

    def protocol(self) -> dict[str, str]:
        """How each figure was made, in words."""
        ev, data = self._config, self._setup.dataset
        network = ""
        if ev.inception:
            path = pathlib.Path(ev.inception)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            network = (
                f"Inception features (weights {path.name}, sha256 {digest[:12]}, "
                "TensorFlow-1 bilinear resizing to 299)"
            )
        procedure = metrics.Procedure(
            num_samples=ev.num_samples,
            num_paired=ev.paired_samples,
            num_examples=min(
                ev.num_reference or len(data.reference), len(data.reference)
            ),
            kind="training" if data.reference is data else "held-back",
            data=self._setup.config.data.name,
            space=self._setup.space,
            reference_steps=self.reference_steps,
            network=network,
            statistics=ev.statistics,
            perceptual_size=self._setup.config.perceptual.size,
        )
        names = ", ".join(dict.fromkeys(row.sampler for row in rows(self._setup)))
        clip = "clipped to [-1, 1]" if self._setup.space.clip else "not clipped"
        words = {
            "samples": f"{ev.num_samples} a row from one noise set (seed {ev.seed}), "
            f"sampler {names}, predictions {clip}"
        }
        for metric in metrics.every():
            if metric in self._metrics:
                words[metric.name] = metric.sentence(procedure)
            elif metric.main and self._lacking.intersection(metric.needs) == {
                "features"
            }:
                words[metric.name] = (
                    "not measured: no Inception weights given (eval.inception)"
                )
        halves = self.floor.get("num_examples")
        if halves:
            words["floor"] = (
                f"the same metrics of {halves[0]} examples of the data against "
                f"{halves[1]} others, as far apart as samples of a perfect model. "
                "Smaller sets are farther apart: a row of more samples can be below"
            )
        return words

    def entry(self, row: Row) -> dict:
        """A finished row's entry; empty where there is none that can be read."""
        try:
            return check_entry(files.read_json(self._path(f"{row.name}.json")))
        except (OSError, ValueError):
            return {}

    def class_names(self, classes: Iterable[int]) -> list[str]:
        """The names of classes of the data, or their numbers if they have none."""
        names = getattr(self._setup.dataset, "label_names", ())
        return [str(names[c]) if c < len(names) else str(c) for c in classes]

    def saved_samples(self, name: str) -> np.ndarray:
        """Samples kept under a row's or a reference's name: the first of the set."""
        return _load(self._path(f"{name}.npy"))


def values_of(
    both: metrics.Comparison, chosen: list[metrics.Metric]
) -> tuple[dict[str, float], list[str]]:
    """Each metric's value by name, and why there is none of the others."""
    wrong = {name: num_not_finite(x) for name, x in both.references.items()}
    values, errors = {}, []
    for metric in chosen:
        without = [name for name in metric.needs if wrong.get(name)]
        if without:
            num = len(both.references[without[0]])
            text = f"{wrong[without[0]]} of {num} samples of {without[0]}"
            errors.append(f"{metric.name}: {text} are not finite")
            continue
        try:
            values[metric.name] = metric.compute(both)
        except Exception as error:  # it must not cost the run its students
            errors.append(f"{metric.name}: {files.brief(error)}")
            console.warn(f"{metric.name} failed:\n{traceback.format_exc()}")
    return values, errors


def _load(path: epath.Path) -> np.ndarray:
    return files.parse_npy(path.read_bytes(), str(path))
