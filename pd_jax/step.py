"""The training step on all devices: the only place that says `jax.pmap`.

The state goes in and comes out as an ordinary pytree, replicated, without a device
axis, and donated. A method's per-device update is mapped over the batch; weights
sharded beyond one device's memory would be a second way to map the same update, here.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


class Step:
    """A compiled update over devices.

    Attributes:
      devices: the devices, in the order in which they share a global batch.
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
        self.devices = list(devices or jax.devices())
        self.substeps = substeps
        self.traces = 0
        self._update = update
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

    @property
    def sharding(self) -> NamedSharding:
        """How the mapped step returns a state: the same on every device."""
        return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), PartitionSpec())

    def place(self, tree):
        """Puts a state where the step will return it; else a second call compiles."""
        return jax.device_put(tree, self.sharding)

    def __call__(self, state, batch: dict, key: jax.Array):
        """Runs `substeps` updates.

        Args:
          state: placed state; its buffers are given up.
          batch: leaves [substeps * B, ...], B examples a global batch, on the host.
          key: the run's base key, placed.

        Returns:
          The new state, and metrics as the mean over the substeps, not waited for.
        """
        state, metrics = self._mapped(state, jax.tree.map(self._share, batch), key)
        if self._wait:
            jax.block_until_ready(metrics)
        return state, metrics

    def _share(self, a: np.ndarray) -> np.ndarray:
        """[substeps * B, ...] to [devices, substeps, B / devices, ...]."""
        num = len(self.devices)
        a = a.reshape(self.substeps, num, -1, *a.shape[1:])
        return np.swapaxes(a, 0, 1)

    def _on_device(self, state, batch, key):
        """One device's part of one call, traced once."""
        self.traces += 1

        def one(state, batch):
            size = jax.tree.leaves(batch)[0].shape[0]
            place = jax.lax.axis_index(AXIS) * size + jnp.arange(size)
            step_key = jax.random.fold_in(key, state.stage.index)
            step_key = jax.random.fold_in(step_key, state.step)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, place)
            return self._update(state, batch, keys)

        if self.substeps == 1:
            return one(state, jax.tree.map(lambda a: a[0], batch))
        state, metrics = jax.lax.scan(one, state, batch)
        return state, jax.tree.map(jnp.mean, metrics)
