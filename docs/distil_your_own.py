# %% [markdown]
# # Distil a model of your own
#
# `pd_jax.distil` takes any function with weights that denoises, in one of the usual
# conventions, and batches of data. Here the model is a small flow-matching network for
# handwritten digits of 8x8 pixels, written and trained in plain JAX; it samples in 32
# steps, and its students in 16, 8, 4, 2 and 1.
#
# All of it took 36 s on two CPU cores.

# %%
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
from sklearn.datasets import load_digits

import pd_jax

# %% [markdown]
# ## The model that you have
#
# Data x in [-1, 1], a network u((1-s) x + s n, s) of noisy data and time that predicts
# n - x, and its training.

# %%
images = load_digits().images.astype(np.float32)[..., None] / 8.0 - 1.0


def batches(first):
    """Batches from number `first` on: what a number gives is always the same."""
    for number in itertools.count(first):
        rows = np.random.default_rng(number).integers(len(images), size=128)
        yield images[rows]


def init(key, width=384):
    sizes = {"in": (96, width), "mid0": (width, width), "mid1": (width, width)}
    params = {}
    for name, shape in {**sizes, "out": (width, 64)}.items():
        key, own = jax.random.split(key)
        weights = jax.random.normal(own, shape) / jnp.sqrt(shape[0])
        params[name] = {"weights": weights, "bias": jnp.zeros(shape[1])}
    return params


def apply(params, z, s, label):
    """u(z, s): z [B, 8, 8, 1], s [B] from 0, data, to 1, noise; no labels here."""
    waves = jnp.pi * s[:, None] * jnp.arange(1.0, 17.0)
    h = [z.reshape(z.shape[0], -1), jnp.sin(waves), jnp.cos(waves)]
    h = jnp.concatenate(h, axis=1)
    for name in ("in", "mid0", "mid1"):
        new = jax.nn.swish(h @ params[name]["weights"] + params[name]["bias"])
        h = new + (h if new.shape == h.shape else 0.0)
    h = h @ params["out"]["weights"] + params["out"]["bias"]
    return h.reshape(z.shape)


def train(params, updates=2500):
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, updates))

    def loss(params, x, key):
        keys = jax.random.split(key)
        s = jax.random.uniform(keys[0], x.shape[:1])
        n = jax.random.normal(keys[1], x.shape)
        s_x = s[:, None, None, None]
        u = apply(params, (1.0 - s_x) * x + s_x * n, s, None)
        return jnp.mean(jnp.square(u - (n - x)))

    @jax.jit
    def update(params, state, x, key):
        grads = jax.grad(loss)(params, x, key)
        steps, state = optimizer.update(grads, state)
        return optax.apply_updates(params, steps), state

    state = optimizer.init(params)
    for number, x in zip(range(updates), batches(0)):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, state = update(params, state, x, key)
    return params


params = train(init(jax.random.key(0)))

# %% [markdown]
# ## Its students
#
# The run is that of the command line: metrics, checkpoints, figures and `report.md` are
# in the folder. Stopped and started again, it goes on; run to its end, it is only read.
# Keys are those of section `ladder` of a config, and of other sections in a dict.

# %%
folder = pathlib.Path("runs/distil_your_own")
students = pd_jax.distil(
    apply,
    params,
    batches,
    folder,
    output="flow",  # what the network is called with, and what it means
    start=32,  # the teacher's steps
    end=1,
    updates=300,  # for each student
    learning_rate=1e-3,
    decay="linear",
)
for steps, student in students.items():
    print(steps, {name: round(value, 4) for name, value in student.metrics.items()})

# %% [markdown]
# Samples, the same noise in every row: the students of 16, 8, 4 and 2 steps, and of
# one. A student in a file has all that it takes to sample.

# %%
rows = [student.sample(jax.random.key(0), 16) for student in students.values()]
grid = np.block([[image[..., 0] for image in row] for row in rows])
Image.fromarray(grid.repeat(4, axis=0).repeat(4, axis=1)).save(folder / "students.png")
students[4].save(folder / "student_4.safetensors")
