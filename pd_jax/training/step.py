"""The training step on all devices: the only place that says `jax.pmap`.

The state goes in and comes out as an ordinary pytree, replicated, without a device
axis, and donated. A method's per-device update is mapped over the batch; weights
sharded beyond one device's memory would be a second way to map the same update, here.

Several processes run the same mapped step, each on its own devices and its own part of
the batch. To the step a state is an array of this process; to checkpoints and samplers
it is one array of all processes: `place` and `everywhere` go between the two.
"""

import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pd_jax.runtime import compilation

AXIS = "batch"
AHEAD = 2  # calls whose batches are on the devices before they are needed


class Step:
    """A compiled update over devices.

    Attributes:
      devices: the devices, in the order in which they share a global batch: those of
        one process side by side.
      substeps: updates per call (`lax.scan` on device); 1 where 1.
      traces: how often the update was traced so far.
    """

    def __init__(
        self,
        update: Callable,
        devices: Sequence[jax.Device] | None = None,
        substeps: int = 1,
    ):
        """Maps `update(state, batch, keys) -> (state, metrics)` over `devices`."""
        devices = devices or jax.devices()
        self.devices = sorted(devices, key=lambda d: (d.process_index, d.id))
        self.substeps = substeps
        self.traces = 0
        self._update = update
        here = jax.process_index()
        self._local = [d for d in self.devices if d.process_index == here]
        self._mapped = jax.pmap(
            self._on_device,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, None),
            devices=self.devices,
            donate_argnums=0,
        )
        # XLA:CPU runs the collectives of fake devices on one thread pool, which several
        # calls in flight can starve until they wait for each other.
        self._wait = len(self.devices) > 1 and self.devices[0].platform == "cpu"

    @functools.cached_property  # made once: it costs as much as a small batch's way
    def sharding(self) -> NamedSharding:
        """How the mapped step returns a state: alike on this process's devices."""
        return NamedSharding(Mesh(np.array(self._local), (AXIS,)), PartitionSpec())

    @functools.cached_property
    def _split(self) -> NamedSharding:
        """How batches lie on this process's devices, by their first axis."""
        return self.sharding.update(spec=PartitionSpec(AXIS))

    @functools.cached_property
    def mesh(self) -> Mesh:
        """All devices of all processes, as one axis."""
        return Mesh(np.array(self.devices), (AXIS,))

    def place(self, tree):
        """Puts a state where the step will return it; else a second call compiles."""

        def own(a):
            whole = getattr(a, "is_fully_addressable", True)
            return a if whole else a.addressable_data(0)

        return jax.device_put(jax.tree.map(own, tree), self.sharding)

    def everywhere(self, state):
        """A state as arrays of all processes."""
        if jax.process_count() == 1:
            return state
        return multihost_utils.host_local_array_to_global_array(
            state, self.mesh, PartitionSpec()
        )

    def feed(self, batches: Iterator[dict]) -> Iterator[dict]:
        """Batches for calls, put on the devices `AHEAD` calls ahead.

        Args:
          batches: this process's part of one global batch each; leaves [B, ...], which
            nobody writes to any more: on CPU an array may be used where it lies. What
            they raise comes after the batches before.
        """
        ahead = collections.deque()
        while True:
            try:
                parts = [next(batches) for _ in range(self.substeps)]
            except Exception:
                yield from ahead
                raise
            whole = parts[0]
            if len(parts) > 1:
                whole = jax.tree.map(lambda *a: np.concatenate(a), *parts)
            ahead.append(self.share(whole))
            if len(ahead) > AHEAD:
                yield ahead.popleft()

    def share(self, batch: dict, count: int | None = None) -> dict:
        """Spreads batches over this process's devices.

        Args:
          batch: leaves [count * B, ...] on the host, B examples a global batch (or
            this process's part of it).
          count: how many batches that is; `substeps` where None.
        """
        count, num = count or self.substeps, len(self._local)

        def cut(a):  # to [devices, count, B / devices, ...]
            return np.swapaxes(a.reshape(count, num, -1, *a.shape[1:]), 0, 1)

        return jax.device_put(jax.tree.map(cut, batch), self._split)

    def __call__(self, state, batch: dict, key: jax.Array):
        """Runs `substeps` updates.

        Args:
          state: placed state; its buffers are given up.
          batch: from `share` or `feed`.
          key: the run's base key, placed.

        Returns:
          The new state, and metrics, not waited for: scalars, or [substeps].
        """
        with contextlib.nullcontext() if self.traces else compilation.without_gc():
            state, metrics = self._mapped(state, batch, key)
        if self._wait:
            jax.block_until_ready(metrics)
        return state, metrics

    def trace(self, state, batch: dict, key: jax.Array) -> jax.stages.Traced:
        """The step, traced but not compiled, to lower it for any platform.

        Args:
          state, batch, key: as for a call, arrays or `jax.ShapeDtypeStruct`.
        """
        return jax.jit(self._mapped, donate_argnums=0).trace(state, batch, key)

    def _on_device(self, state, batch, key):
        """One device's part of one call, traced once."""
        self.traces += 1

        def one(state, batch):
            keys = _keys(key, state.stage["index"], state.step, batch)
            return self._update(state, batch, keys)

        if self.substeps == 1:
            return one(state, jax.tree.map(lambda a: a[0], batch))
        return jax.lax.scan(one, state, batch)


class Measure:
    """A loss over the same examples with the same noise, whenever it is asked for.

    A second mapped function on a step's devices, which reads a state and leaves it.

    Attributes:
      traces: how often it was traced so far.
    """

    def __init__(self, loss: Callable, step: Step, key: jax.Array):
        """Maps `loss(state, batch, keys) -> [B]` over the devices of `step`.

        The base key is not the updates': numbers of batches take the place of theirs.
        """
        self.traces = 0
        self._loss, self._key = loss, step.place(key)
        self._mapped = jax.pmap(
            self._on_device,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=step.devices,
        )

    def __call__(self, state, batches: dict) -> float:
        """The mean loss; waits for it.

        Args:
          state: placed state.
          batches: from `Step.share`, any number of them.
        """
        return float(self._mapped(state, batches, self._key))

    def _on_device(self, state, batches, key):
        """One device's part, traced once."""
        self.traces += 1

        def one(numbered):
            number, batch = numbered
            keys = _keys(key, state.stage["index"], number, batch)
            return jnp.mean(self._loss(state, batch, keys))

        count = jax.tree.leaves(batches)[0].shape[0]
        losses = jax.lax.map(one, (jnp.arange(count), batches))
        return jax.lax.pmean(jnp.mean(losses), AXIS)


def _keys(key: jax.Array, stage: jax.Array, number: jax.Array, batch: dict):
    """A key for each example, by stage, update and place in the global batch, [B]."""
    size = jax.tree.leaves(batch)[0].shape[0]
    place = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
    key = jax.random.fold_in(jax.random.fold_in(key, stage), number)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, place)
