"""What a run takes, in FLOP and bytes, counted on shapes alone.

No example is read, no weight is made, no accelerator is asked for.

- FLOP: two a multiply-add of the convolutions and matrix products in the traced step.
  XLA's count of the lowered step, elementwise operations included, stands beside it.
- Memory: the arrays of the train state, and the peak of the traced step's own
  (`pd_jax.costs.program`). A compiler has more freedom (`compiler_memory`).
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pd_jax import samplers
from pd_jax.config.setup import Setup
from pd_jax.costs import program
from pd_jax.costs.program import matmul_flops, num_bytes, peak_bytes, reduced_bytes
from pd_jax.data import Dataset, Description
from pd_jax.evaluation.evaluation import GRID
from pd_jax.evaluation.rows import rows
from pd_jax.evaluation.self_consistency import path_steps
from pd_jax.runtime import numerics
from pd_jax.training.method import state_shapes
from pd_jax.training.stage import Stage
from pd_jax.training.state import TrainState
from pd_jax.training.step import AHEAD, Step
from pd_jax.training.training import Training


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one training takes.

    Attributes:
      name: the training's.
      stages: its stages.
      batch: images an update.
      at_once: images that one device works on at once, of `microbatches` a batch.
      flops: of an update, in matrix products and convolutions, over all devices.
      xla_flops: the same by XLA's count.
      memory: bytes on each device, by part: those of the train state, "batch",
        "activations", which grow with `at_once`, and "gradients, casts", what else
        the update computes.
      gradients: bytes of the gradients of all weights.
      reduced: bytes that an update sums over devices: gradients, as often as networks
        are moved.
      checkpoint: bytes of one checkpoint.
    """

    name: str
    stages: list[Stage]
    batch: int
    at_once: int
    microbatches: int
    flops: int
    xla_flops: float
    memory: dict[str, int]
    gradients: int
    reduced: int
    checkpoint: int

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(self.memory.values())

    def needs(self, at_once: int, microbatches: int) -> float:
        """Bytes on each device where the batch is cut in another way."""
        activations = self.memory["activations"]
        # In microbatches, the sum of the gradients lies beside one part's own.
        sums = (microbatches > 1) - (self.microbatches > 1)
        rest = self.total - activations + sums * self.gradients
        return rest + activations / self.at_once * at_once


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run takes.

    Attributes:
      num_weights: of the network.
      forward: FLOP of a forward pass of one image.
      xla_forward: the same by XLA's count.
      trainings: of each training.
      evaluation: FLOP of all samples.
      checkpoints, samples: bytes of the run's folder.
      pairs, pair_files: FLOP and bytes of the pairs that are made to learn from.
    """

    num_weights: int
    forward: int
    xla_forward: float
    trainings: list[Cost]
    evaluation: int
    checkpoints: int
    samples: int
    pairs: int = 0
    pair_files: int = 0

    @property
    def flops(self) -> int:
        """FLOP of the whole run."""
        updates = [c.flops * sum(s.updates for s in c.stages) for c in self.trainings]
        return sum(updates) + self.pairs + self.evaluation


class _Held(NamedTuple):
    """Bytes of a train state.

    Attributes:
      parts: by part.
      trained: of the weights of all networks that are moved.
      saved: of what a checkpoint holds.
    """

    parts: dict[str, int]
    trained: int
    saved: int


def _held(state: TrainState) -> _Held:
    """Bytes of a train state; all that is known of its fields is known here."""
    networks = state.networks.values()
    parts = {
        "weights": num_bytes([network.params for network in networks]),
        "optimizer": num_bytes([network.opt_state for network in networks]),
        "averaged weights": num_bytes([network.averages for network in networks]),
        "teacher's weights": num_bytes(state.frozen),
        "memory": num_bytes(state.memory),
    }
    saved = num_bytes(state) - parts["teacher's weights"]
    if not state.memory:
        del parts["memory"]
    return _Held(parts, parts["weights"], saved)


def _state(training: Training, weights: dict) -> TrainState:
    """A training's state as shapes and types."""
    return state_shapes(training.method, training.stages[0], weights)


