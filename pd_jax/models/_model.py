"""A network and its meaning: output kind, labels, dropout and precision.

Weights are kept in float32. A network of another `dtype` multiplies by its matrices in
that type (`Model.cast`); vectors (biases, norms' scales) are not cast here, nor is
anything after the raw output, which is float32.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax import conventions
from pd_jax.arcs import Denoiser


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
      num_extra: numbers of further conditioning that the network is told with every
        input, such as a second time; 0 for none, which costs nothing.
    """

    network: nn.Module | Function
    output: str
    num_extra: int = 0

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

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> dict:
        """Fresh weights for examples of `shape` (without the batch axis)."""
        convention = conventions.get(self.output)
        given, level = convention.inputs(jnp.zeros((1, *shape)), jnp.zeros((1,)))
        label = jnp.zeros((1,), jnp.int32)
        extra = [jnp.zeros((1, self.num_extra))] if self.num_extra else []
        return self.network.init(key, given, level, label, *extra)["params"]

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
        shape = None if extra is None else extra.shape[1:]
        if shape != ((self.num_extra,) if self.num_extra else None):
            raise ValueError(
                f"extra of shape {shape} for a model of num_extra={self.num_extra}"
            )
        inputs = (given, level, label) + (() if extra is None else (extra,))
        variables = {"params": self.cast(params)}
        out = self.network.apply(variables, *inputs, train=train, rngs=rngs)
        return out.astype(jnp.promote_types(out.dtype, jnp.float32))

    def denoiser(
        self,
        params: dict,
        label: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        extra: jax.Array | None = None,
    ) -> Denoiser:
        """The denoiser (z [B, ...], logsnr [B]) -> Prediction of these weights.

        Args:
          params: the network's weights, from `cast` or before it.
          label: [B] int32, for a class-conditional network.
          dropout_key: trains with dropout where given.
          extra: [B, num_extra], further conditioning of a model that has some.
        """

        def network(params, given, level, label):
            return self.raw(params, given, level, label, dropout_key, extra)

        return conventions.adapt(network, self.output)(params, label)
