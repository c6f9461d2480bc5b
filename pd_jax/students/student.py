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
from pd_jax.runtime import numerics, registry
from pd_jax.runtime.errors import Refused
from pd_jax.schedules import Schedule
from pd_jax.space import Space
from pd_jax.storage import files
from pd_jax.students import bundle

PLATFORMS = ("cpu", "cuda", "tpu")
ANY = -1  # in place of a label: drawn as often as the data had it


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Student:
    """A model, its weights, and the one sampler that it was made for.

    Attributes:
      model: a `models.Model`, or anything with its `denoiser` and `cast`.
      params: its weights, a pytree of arrays; nested dicts of a network with a name.
      num_steps: sampling steps by default; 0 for a teacher of any.
      schedule: the noise levels it was trained on.
      space: what one sample is: of pictures, samples are uint8, else float32; or a
        shape, which tells that.
      sampler: a method of `samplers.sample`.
      labels: of a class-conditional model, the classes' names or their number.
      label_counts: how often the data had each class; () for all alike.
      metrics: what was measured of its samples.
      facts: where it comes from, as JSON.
      step_counts: all numbers of steps that it was made for; () for num_steps alone.
    """

    model: Any
    params: dict
    num_steps: int
    schedule: Schedule
    space: Space | tuple[int, ...]
    sampler: str = "ddim"
    labels: Sequence[str] | int | None = None
    label_counts: tuple[int, ...] = ()
    metrics: dict = dataclasses.field(default_factory=dict)
    facts: dict = dataclasses.field(default_factory=dict)
    step_counts: tuple[int, ...] = ()

    def __post_init__(self):
        samplers.parse(self.sampler)
        if not isinstance(self.space, Space):
            object.__setattr__(self, "space", Space.of(self.space))
        object.__setattr__(self, "step_counts", tuple(self.step_counts))
        counts = tuple(map(int, self.label_counts))
        object.__setattr__(self, "label_counts", counts)
        if counts and (len(counts) != self.num_classes or max(counts) < 1):
            raise Refused(
                f"label_counts of {len(counts)} classes, {sum(counts)} in all, for "
                f"num_classes={self.num_classes}: give one for each, not all 0"
            )
        if self.num_steps < 0:
            raise Refused(f"num_steps={self.num_steps}: at least 0")
        if self.step_counts and self.num_steps not in self.step_counts:
            raise Refused(
                f"num_steps={self.num_steps} is none of step_counts={self.step_counts}"
            )
        network = getattr(self.model, "network", None)
        classes = getattr(network, "num_classes", self.num_classes)
        if max(classes, 1) != max(self.num_classes, 1):
            raise Refused(
                f"{self.num_classes} labels for a network of num_classes={classes}"
            )

    def __repr__(self) -> str:
        weights = sum(np.size(a) for a in jax.tree.leaves(self.params))
        return (
            f"{type(self).__name__}(num_steps={self.num_steps}, sampler="
            f"{self.sampler!r}, shape={self.shape}, num_classes={self.num_classes}, "
            f"{weights:,} weights)"
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
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.space.shape

    @property
    def clip(self) -> bool:
        """Whether each prediction of x is clipped to [-1, 1]."""
        return self.space.clip

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the weights."""
        return bundle.digest(bundle.flatten(self.params))

    def steps(self, num_steps: int | None, force: bool = False) -> int:
        """The step count to sample with.

        Raises:
          Refused: for one that the student was not made for, unless `force`.
        """
        if num_steps is None and not self.num_steps:
            raise Refused("a teacher of any number of steps: give num_steps")
        if num_steps in (None, self.num_steps):
            return self.num_steps
        if self.num_steps and num_steps not in self.step_counts and not force:
            counts = self.step_counts or (self.num_steps,)
            raise Refused(
                f"num_steps={num_steps}: this student was made for "
                f"{', '.join(map(str, counts))}; force=True samples with another "
                "number, at a loss of quality"
            )
        if num_steps not in range(1, bundle.MOST_STEPS + 1):
            raise Refused(
                f"num_steps={num_steps}: a whole number from 1 to {bundle.MOST_STEPS}"
            )
        return num_steps

    def is_made_for(self, sampler: str | None) -> bool:
        """Whether a sampler is the one to sample with: a teacher takes any.

        Raises:
          Refused: for an unknown one.
        """
        own = samplers.parse(self.sampler)
        return samplers.parse(sampler or self.sampler) == own or not self.num_steps

    def label_of(self, label: int | str | None) -> int:
        """A label as its number, `ANY` for None; Refused for one that is none."""
        if label is None:
            return ANY
        if self.num_classes < 2:
            raise Refused(f"label={label}: this student has no labels")
        if isinstance(label, str) and not isinstance(self.labels, int):
            known = list(self.labels)
            label = known.index(registry.check(label, known, "label"))
        if label not in range(self.num_classes):
            raise Refused(
                f"label={label}: labels are whole numbers from 0 to "
                f"{self.num_classes - 1}"
            )
        if self.label_counts and not self.label_counts[label]:
            seen = np.flatnonzero(self.label_counts)
            some = ", ".join(map(self._name, seen[:20]))
            more = f" and {len(seen) - 20} more" if len(seen) > 20 else ""
            raise Refused(
                f"label={self._name(label)}: no example that this student learnt from "
                f"had it: give one of {some}{more}"
            )
        return int(label)

    def _name(self, label: int) -> str:
        """A class's number, and its name where it has one."""
        if isinstance(self.labels, int):
            return str(label)
        return f"{label} ({self.labels[label]})"

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
            each class as often as the data had it.
          num_steps: another of its `step_counts`, or, with `force`, any; a teacher
            needs it.
          sampler: another method of `samplers.sample`, for a teacher, or with `force`.
          batch: samples that are drawn at once, over all devices.

        Returns:
          uint8 [num, H, W, C] of pictures, else float32 [num, ...].

        Raises:
          Refused: for a step count or sampler that it was not made for, or an unknown
            label.
          NotFinite: for samples that are not finite, with their number.
        """
        if num < 1:
            raise Refused(f"num={num}: at least 1")
        options = dict(num_steps=num_steps, force=force, sampler=sampler, batch=batch)
        return self.at(key, np.arange(num), label, **options)

    @numerics.pinned()
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
        steps, places = self.steps(num_steps, force), np.asarray(places)
        if not self.is_made_for(sampler) and not force:
            raise Refused(
                f'sampler="{sampler}": this student was made for "{self.sampler}"; '
                "force=True samples with another one, at a loss of quality"
            )
        whole = np.issubdtype(places.dtype, np.integer)
        if not whole or not np.all((places >= 0) & (places < 2**32)):
            raise Refused("places are whole numbers from 0 to 2^32 - 1")
        if label is None or isinstance(label, int | str | np.integer):
            label = [label] * len(places)
        if len(label) != len(places):
            raise Refused(f"{len(label)} labels for {len(places)} samples")
        label = np.array([self.label_of(one) for one in label], np.int32)
        split, placed = self._placed
        size = -(-min(batch, len(places)) // split.mesh.size) * split.mesh.size
        parts = []
        for first in range(0, len(places), size):
            rows = np.minimum(np.arange(first, first + size), len(places) - 1)
            x = placed.draw(key, places[rows], label[rows], steps, split, sampler)
            parts.append(np.asarray(x)[: len(places) - first])
        return self.space.finish(np.concatenate(parts))

    @functools.cached_property
    def _placed(self) -> tuple[NamedSharding, "Student"]:
        """How a batch lies on all devices, and the student with its weights on each."""
        mesh = Mesh(np.array(jax.local_devices()), ("batch",))
        params = jax.device_put(self.params, NamedSharding(mesh, PartitionSpec()))
        placed = dataclasses.replace(self, params=params)
        return NamedSharding(mesh, PartitionSpec("batch")), placed

    def _recipe(
        self,
        sampler: str | None = None,
        split: NamedSharding | None = None,
        stops: int = 1,
    ) -> "_Recipe":
        return _Recipe(
            self.model,
            self.schedule,
            self.space,
            sampler or self.sampler,
            self.num_classes,
            self.label_counts,
            split,
            stops,
        )

    @numerics.pinned()
    def draw(
        self,
        key: jax.Array,
        places: np.ndarray,
        labels: np.ndarray | None,
        num_steps: int,
        split: NamedSharding,
        sampler: str | None = None,
        stops: int = 1,
    ) -> jax.Array:
        """A batch of samples, before pictures are uint8: all sampling is done here.

        Students that differ in nothing but weights and steps share one compiled
        program for each size of a batch.

        Args:
          key: `jax.random.key(seed)`.
          places: [B], of the samples, as `at` has them.
          labels: [B], numbers of classes, `ANY` to draw one; None draws all.
          num_steps: any.
          split: how the batch lies on devices, maybe of several processes. The weights
            must be on each of them.
          sampler: another method of `samplers.sample`.
          stops: as of `samplers.sample`: what the path went through, too.

        Returns:
          Floats [B, ...], the same on all devices; with more than one stop [stops, B,
          ...].
        """
        if labels is None:
            labels = np.full(len(places), ANY)
        batch = places.astype(np.uint32), labels.astype(np.int32)
        recipe, steps = self._recipe(sampler, split, stops), jnp.int32(num_steps)
        key = numerics.threefry(key)
        return _draw(recipe, self.params, key, *jax.device_put(batch, split), steps)

    @numerics.pinned()
    def data_from(
        self,
        path: np.ndarray,
        times: np.ndarray,
        labels: np.ndarray | None,
        split: NamedSharding,
    ) -> jax.Array:
        """The data that the model points at from places on paths, in one step.

        It is the model's prediction of the data; one of two times is asked for the
        place that it jumps to at time 0.

        Args:
          path: noisy data at each of the times, [T, B, ...].
          times: [T], above 0 and at most 1.
          labels: [B], numbers of classes; None without.
          split: as for `draw`.

        Returns:
          Floats [T, B, ...], clipped if samples are, the same on all devices.
        """
        along = split.update(spec=PartitionSpec(None, *split.spec))
        if labels is not None:
            labels = jax.device_put(labels.astype(np.int32), split)
        path = jax.device_put(path.astype(np.float32), along)
        return _data_from(self._recipe(split=split), self.params, path, times, labels)

    @numerics.pinned()
    def trace(self, size: int, split: NamedSharding) -> jax.stages.Traced:
        """`draw` of a batch of some size on shapes, to be lowered for any platform."""
        of = jax.ShapeDtypeStruct
        key = jax.eval_shape(lambda: numerics.key(0))
        batch = of((size,), jnp.uint32), of((size,), jnp.int32)
        recipe, steps = self._recipe(split=split), of((), jnp.int32)
        return _draw.trace(recipe, self.params, key, *batch, steps)

    @numerics.pinned()
    def program(self) -> bytes:
        """The sampler as a program that needs jax alone: see docs/bundle_alone.py.

        It is `call(weights by their names in a bundle, key data uint32 [2], place
        uint32 [b])`, for a class-conditional student with label int32 [b] too, -1 for
        any. The samples are those of `at` with the key of that data, at those places,
        in float32: a program cannot refuse what is not finite, so its caller does, and
        makes pictures uint8.

        Returns:
          The bytes of `jax.export`, for cpu, cuda and tpu and any b.

        Raises:
          Refused: for a teacher, or a network that needs a batch of one size.
        """
        if not self.num_steps:
            raise Refused("a teacher has no steps of its own: give it num_steps")
        recipe = dataclasses.replace(self._recipe(), model=_portable(self.model))

        def sampler(weights, key, place, label=None):
            key = numerics.threefry(key)
            params = jax.tree.unflatten(structure, [weights[name] for name in names])
            steps = jnp.int32(self.num_steps)
            return _sample(recipe, params, key, place, label, steps)

        (b,) = export.symbolic_shape("b")
        weights, of = bundle.flatten(self.params), jax.ShapeDtypeStruct
        weights = {bundle.PARAMS + name: array for name, array in weights.items()}
        names, structure = list(weights), jax.tree.structure(self.params)
        arguments = [
            {name: of(array.shape, array.dtype) for name, array in weights.items()},
            *(of((2,), jnp.uint32), of((b,), jnp.uint32), of((b,), jnp.int32)),
        ]
        arguments = arguments if self.num_classes > 1 else arguments[:3]
        try:
            with _without_locations():
                export_of = export.export(jax.jit(sampler), platforms=PLATFORMS)
                program = export_of(*arguments)
        except Exception as error:  # whatever a network does with its shapes
            raise Refused(
                "the network cannot be exported for batches of any size (with "
                f"z.shape[0] in place of len(z) most can): {files.brief(error)}"
            ) from error
        return bytes(program.serialize())

    @numerics.pinned()
    def save(self, path: str | os.PathLike) -> tuple[int, str]:
        """Writes a bundle: one file that `pd_jax.load` reads, and jax alone runs.

        Returns:
          The file's size in bytes, and its SHA-256.

        Raises:
          Refused: for a teacher without a step count, or weights without names.
          OSError: where the file cannot be written.
        """
        times = np.arange(self.num_steps, -1, -1) / max(self.num_steps, 1)
        content = {
            "num_steps": self.num_steps,
            "step_counts": list(self.step_counts),
            "times": times.tolist(),
            "logsnr": np.asarray(self.schedule(jnp.asarray(times))).tolist(),
            "schedule": schedules.describe(self.schedule),
            "sampler": self.sampler,
            "clip": self.clip,
            "shape": list(self.shape),
            "kind": self.space.kind,
            "labels": self._labels,
            "label_counts": list(self.label_counts),
            "model": models.describe(self.model),
            "output": getattr(self.model, "output", None),
            "precision": jnp.dtype(getattr(self.model, "dtype", jnp.float32)).name,
            "metrics": self.metrics,
            "facts": self.facts,
        }
        return bundle.write(path, self.params, self.program(), content)


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """What a sampling program is compiled for."""

    # Left out of the hash, as a network's fields may be lists; compared all the same.
    model: Any = dataclasses.field(hash=False)
    schedule: Schedule = dataclasses.field(hash=False)
    space: Space
    sampler: str
    num_classes: int
    label_counts: tuple[int, ...]
    split: NamedSharding | None
    stops: int


def _sample(
    recipe: _Recipe,
    params: Any,
    key: jax.Array,
    place: jax.Array,
    label: jax.Array | None,
    num_steps: jax.Array,
) -> jax.Array:
    """Samples [B, ...] at places [B], pure; label [B] int32, `ANY` for any."""
    if recipe.num_classes > 1:
        counts = recipe.label_counts
        drawn = samplers.labels(key, place, recipe.num_classes, counts)
        label = jnp.where(label == ANY, drawn, label)
    else:
        label = None
    denoise = recipe.model.denoiser(recipe.model.cast(params), label)
    z = samplers.noise(key, place, recipe.space.shape)
    if recipe.split is not None:
        z = jax.lax.with_sharding_constraint(z, recipe.split)
    keys, clip = samplers.step_keys(key, place), recipe.space.clip
    x = samplers.sample(
        denoise,
        z,
        num_steps,
        recipe.schedule,
        recipe.sampler,
        clip,
        keys,
        stops=recipe.stops,
    )
    if recipe.split is not None:
        same = NamedSharding(recipe.split.mesh, PartitionSpec())
        x = jax.lax.with_sharding_constraint(x, same)
    return x


_draw = jax.jit(_sample, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _data_from(
    recipe: _Recipe,
    params: Any,
    path: jax.Array,
    times: jax.Array,
    label: jax.Array | None,
) -> jax.Array:
    """Data [T, B, ...] from places [T, B, ...] at times [T]; see `Student`."""
    denoise = recipe.model.denoiser(recipe.model.cast(params), label)

    def at(given):
        z, t = given
        levels = recipe.schedule(jnp.stack([t, jnp.zeros_like(t)]))
        return denoise(z, *(jnp.broadcast_to(n, z.shape[:1]) for n in levels)).x

    x = jax.lax.map(at, (path, times))
    x = jnp.clip(x, -1.0, 1.0) if recipe.space.clip else x
    same = NamedSharding(recipe.split.mesh, PartitionSpec())
    return jax.lax.with_sharding_constraint(x, same)


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
