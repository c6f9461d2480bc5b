"""What a run takes, in FLOP and bytes, counted on shapes alone.

No example is read, no weight is made, no accelerator is asked for.

- FLOP: two a multiply-add of the convolutions and matrix products in the traced step.
  XLA's count of the lowered step, elementwise operations included, stands beside it.
- Memory: the arrays of the train state, and what `jax.vjp` of the loss keeps for the
  backward pass. A compiler keeps some of it in other ways (`compiler_memory`): XLA for
  CPU took 1% less in all for both steps of configs/imagenet64.py with two images a
  device. No accelerator's compiler was asked yet.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from pd_jax import samplers
from pd_jax.config.setup import Setup
from pd_jax.evaluation.evaluation import GRID
from pd_jax.evaluation.rows import rows
from pd_jax.training.method import state_shapes
from pd_jax.training.optimizer import Optimizer
from pd_jax.training.stage import Stage
from pd_jax.training.step import AHEAD, Step
from pd_jax.training.training import Training

# Operations whose result shows the same numbers in another form.
VIEWS = ("reshape", "squeeze", "expand_dims", "transpose", "broadcast_in_dim")


def num_bytes(tree) -> int:
    """Bytes of all arrays of a tree, given as arrays or as shapes and types."""
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree))


def _inner(params: dict) -> Iterator[Jaxpr]:
    """The programs within a program's equation."""
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else [value]:
            part = getattr(part, "jaxpr", part)
            if hasattr(part, "eqns"):
                yield part


@functools.lru_cache
def _taps(
    size: int, out: int, taps: int, stride: int, low: int, spread: int, dilation: int
) -> int:
    """Pairs of an output's place and a kernel's tap that meet an input, on one axis.

    Of the inputs, `size` with `spread` - 1 zeros between them, the first stands at
    `low`: what meets zeros is no work.
    """
    place = np.arange(out)[:, None] * stride + np.arange(taps) * dilation - low
    inside = (place >= 0) & (place < size * spread) & (place % spread == 0)
    return int(inside.sum())


def _conv_flops(eqn: JaxprEqn) -> int:
    lhs, rhs, out = (var.aval.shape for var in (*eqn.invars, *eqn.outvars))
    params = eqn.params
    dims = params["dimension_numbers"]
    pairs = math.prod(
        map(
            _taps,
            (lhs[i] for i in dims.lhs_spec[2:]),
            (out[i] for i in dims.out_spec[2:]),
            (rhs[i] for i in dims.rhs_spec[2:]),
            params["window_strides"],
            (low for low, _ in params["padding"]),
            params["lhs_dilation"],
            params["rhs_dilation"],
        )
    )
    batch, channels = (out[i] for i in dims.out_spec[:2])
    return 2 * batch * channels * rhs[dims.rhs_spec[1]] * pairs


def matmul_flops(jaxpr: Jaxpr) -> int:
    """FLOP of a program's matrix products and convolutions, two a multiply-add.

    What a convolution multiplies by its padding is left out, as XLA does. Bodies of
    scans count as often as they run, the dearest branch of a `cond` once, and bodies of
    while loops, whose number of rounds is not known, once.
    """
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            depth = math.prod(shape[i] for i in contracted)
            total += 2 * eqn.outvars[0].aval.size * depth
        elif eqn.primitive.name == "conv_general_dilated":
            total += _conv_flops(eqn)
        else:
            inner = [matmul_flops(part) for part in _inner(eqn.params)]
            dearest = eqn.primitive.name == "cond"
            each = max(inner, default=0) if dearest else sum(inner)
            rounds = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += each * rounds
    return total


