"""A network and its meaning: output kind, labels, dropout and precision.

Weights are kept in float32. A network of another `dtype` multiplies by its matrices in
that type (`Model.cast`); vectors (biases, norms' scales) are not cast here, nor is
anything after the raw output, which is float32.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax import conventions
from pd_jax.arcs import Denoiser
from pd_jax.models._embedding import EXTRA, sinusoidal, time_input
from pd_jax.runtime import numerics
from pd_jax.runtime.errors import Refused

TIME_CHANNELS = 64  # of a second time


@dataclasses.dataclass(frozen=True)
class Function:
    """A plain function in a network's place, whose weights are any pytree.

    Attributes:
      function: (params, input [B, ...], level [B], label [B] int32 or None) -> raw
        output, as for `conventions.adapt`.
      num_classes: classes of the label; 0 for a function without labels.
    """

    function: Callable
    num_classes: int = 0

    def clone(self, dropout: float = 0.0) -> "Function":
        """Itself: dropout is a matter of the function's own."""
        return self

    def apply(self, variables, given, level, label=None, train=False, rngs=None):
        """As a Flax module is called."""
        return self.function(variables["params"], given, level, label)


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and the meaning of what goes in and comes out.

    Attributes:
      network: raw outputs: one of `pd_jax.models`, or a `Function`.
      output: "x", "eps", "v" or "both", or another convention of `pd_jax.conventions`.

    Weights may know a second time, that which a step is to reach: then they are those
    of `with_second_time`, and denoisers of them are asked with it. It is told to the
    network as `TIME_CHANNELS` sines and cosines of its noise level.
    """

    network: nn.Module | Function
    output: str

    def __post_init__(self):
        conventions.get(self.output)

    @property
    def dtype(self) -> jnp.dtype:
        """The type that the network multiplies in."""
        return jnp.dtype(getattr(self.network, "dtype", None) or jnp.float32)

    def cast(self, params: dict) -> dict:
        """The weights as the network uses them: float32 matrices in its own type.

        Done where a network is called, and once for all where weights are constant: a
        second time it does nothing.
        """

        def one(a):
            matrix = a.ndim > 1 and a.dtype == jnp.float32
            return a.astype(self.dtype) if matrix else a

        return jax.tree.map(one, params)

    def init(
        self, key: jax.Array, shape: tuple[int, ...], extra: jax.Array | None = None
    ) -> dict:
        """Fresh weights for examples of `shape` (without the batch axis).

        Args:
          key: `jax.random.key(seed)`.
          shape: of an example.
          extra: [1, K], for weights that know as much further conditioning.
        """
        convention = conventions.get(self.output)
        given, level = convention.inputs(jnp.zeros((1, *shape)), jnp.zeros((1,)))
        label = jnp.zeros((1,), jnp.int32)
        further = () if extra is None else (extra,)
        return self.network.init(key, given, level, label, *further)["params"]

    def with_second_time(self, params: dict, shape: tuple[int, ...]) -> dict:
        """The weights, knowing a second time, which has no effect at first.

        Args:
          params: weights; returned as they are if they know one.
          shape: of an example.

        Raises:
          Refused: for a network that cannot be told one.
        """
        if _knows_second_time(params):
            return params
        if not isinstance(self.network, nn.Module):
            raise Refused(
                "a method with a second time needs a network of pd_jax.models: a "
                "function of (params, input, level, label) cannot be told one"
            )
        extra = jnp.zeros((1, TIME_CHANNELS))
        like = jax.eval_shape(lambda: self.init(numerics.key(0), shape, extra))
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like[EXTRA])
        return {**params, EXTRA: zeros}

    def raw(
        self,
        params: dict,
        given: jax.Array,
        level: jax.Array,
        label: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        extra: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output for the inputs of its own convention."""
        train = dropout_key is not None
        rngs = {"dropout": dropout_key} if train else None
        inputs = (given, level, label) + (() if extra is None else (extra,))
        variables = {"params": self.cast(params)}
        out = self.network.apply(variables, *inputs, train=train, rngs=rngs)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def denoiser(
        self,
        params: dict,
        label: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Denoiser:
        """The denoiser (z [B, ...], logsnr [B], until [B]) -> Prediction of weights.

        With weights that know a second time, v is that of the arc from `logsnr` to
        `until`, by default to `logsnr` itself: an arc of no length, whose v is the
        denoiser's. To others `until` says nothing.

        Args:
          params: the network's weights, from `cast` or before it.
          label: [B] int32, for a class-conditional network.
          dropout_key: trains with dropout where given.
        """
        told = _knows_second_time(params)

        def denoise(z, logsnr, until=None):
            def network(params, given, level, label):
                extra = None
                if told:
                    to = logsnr if until is None else until
                    scale = getattr(self.network, "time_scale", 1000.0)
                    u = jnp.broadcast_to(time_input(to, "inv_cos"), given.shape[:1])
                    extra = sinusoidal(u, TIME_CHANNELS, scale)
                return self.raw(params, given, level, label, dropout_key, extra)

            return conventions.adapt(network, self.output)(params, label)(z, logsnr)

        return denoise


def _knows_second_time(params: Any) -> bool:
    return isinstance(params, Mapping) and EXTRA in params
