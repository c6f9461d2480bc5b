"""Networks in closed form: exact for a mixture, each in a convention of its own.

On y = a x + b n, for x of a mixture of Normal(mean_k, std^2) and n standard normal,
both posterior means are linear per component. Nothing here knows of variance
preservation: a convention is its own (a, b), and what it predicts.
"""

import jax
import jax.numpy as jnp
import numpy as np

CONVENTIONS = ("x", "eps", "v", "both", "ddpm", "edm", "flow")
# From the definition of DDPM's schedule, in float64.
BAR = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
LOGSNR = np.log(BAR / (1.0 - BAR))

# A ring of eight classes in two of sixteen dimensions, and ten images.
ANGLES = np.arange(8) * np.pi / 4
RING = np.zeros((8, 4, 4, 1))
RING[:, 0, :2, 0] = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
IMAGES = 0.8 * np.random.default_rng(1).uniform(-1, 1, (10, 4, 4, 1))


def scales(name, level):
    """(a, b) of y = a x + b n at the level that the network is told."""
    if name == "edm":
        return jnp.ones_like(level), level
    if name == "flow":
        return 1.0 - level, level
    if name == "ddpm":
        level = jnp.interp(level, np.arange(1000.0), LOGSNR.astype(level.dtype))
    return jnp.sqrt(jax.nn.sigmoid(level)), jnp.sqrt(jax.nn.sigmoid(-level))


def network(name, means, std, labels=None, tell=lambda level: level):
    """(params, y, level, label) -> raw output; labels [K]: each component's class."""

    def call(params, y, level, label=None):
        mu = jnp.asarray(means, y.dtype)[None]
        unit = (slice(None), *(None,) * y.ndim)  # [B] as [B, 1, ...]
        a, b = (s[unit] for s in scales(name, tell(level)))
        y = y[:, None]
        var = jnp.square(a * std) + jnp.square(b)
        log_p = -0.5 * jnp.sum(jnp.square(y - a * mu) / var, tuple(range(2, y.ndim)))
        if labels is not None:
            own = jnp.asarray(labels)[None] == label[:, None]
            log_p = jnp.where(own, log_p, -jnp.inf)
        share = jax.nn.softmax(log_p, axis=1)
        share = share.reshape(*share.shape, *(1,) * (y.ndim - 2))
        x = jnp.sum(share * (b * b * mu + std**2 * a * y) / var, axis=1)
        n = jnp.sum(share * b * (y - a * mu) / var, axis=1)
        # n - x and v without the difference of the two, as -mu and a multiple of y.
        flow = (b - a * std**2) * (y - a * mu) / var - mu
        flow = jnp.sum(share * flow, axis=1)
        v = jnp.sum(share * (a * b * (1 - std**2) * y - b * mu) / var, axis=1)
        return {
            "x": x,
            "edm": x,
            "eps": n,
            "ddpm": n,
            "v": v,
            "flow": flow,
            "both": jnp.concatenate([x, n], axis=-1),
        }[name]

    return call


def examples(means, std, num, labels=None, seed=0):
    """A batch of the mixture."""
    rng = np.random.default_rng(seed)
    component = rng.integers(len(means), size=num)
    noise = rng.standard_normal((num, *means.shape[1:]))
    batch = {"image": (means[component] + std * noise).astype(np.float32)}
    if labels is not None:
        batch["label"] = np.asarray(labels)[component].astype(np.int32)
    return batch