def residual_bytes(jaxpr: Jaxpr) -> int:
    """Bytes of a program's outputs, each once, without its inputs and constants.

    A reshaped or broadcast array counts as the array that it shows.
    """
    shown_by = {
        eqn.outvars[0]: eqn.invars[0]
        for eqn in jaxpr.eqns
        if eqn.primitive.name in VIEWS
    }
    kept = set()
    for var in jaxpr.outvars:
        while not isinstance(var, Literal) and var in shown_by:
            var = shown_by[var]
        if not isinstance(var, Literal):
            kept.add(var)
    return num_bytes([var.aval for var in kept - {*jaxpr.invars, *jaxpr.constvars}])


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one training (the teacher's, or the ladder's) takes.

    Attributes:
      name: "teacher" or "ladder".
      stages: its stages.
      batch: images an update.
      at_once: images that one device works on at once, of `microbatches` a batch.
      flops: of an update, in matrix products and convolutions, over all devices.
      xla_flops: the same by XLA's count.
      memory: bytes on each device, by part.
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
    checkpoint: int

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(self.memory.values())

    def needs(self, at_once: int, microbatches: int) -> float:
        """Bytes on each device where the batch is cut in another way."""
        part = self.memory["gradients"] // _copies(self.microbatches)
        kept = self.memory["activations"] / self.at_once
        rest = self.total - self.memory["gradients"] - self.memory["activations"]
        return rest + part * _copies(microbatches) + kept * at_once


def _cast_bytes(method, weights: dict) -> int:
    """Bytes of the weights that the network multiplies by in a type of its own."""
    cast = jax.eval_shape(method.parts.model.cast, weights)
    both = zip(*map(jax.tree.leaves, (cast, weights)))
    return num_bytes([here for here, kept in both if here.dtype != kept.dtype])


def _copies(microbatches: int) -> int:
    """Gradients on a device at one time: a microbatch's own, and the sum of all."""
    return min(microbatches, 2)


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
    """

    num_weights: int
    forward: int
    xla_forward: float
    trainings: list[Cost]
    evaluation: int
    checkpoints: int
    samples: int

    @property
    def flops(self) -> int:
        """FLOP of the whole run."""
        updates = [c.flops * sum(s.updates for s in c.stages) for c in self.trainings]
        return sum(updates) + self.evaluation


class _Kept(Optimizer):
    """Returns what the backward pass would need, in place of an update."""

    def update(self, state, loss, batch, keys, averages=None):
        def mean(params):
            return jnp.mean(loss(params, batch, keys))

        _, backward = jax.vjp(mean, state.model.params)
        return jax.tree.leaves(backward)


def _batch(setup: Setup, *lead: int) -> dict:
    """A batch as shapes and types, leaves [*lead, ...]."""
    shape, classes = setup.dataset.shape, setup.dataset.num_classes
    batch = {"image": jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)}
    if classes or classes is None:
        batch["label"] = jax.ShapeDtypeStruct(lead, jnp.int32)
    return batch


def _state(training: Training, weights: dict):
    """A training's state as shapes and types."""
    return state_shapes(training.method, training.stages[0], weights)


def _with(method, kind: type[Optimizer]):
    """A method with a descent of another kind, that takes its batch in one part."""
    fields = dataclasses.asdict(method.parts.optimizer) | {"microbatches": 1}
    parts = dataclasses.replace(method.parts, optimizer=kind(**fields))
    return dataclasses.replace(method, parts=parts)


