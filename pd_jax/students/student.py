"""Students: weights that carry their own sampler."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pd_jax import models, samplers, schedules
from pd_jax.models import Model
from pd_jax.runtime import registry
from pd_jax.schedules import Schedule
from pd_jax.storage import files
from pd_jax.students import bundle

PLATFORMS = ("cpu", "cuda", "tpu")
ANY = -1  # in place of a label: drawn from all, as likely each


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A model, its weights, and the one sampler that it was made for.

    Attributes:
      model: a `models.Model`, or anything with its `denoiser` and `cast`.
      params: its weights, a pytree of arrays; nested dicts of a network with a name.
      num_steps: sampling steps it was made for; 0 for a teacher of any.
      schedule: the noise levels it was trained on.
      shape: of one sample: [H, W, C] of an image, which is sampled as uint8; of other
        shapes samples are float32.
      clip: clips each prediction of x to [-1, 1].
      sampler: a method of `samplers.sample`.
      labels: of a class-conditional model, the classes' names or their number.
      metrics: what was measured of its samples.
      facts: where it comes from, as JSON.
    """

    model: Any
    params: dict
    num_steps: int
    schedule: Schedule
    shape: tuple[int, ...]
    clip: bool = True
    sampler: str = "ddim"
    labels: Sequence[str] | int | None = None
    metrics: dict = dataclasses.field(default_factory=dict)
    facts: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        samplers.parse(self.sampler)
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.num_steps < 0:
            raise ValueError(f"num_steps={self.num_steps}: at least 0")
        network = getattr(self.model, "network", None)
        classes = getattr(network, "num_classes", self.num_classes)
        if max(classes, 1) != max(self.num_classes, 1):
            raise ValueError(
                f"{self.num_classes} labels for a network of num_classes={classes}"
            )

    @property
    def num_classes(self) -> int:
        """Classes of the label; 0 without labels."""
        if self.labels is None or isinstance(self.labels, int):
            return self.labels or 0
        return len(self.labels)

    @property
    def _labels(self) -> list[str] | int | None:
        """The labels as JSON."""
        named = self.labels is not None and not isinstance(self.labels, int)
        return list(self.labels) if named else self.num_classes or None

    @property
    def is_image(self) -> bool:
        """Whether samples are images, uint8, and not float32."""
        return len(self.shape) == 3

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return bundle.digest(bundle.flatten(self.params))

    def steps(self, num_steps: int | None, force: bool = False) -> int:
        """The step count to sample with.

        Raises:
          ValueError: for one that the student was not made for, unless `force`.
        """
        if num_steps is None and not self.num_steps:
            raise ValueError("a teacher of any number of steps: give num_steps")
        if num_steps in (None, self.num_steps):
            return self.num_steps
        if self.num_steps and not force:
            raise ValueError(
                f"num_steps={num_steps}: this student was made for {self.num_steps}; "
                "force=True samples with another number, at a loss of quality"
            )
        if num_steps not in range(1, bundle.MOST_STEPS + 1):
            raise ValueError(
                f"num_steps={num_steps}: a whole number from 1 to {bundle.MOST_STEPS}"
            )
        return num_steps

    def label_of(self, label: int | str | None) -> int:
        """A label as its number, `ANY` for None; ValueError for one that is none."""
        if label is None:
            return ANY
        if self.num_classes < 2:
            raise ValueError(f"label={label}: this student has no labels")
        if isinstance(label, str) and not isinstance(self.labels, int):
            known = list(self.labels)
            return known.index(registry.check(label, known, "label"))
        if isinstance(label, str) or not 0 <= label < self.num_classes:
            raise ValueError(
                f"label={label}: labels are whole numbers from 0 to "
                f"{self.num_classes - 1}"
            )
        return int(label)

    def sample(
        self,
        key: jax.Array,
        num: int,
        label: int | str | Sequence[int | str] | None = None,
        *,
        num_steps: int | None = None,
        force: bool = False,
        sampler: str | None = None,
        batch: int = 256,
    ) -> np.ndarray:
        """Samples; the i-th is a function of key and i alone.

        Args:
          key: `jax.random.key(seed)`.
          num: how many.
          label: a class by number or name, or one for each sample; None draws them,
            each class as likely as the others.
          num_steps: other steps than its own, with `force`; a teacher needs them.
          sampler: another method of `samplers.sample`.
          batch: samples that are drawn at once, over all devices.

        Returns:
          uint8 [num, H, W, C]; float32 [num, ...] where samples are no images.

        Raises:
          ValueError: for a step count that it was not made for, or an unknown label.
        """
        if num < 1:
            raise ValueError(f"num={num}: at least 1")
        options = dict(num_steps=num_steps, force=force, sampler=sampler, batch=batch)
        return self.at(key, np.arange(num), label, **options)

    def at(
        self,
        key: jax.Array,
        places: np.ndarray,
        label: int | str | Sequence[int | str] | None = None,
        *,
        num_steps: int | None = None,
        force: bool = False,
        sampler: str | None = None,
        batch: int = 256,
    ) -> np.ndarray:
        """The samples at `places` [N] of `sample`'s order; as there otherwise."""
        method = sampler or self.sampler
        samplers.parse(method)
        steps = jnp.int32(self.steps(num_steps, force))
        if label is None or isinstance(label, int | str | np.integer):
            label = [label] * len(places)
        if len(label) != len(places):
            raise ValueError(f"{len(label)} labels for {len(places)} samples")
        label = np.array([self.label_of(one) for one in label], np.int32)
        split, params = self._placed
        size = -(-min(batch, len(places)) // split.mesh.size) * split.mesh.size
        parts = []
        for first in range(0, len(places), size):
            rows = np.minimum(np.arange(first, first + size), len(places) - 1)
            place = jax.device_put(places[rows].astype(np.uint32), split)
            given = jax.device_put(label[rows], split)
            found = self._draw(params, key, place, given, steps, method)
            parts.append(np.asarray(found)[: len(places) - first])
        return np.concatenate(parts)

    @functools.cached_property
    def _placed(self) -> tuple[NamedSharding, dict]:
        """How a batch lies on all devices, and the weights on each of them."""
        mesh = Mesh(np.array(jax.local_devices()), ("batch",))
        params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        return NamedSharding(mesh, PartitionSpec("batch")), params

    @functools.cached_property
    def _draw(self):
        return jax.jit(self._samples, static_argnums=5)

    def _samples(self, params, key, place, label, num_steps, method):
        """Samples at places [B], pure; label [B] int32, `ANY` for any."""
        if self.num_classes > 1:
            drawn = samplers.labels(key, place, self.num_classes)
            label = jnp.where(label == ANY, drawn, label)
        else:
            label = None
        denoise = self.model.denoiser(self.model.cast(params), label)
        z = samplers.noise(key, place, self.shape)
        keys = samplers.step_keys(key, place)
        x = samplers.sample(
            denoise, z, num_steps, self.schedule, method, self.clip, keys
        )
        if not self.is_image:
            return x
        return jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)

    def program(self) -> bytes:
        """The sampler as a program that needs jax alone: see docs/bundle_alone.py.

        It is `call(weights by their names in a bundle, key data uint32 [2], place
        uint32 [b])`, for a class-conditional student with label int32 [b] too, -1 for
        any. The samples are those of `at` with the key of that data, at those places.

        Returns:
          The bytes of `jax.export`, for cpu, cuda and tpu and any b.

        Raises:
          ValueError: for a teacher, or a network that needs a batch of one size.
        """
        if not self.num_steps:
            raise ValueError("a teacher has no steps of its own: give it num_steps")
        portable = dataclasses.replace(self, model=_portable(self.model))

        def sampler(weights, key, place, label=None):
            key = jax.random.wrap_key_data(key, impl="threefry2x32")
            params = jax.tree.unflatten(structure, [weights[name] for name in names])
            steps = jnp.int32(self.num_steps)
            return portable._samples(params, key, place, label, steps, self.sampler)

        (b,) = export.symbolic_shape("b")
        weights, of = bundle.flatten(self.params), jax.ShapeDtypeStruct
        weights = {bundle.PARAMS + name: array for name, array in weights.items()}
        names, structure = list(weights), jax.tree.structure(self.params)
        given = [
            {name: of(array.shape, array.dtype) for name, array in weights.items()},
            *(of((2,), jnp.uint32), of((b,), jnp.uint32), of((b,), jnp.int32)),
        ]
        given = given if self.num_classes > 1 else given[:3]
        try:
            with _without_locations():
                found = export.export(jax.jit(sampler), platforms=PLATFORMS)(*given)
        except Exception as error:  # whatever a network does with its shapes
            raise ValueError(
                "the network cannot be exported for batches of any size (with "
                f"z.shape[0] in place of len(z) most can): {files.brief(error)}"
            ) from error
        return bytes(found.serialize())

    def save(self, path: str | os.PathLike) -> tuple[int, str]:
        """Writes a bundle: one file that `pd_jax.load` reads, and jax alone runs.

        Returns:
          The file's size in bytes, and its SHA-256.

        Raises:
          ValueError: for a teacher without a step count, or weights without names.
          OSError: where the file cannot be written.
        """
        times = np.arange(self.num_steps, -1, -1) / max(self.num_steps, 1)
        content = {
            "num_steps": self.num_steps,
            "times": times.tolist(),
            "logsnr": np.asarray(self.schedule(jnp.asarray(times))).tolist(),
            "schedule": schedules.describe(self.schedule),
            "sampler": self.sampler,
            "clip": self.clip,
            "shape": list(self.shape),
            "labels": self._labels,
            "model": models.describe(self.model),
            "output": getattr(self.model, "output", None),
            "precision": jnp.dtype(getattr(self.model, "dtype", jnp.float32)).name,
            "metrics": self.metrics,
            "facts": self.facts,
        }
        return bundle.write(path, self.params, self.program(), content)


@contextlib.contextmanager
def _without_locations() -> Iterator[None]:
    """Keeps this machine's paths out of programs, which are the same bytes then."""
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _portable(model: Any) -> Any:
    """The model with attention that every platform has."""
    if not isinstance(model, Model) or not hasattr(model.network, "attention"):
        return model
    return Model(model.network.clone(attention="xla"), model.output)