def _batch(dataset: Dataset | Description, *lead: int, kind: str = "images") -> dict:
    """A batch of a kind as shapes and types, leaves [*lead, ...]."""
    shape, classes = dataset.shape, dataset.num_classes
    batch = {
        "images": {"image": jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)},
        "places": {"place": jax.ShapeDtypeStruct(lead, jnp.int32)},
        "pairs": {
            name: jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)
            for name in ("image", "noise")
        }
        | {"step": jax.ShapeDtypeStruct(lead, jnp.int32)},
    }[kind]
    if classes or classes is None:
        batch["label"] = jax.ShapeDtypeStruct(lead, jnp.int32)
    return batch


def trace(setup: Setup, training: Training, step: Step, size: int) -> jax.stages.Traced:
    """A training's step, traced on shapes for one device.

    Args:
      setup: from `pd_jax.config.setup.sketch`.
      training: one of its trainings.
      step: its step, or one of another number of updates.
      size: the device's part of a batch.
    """
    lead = 1, step.substeps, size
    batch = _batch(training.dataset, *lead, kind=training.method.data)
    key = jax.eval_shape(lambda: numerics.key(0))
    return step.trace(_state(training, setup.shapes), batch, key)


def _cost(setup: Setup, training: Training, num_devices: int) -> Cost:
    """One training's cost, from the update of one device."""
    parts = setup.config[training.name].microbatches
    size = training.batch // num_devices
    # One update, as XLA counts a loop's body once. (Its count of a batch in parts so
    # has the optimizer's few FLOP as often as there are parts.)
    step = Step(training.method.update, training.step.devices)
    traced = trace(setup, training, step, size)
    peak = peak_bytes(traced.jaxpr.jaxpr)
    twice = peak_bytes(trace(setup, training, step, 2 * size).jaxpr.jaxpr)
    held = _held(_state(training, setup.shapes))
    lead = training.step.substeps, size
    batch = _batch(training.dataset, *lead, kind=training.method.data)
    # What a batch of twice the size does not double; of a small one, the peak may be
    # after its activations are gone, and they grow past it in the larger one.
    fixed = max(2 * peak - twice, min(peak, held.trained))
    memory = held.parts | {
        "gradients, casts": fixed,
        "activations": peak - fixed,
        # A call's batches, and those of the calls ahead.
        "batch": (1 + AHEAD) * num_bytes(batch),
    }
    return Cost(
        name=training.name,
        stages=training.stages,
        batch=training.batch,
        at_once=size // parts,
        microbatches=parts,
        flops=matmul_flops(traced.jaxpr.jaxpr) * num_devices,
        xla_flops=_xla_flops(traced) * parts * num_devices,
        memory=memory,
        gradients=held.trained,
        reduced=reduced_bytes(traced.jaxpr.jaxpr),
        checkpoint=held.saved,
    )


def _evaluations(setup: Setup) -> int:
    """Forward passes of one image in all of the evaluation."""
    ev, exact = setup.config.eval, setup.config.teacher.exact
    asked = [row for row in rows(setup) if row.model == "student" or not exact]

    def passes(num_steps, sampler):
        return num_steps * samplers.get(sampler).evaluations

    each = sum(passes(row.num_steps, row.sampler) for row in asked)
    along, times = path_steps(ev, ev.reference_steps)
    paired = times * len({row.stage for row in asked})
    if not exact:
        paired += passes(ev.reference_steps, ev.sampler) + passes(along, ev.sampler)
    return ev.num_samples * each + ev.paired_samples * paired