def _cost(setup: Setup, training: Training, weights: dict, num_devices: int) -> Cost:
    """One training's cost, from one microbatch of one device."""
    method, parts = training.method, training.method.parts.optimizer.microbatches
    at_once = training.batch // num_devices // parts
    state = _state(training, weights)
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), at_once))

    # One update and one part, as XLA counts a loop's body once. (Its count of a batch
    # in parts so has the optimiser's few FLOP as often as there are parts.)
    step = Step(_with(method, Optimizer).update, training.step.devices)
    traced = step.trace(state, _batch(setup, 1, 1, at_once), key)
    backward = jax.make_jaxpr(_with(method, _Kept).update)
    kept = backward(state, _batch(setup, at_once), keys).jaxpr

    cast = _cast_bytes(method, weights)  # the backward pass keeps them too
    memory = {
        "weights": num_bytes(state.model.params),
        "weights, cast": cast,
        "optimiser": num_bytes(state.model.opt_state),
        "averaged weights": num_bytes(state.model.averages),
        "teacher's weights": num_bytes(state.frozen),
        "gradients": num_bytes(state.model.params) * _copies(parts),
        "activations": residual_bytes(kept) - cast,
        # A call's batches, and those of the calls ahead.
        "batch": (1 + AHEAD)
        * num_bytes(_batch(setup, training.step.substeps, at_once * parts)),
    }
    return Cost(
        name=training.name,
        stages=training.stages,
        batch=training.batch,
        at_once=at_once,
        microbatches=parts,
        flops=matmul_flops(traced.jaxpr.jaxpr) * parts * num_devices,
        xla_flops=_xla_flops(traced) * parts * num_devices,
        memory=memory,
        checkpoint=num_bytes(state.replace(frozen={})),
    )


def _evaluations(setup: Setup) -> int:
    """Forward passes of one image in all of the evaluation."""
    ev, exact = setup.config.eval, setup.config.teacher.exact
    asked = [row for row in rows(setup) if row.model == "student" or not exact]

    def passes(num_steps, sampler):
        return num_steps * samplers.get(sampler).evaluations

    each = sum(passes(row.num_steps, row.sampler) for row in asked)
    reference = 0 if exact else passes(ev.reference_steps, ev.sampler)
    return ev.num_samples * each + ev.paired_samples * reference


def _folder(setup: Setup, costs: list[Cost]) -> tuple[int, int]:
    """Bytes of a run's checkpoints, of which a stage keeps two, and of its samples."""
    every, ev = setup.config.run.checkpoint_updates, setup.config.eval
    checkpoints = sum(
        cost.checkpoint * min(2, math.ceil(stage.updates / every))
        for cost in costs
        for stage in cost.stages
    )
    kept = min(max(ev.paired_samples, GRID), ev.num_samples)
    num = len(rows(setup)) * kept + ev.paired_samples
    num += 0 if setup.dataset.denoise is None else ev.paired_samples
    return checkpoints, num * num_bytes(_batch(setup)["image"])


def _xla_flops(traced: jax.stages.Traced) -> float:
    """XLA's count of a traced program; not a number where a backend has none."""
    return (traced.lower().cost_analysis() or {}).get("flops", math.nan)


def forward_flops(setup: Setup, weights: dict) -> tuple[int, float]:
    """FLOP of a forward pass of one image, by `matmul_flops` and by XLA's count.

    Args:
      setup: from `pd_jax.config.setup.sketch`.
      weights: the network's, as shapes and types.
    """
    one = _batch(setup, 1)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)

    def forward(weights, z, logsnr, label):
        return setup.model.denoiser(weights, label)(z, logsnr)

    traced = jax.jit(forward).trace(weights, one["image"], logsnr, one.get("label"))
    return matmul_flops(traced.jaxpr.jaxpr), _xla_flops(traced)


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
    trainings = [_cost(setup, t, weights, num_devices) for t in setup.trainings]
    checkpoints, samples = _folder(setup, trainings)
    return Costs(
        num_weights=sum(a.size for a in jax.tree.leaves(weights)),
        forward=forward,
        xla_forward=xla_forward,
        trainings=trainings,
        evaluation=forward * _evaluations(setup),
        checkpoints=checkpoints,
        samples=samples,
    )


def compiler_memory(
    setup: Setup, training: Training, num_devices: int
) -> tuple[int, int]:
    """Bytes of one device's step by the compiler: state and batch; room to work in.

    Compiled for the machine at hand and not run: minutes for a large network.
    """
    size = training.batch // num_devices
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = _batch(setup, 1, training.step.substeps, size)
    traced = training.step.trace(_state(training, setup.shapes), batch, key)
    found = traced.lower().compile().memory_analysis()
    beside = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes, beside + found.temp_size_in_bytes
