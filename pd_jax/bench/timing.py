"""For timing a config: figures over rounds, counts, data, and a peak to measure by."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pd_jax import data, models
from pd_jax.config.setup import Setup, sketch
from pd_jax.costs import count
from pd_jax.costs.program import matmul_flops
from pd_jax.data import Dataset, InMemory
from pd_jax.runtime import numerics
from pd_jax.runtime.errors import Refused
from pd_jax.training.training import Training

STANDIN = 2048  # random images in place of data that is not here
# Rows and columns of the matrix product that is taken as a device's peak.
PRODUCT = {"cpu": 2048}
PRODUCT_ELSEWHERE = 8192
OUT_OF_MEMORY = "out of memory"
COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


def reason(error: Exception) -> str:
    """Why something failed, in a line."""
    if "RESOURCE_EXHAUSTED" in str(error):
        return OUT_OF_MEMORY
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}"


@dataclasses.dataclass(frozen=True)
class Figure:
    """One quantity, measured once a round."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half of the range, as a share of the median."""
        return (max(self.values) - min(self.values)) / 2.0 / abs(self.median)

    def map(self, change: Callable[[float], float]) -> "Figure":
        """The figure with each value changed."""
        return Figure(tuple(map(change, self.values)))

    def over(self, other: "Figure") -> "Figure":
        """The ratio to another figure, round by round."""
        return Figure(tuple(a / b for a, b in zip(self.values, other.values)))


class Compilations:
    """Counts what a backend compiles, or reads compiled, within its context."""

    def __init__(self):
        self.count = 0

    def _listen(self, event: str, seconds: float, **kw) -> None:
        self.count += event == COMPILE_EVENT

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)


def find_data(config: ConfigDict) -> tuple[Dataset, str]:
    """A config's data; random images of its form, and why, where it cannot be read.

    Raises:
      Refused: where its form is not known either.
    """
    options = config.data.to_dict()
    name = options.pop("name")
    try:
        return data.get(name, **options), ""
    except (ValueError, OSError, ImportError) as error:
        described = data.describe(name, **options)
        why = str(error).partition("\n")[0]
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(STANDIN, *described.shape), dtype=np.uint8)
    classes, labels = described.num_classes, None
    if classes is None:
        classes = max(config.model.get("num_classes", 0), 1)
    if classes:
        labels = rng.integers(classes, size=STANDIN, dtype=np.int32)
    flip = options.get("flip", False)
    return InMemory(images, labels, flip=flip, kind=described.kind), why


def training_of(trainings: list[Training], name: str) -> Training:
    """The training called `name`; ValueError where a config has none."""
    for training in trainings:
        if training.name == name:
            return training
    raise Refused(f"--training={name}: this config's {name} is not trained")


def step_flops(setup: Setup, name: str) -> int:
    """FLOP of an update of the training called `name`, over all devices.

    What is computed anew to save memory is no work, and a fused kernel's work is that
    of the products that it stands for.
    """
    config = setup.config.copy_and_resolve_references()
    config.run.substeps = 1
    config.precision = setup.model.dtype.name  # "auto" is another one elsewhere
    defaults = models.fields(config.model.name)
    if "remat" in defaults:
        config.model.remat = defaults["remat"]
    if "attention" in defaults:
        config.model.attention = "xla"
    num_devices = jax.device_count()
    shapes = sketch(config, num_devices)
    training = training_of(shapes.trainings, name)
    size = training.batch // num_devices
    traced = count.trace(shapes, training, training.step, size)
    return matmul_flops(traced.jaxpr.jaxpr) * num_devices


def products(mesh: Mesh, dtype: np.dtype) -> tuple[int, Callable[[int], float]]:
    """Square matrix products on all devices at once, one after the other.

    Returns:
      FLOP of one round of products over all devices, and what does a number of rounds
      and returns the seconds that they took.
    """
    n = PRODUCT.get(jax.default_backend(), PRODUCT_ELSEWHERE)
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def draw():
        return jax.random.normal(numerics.key(0), (mesh.size, n, n), dtype)

    draw = jax.jit(draw, out_shardings=split)
    product = jax.jit(lambda a, b: (a @ b) / math.sqrt(n), out_shardings=split)

    def run(count: int) -> float:
        a = b = jax.block_until_ready(draw())
        began = time.perf_counter()
        for _ in range(count):
            b = product(a, b)
        jax.block_until_ready(b)
        return time.perf_counter() - began

    return 2 * n**3 * mesh.size, run