def _pairs(setup: Setup) -> tuple[int, int]:
    """Forward passes of one image, and bytes, of the pairs to learn from."""
    passes = size = 0
    for training in setup.trainings:
        method = training.method
        if method.data == "pairs":
            sampler = samplers.get(method.teacher_sampler or setup.config.eval.sampler)
            made = len(training.stages) - (method.parts.exact is not None)
            each = method.teacher_steps * sampler.evaluations
            passes += made * method.pairs * each
            places = method.pairs * (method.places + 1)
            size += (
                len(training.stages)
                * places
                * num_bytes(_batch(training.dataset)["image"])
            )
    return passes, size


def _folder(setup: Setup, costs: list[Cost]) -> tuple[int, int]:
    """Bytes of a run's checkpoints, of which a stage keeps two, and of its samples."""
    every, ev = setup.config.run.checkpoint_updates, setup.config.eval
    checkpoints = sum(
        cost.checkpoint * min(2, math.ceil(stage.updates / every))
        for cost in costs
        for stage in cost.stages
    )
    saved = min(max(ev.paired_samples, GRID), ev.num_samples)
    num = len(rows(setup)) * saved + ev.paired_samples
    num += 0 if setup.dataset.denoise is None else ev.paired_samples
    return checkpoints, num * num_bytes(_batch(setup.dataset)["image"])


def _xla_flops(traced: jax.stages.Traced) -> float:
    """XLA's count of a traced program; not a number where a backend has none."""
    return (traced.lower().cost_analysis() or {}).get("flops", math.nan)


def _forward(setup: Setup, weights: dict, size: int) -> jax.stages.Traced:
    """A forward pass of `size` examples, traced on shapes."""
    batch = _batch(setup.dataset, size)
    logsnr = jax.ShapeDtypeStruct((size,), jnp.float32)

    def forward(weights, z, logsnr, label):
        return setup.model.denoiser(weights, label)(z, logsnr)

    return jax.jit(forward).trace(weights, batch["image"], logsnr, batch.get("label"))


def forward_flops(setup: Setup, weights: dict) -> tuple[int, float]:
    """FLOP of a forward pass of one image, by `matmul_flops` and by XLA's count.

    Args:
      setup: from `pd_jax.config.setup.sketch`.
      weights: the network's, as shapes and types.
    """
    traced = _forward(setup, weights, 1)
    return matmul_flops(traced.jaxpr.jaxpr), _xla_flops(traced)


def held_bytes(setup: Setup, training: Training) -> int:
    """Bytes of a training's state on each device."""
    return num_bytes(_state(training, setup.shapes))


def result_bytes(setup: Setup, size: int, recomputes: bool) -> int:
    """`program.result_bytes` of the network's forward pass of `size` examples."""
    traced = _forward(setup, setup.shapes, size)
    return program.result_bytes(traced.jaxpr.jaxpr, recomputes)


def count(setup: Setup, num_devices: int) -> Costs:
    """Counts what a run takes, on shapes alone.

    Args:
      setup: from `pd_jax.config.setup.sketch`.
      num_devices: devices that share the batch, each of one chip.

    Raises:
      ValueError: for a network that cannot work, naming the config key.
    """
    weights = setup.shapes
    forward, xla_forward = forward_flops(setup, weights)
    trainings = [_cost(setup, t, num_devices) for t in setup.trainings]
    checkpoints, samples = _folder(setup, trainings)
    passes, pair_files = _pairs(setup)
    return Costs(
        num_weights=sum(a.size for a in jax.tree.leaves(weights)),
        forward=forward,
        xla_forward=xla_forward,
        trainings=trainings,
        evaluation=forward * _evaluations(setup),
        checkpoints=checkpoints,
        samples=samples,
        pairs=forward * passes,
        pair_files=pair_files,
    )


def compiler_memory(
    setup: Setup, training: Training, num_devices: int
) -> tuple[int, int]:
    """Bytes of one device's step by the compiler: state and batch; room to work in.

    Compiled for the machine at hand and not run: minutes for a large network.
    """
    size = training.batch // num_devices
    traced = trace(setup, training, training.step, size)
    memory = traced.lower().compile().memory_analysis()
    beside = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.argument_size_in_bytes, beside + memory.temp_size_in_bytes
