"""Where a network becomes a denoiser: output kind, labels and dropout, said once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax import conventions
from pd_jax.arcs import Denoiser


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and the meaning of what goes in and comes out.

    Attributes:
      network: raw outputs (`pd_jax.models`).
      output: "x", "eps", "v" or "both", or another convention of `pd_jax.conventions`.
    """

    network: nn.Module
    output: str

    def __post_init__(self):
        conventions.get(self.output)

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> dict:
        """Fresh weights for examples of `shape` (without the batch axis)."""
        convention = conventions.get(self.output)
        given, level = convention.inputs(jnp.zeros((1, *shape)), jnp.zeros((1,)))
        label = jnp.zeros((1,), jnp.int32)
        return self.network.init(key, given, level, label)["params"]

    def raw(
        self,
        params: dict,
        given: jax.Array,
        level: jax.Array,
        label: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The network's output for the inputs of its own convention."""
        train = dropout_key is not None
        rngs = {"dropout": dropout_key} if train else None
        return self.network.apply(
            {"params": params}, given, level, label, train=train, rngs=rngs
        )

    def denoiser(
        self,
        params: dict,
        label: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Denoiser:
        """The denoiser (z [B, ...], logsnr [B]) -> Prediction of these weights.

        Args:
          params: the network's weights.
          label: [B] int32, for a class-conditional network.
          dropout_key: trains with dropout where given.
        """

        def network(params, given, level, label):
            return self.raw(params, given, level, label, dropout_key)

        return conventions.adapt(network, self.output)(params, label)
