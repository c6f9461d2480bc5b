"""Conventions of other projects, read as the denoisers that everything here sees.

A network is trained in some convention: on which noisy data it is called, by what
number it is told the noise level, and what its output means. All conventions below are
one process seen at different scales. With z = alpha x + sigma n (variance preserving),

    name            network input      level given                    raw output
    x eps v both    z                  logsnr                         diffusion.predict
    ddpm            z                  timestep i, 0 .. 999           n
    edm             z / alpha          s = sigma / alpha              x
                    = x + s n            = exp(-logsnr/2)
    flow            z / (alpha+sigma)  s = sigma / (alpha + sigma)    u = n - x
                    = (1-s) x + s n      = sigmoid(-logsnr/2)

so `inputs` rescales z and renames the level, and `outputs` returns the three views:

    ddpm   eps = n, with the timestep whose logsnr in the discrete schedule this is  (1)
    edm    x = D(z / alpha, s)                                                       (2)
    flow   v = ((alpha - sigma) z + u) / (alpha + sigma)                             (3)

(3) is u in the basis (z, v), with no difference of x and eps: it holds to float32
precision at every level. (1) divides by alpha for x and (2) by sigma for eps and v, as
do the kinds "eps" and "x": that is in the nature of such outputs, which leave those
views undetermined there, and is not hidden.

Sources: Ho et al. 2020 (2006.11239); Karras et al. 2022 (2206.00364), equation 7; Liu
et al. 2022 (2209.03003) and Lipman et al. 2022 (2210.02747).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pd_jax import diffusion
from pd_jax.arcs import Denoiser
from pd_jax.diffusion import Prediction, alpha_sigma, expand
from pd_jax.runtime import registry

# (params, network input [B, ...], level [B], label [B] or None) -> raw output
Network = Callable[[object, jax.Array, jax.Array, jax.Array | None], jax.Array]


class Convention(NamedTuple):
    """What a network is given, and what it gives back.

    Attributes:
      inputs: (z [B, ...], logsnr [B]) -> (network input [B, ...], level [B]).
      outputs: (raw output, z, logsnr) -> Prediction.
      logsnr_range: the levels that such a network is trained on, where the convention
        bounds them: what schedule.logsnr_min and logsnr_max should stay within.
    """

    inputs: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    outputs: Callable[[jax.Array, jax.Array, jax.Array], Prediction]
    logsnr_range: tuple[float, float] = (-math.inf, math.inf)


def _as_is(z, logsnr):
    return z, logsnr


def native(kind: str) -> Convention:
    """A network called with (z, logsnr); its output is of a kind of `diffusion`."""
    return Convention(_as_is, functools.partial(diffusion.predict, kind=kind))


def ddpm(
    beta_first: float = 1e-4, beta_last: float = 0.02, num_timesteps: int = 1000
) -> Convention:
    """A noise prediction at the discrete timesteps of linearly rising betas.

    The network is called with (z, i), i a float in [0, num_timesteps - 1]: the place of
    logsnr among the discrete levels, interpolated linearly between two of them. Beyond
    the first and the last (logsnr 9.21 and -10.12 with these defaults) there is none:
    the timestep stays at the end, and z is not what the network expects there.
    """
    log_signal = np.cumsum(np.log1p(-np.linspace(beta_first, beta_last, num_timesteps)))
    levels = log_signal - np.log(-np.expm1(log_signal))

    def inputs(z, logsnr):
        rising = jnp.asarray(levels[::-1], logsnr.dtype)
        steps = jnp.arange(num_timesteps - 1, -1, -1, dtype=logsnr.dtype)
        return z, jnp.interp(logsnr, rising, steps)

    outputs = functools.partial(diffusion.predict, kind="eps")
    return Convention(inputs, outputs, (float(levels[-1]), float(levels[0])))


def edm(s_min: float = 0.002, s_max: float = 80.0) -> Convention:
    """EDM's denoiser D(x + s n, s) -> x, its preconditioning included (equation 2).

    Trained for s in [s_min, s_max]: logsnr from -8.76 to 12.43 with these defaults.
    """

    def inputs(z, logsnr):
        alpha, _ = alpha_sigma(logsnr)
        return z / expand(alpha, z), jnp.exp(-0.5 * logsnr)

    outputs = functools.partial(diffusion.predict, kind="x")
    return Convention(inputs, outputs, (-2 * math.log(s_max), -2 * math.log(s_min)))


def flow() -> Convention:
    """Flow matching on straight lines: u((1-s) x + s n, s) -> n - x (equation 3).

    s = 0 is data and s = 1 is noise. A network whose time runs the other way is called
    with 1 - s and its output negated before it comes here.
    """

    def inputs(z, logsnr):
        alpha, sigma = alpha_sigma(logsnr)
        return z / expand(alpha + sigma, z), jax.nn.sigmoid(-0.5 * logsnr)

    def outputs(raw, z, logsnr):
        if raw.shape != z.shape:
            raise ValueError(
                f'an output of kind "flow" has z\'s shape {z.shape}, not {raw.shape}'
            )
        alpha, sigma = (expand(a, z) for a in alpha_sigma(logsnr))
        v = ((alpha - sigma) * z + raw) / (alpha + sigma)
        return diffusion.predict(v, z, logsnr, "v")

    return Convention(inputs, outputs)


CONVENTIONS = {
    **{kind: native(kind) for kind in diffusion.OUTPUTS},
    "ddpm": ddpm(),
    "edm": edm(),
    "flow": flow(),
}


def get(name: str) -> Convention:
    """The convention called `name` (the config's model.output).

    Raises:
      Refused: for an unknown name, listing the known ones.
    """
    return CONVENTIONS[registry.check(name, CONVENTIONS, "output kind")]


def adapt(network: Network, output: str | Convention) -> Callable[..., Denoiser]:
    """A function that makes denoisers of a network in any convention.

    Args:
      network: any function (params, network input [B, ...], level [B], label) -> raw
        output; label is [B] int32 or None, and params whatever it takes.
      output: the convention, or its name.

    Returns:
      make(params, label=None) -> denoise(z [B, ...], logsnr [B] or scalar).

    Raises:
      Refused: for an unknown name.
      ValueError: when called, for an output of the wrong shape.
    """
    convention = get(output) if isinstance(output, str) else output

    def make(params, label=None):
        def denoise(z, logsnr):
            z = jnp.asarray(z)
            logsnr = jnp.asarray(logsnr)
            # At least float32: a timestep of 999 has no place in bfloat16.
            dtype = jnp.promote_types(logsnr.dtype, jnp.float32)
            logsnr = jnp.broadcast_to(logsnr.astype(dtype), z.shape[:1])
            given, level = convention.inputs(z, logsnr)
            raw = network(params, given, level, label)
            return convention.outputs(raw, z, logsnr)

        return denoise

    return make
