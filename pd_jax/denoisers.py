"""Where a network becomes a denoiser: output kind, labels and dropout, said once."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from pd_jax import names
from pd_jax.arcs import Denoiser
from pd_jax.diffusion import OUTPUTS, predict


@dataclasses.dataclass(frozen=True)
class Model:
    """A network and the meaning of its output.

    Attributes:
      network: raw outputs (`pd_jax.models`).
      output: "x", "eps", "v" or "both".
    """

    network: nn.Module
    output: str

    def __post_init__(self):
        names.check(self.output, OUTPUTS, "output kind")

    def init(self, key: jax.Array, shape: tuple[int, ...]) -> dict:
        """Fresh weights for examples of `shape` (without the batch axis)."""
        z, ones = jnp.zeros((1, *shape)), jnp.ones((1,), jnp.int32)
        return self.network.init(key, z, jnp.zeros((1,)), 0 * ones)["params"]

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
        train = dropout_key is not None
        rngs = {"dropout": dropout_key} if train else None

        def denoise(z, logsnr):
            out = self.network.apply(
                {"params": params}, z, logsnr, label, train=train, rngs=rngs
            )
            return predict(out, z, logsnr, self.output)

        return denoise
