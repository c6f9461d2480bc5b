"""LPIPS: how different two pictures look, by the features of a trained network.

With f_l(x) the features after the l-th tap of the network, each place's vector of unit
length over its channels, and weights w_l >= 0 of channels,

    d(a, b) = sum_l mean over places of sum_c w_lc (f_lc(a) - f_lc(b))^2

Networks are AlexNet and VGG16, of their convolutions alone. Weights come from a file
that you give.

Source: Zhang et al. 2018 (1801.03924), version 0.1 of its weights; Krizhevsky 2014
(1404.5997); Simonyan & Zisserman 2015 (1409.1556).
"""

import itertools
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from pd_jax.runtime.errors import Refused
from pd_jax.storage import files

# Of channels, of pictures in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# Within the square root, and not beside it: there a place without any feature has no
# gradient at all.
EPS = 1e-10
SMALLEST = 32  # pixels a side that every layer has places of
PRECISION = jax.lax.Precision.HIGHEST


class Perceptual(NamedTuple):
    """Weights of `load_weights`, and the size that smaller pictures are enlarged to."""

    params: dict[str, jax.Array]
    size: int


class Conv(NamedTuple):
    """A convolution with ReLU; a tap takes what comes out."""

    channels: int
    size: int = 3
    stride: int = 1
    padding: int = 1
    tap: bool = False


class Pool(NamedTuple):
    """A maximum over size x size, every second place."""

    size: int


ALEXNET = (
    Conv(64, 11, 4, 2, tap=True),
    Pool(3),
    Conv(192, 5, 1, 2, tap=True),
    Pool(3),
    *(Conv(channels, tap=True) for channels in (384, 256, 256)),
)
VGG16 = (
    *(Conv(64), Conv(64, tap=True), Pool(2)),
    *(Conv(128), Conv(128, tap=True), Pool(2)),
    *(Conv(256), Conv(256), Conv(256, tap=True), Pool(2)),
    *(Conv(512), Conv(512), Conv(512, tap=True), Pool(2)),
    *(Conv(512), Conv(512), Conv(512, tap=True)),
)
NETWORKS = {"AlexNet": ALEXNET, "VGG16": VGG16}


def shapes(network: tuple) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight: kernels [out, in, height, width]."""
    found, taps, before = {}, [], 3
    for i, layer in enumerate(l for l in network if isinstance(l, Conv)):
        found[f"conv{i}.weight"] = (layer.channels, before, layer.size, layer.size)
        found[f"conv{i}.bias"] = (layer.channels,)
        before = layer.channels
        taps += [layer.channels] * layer.tap
    return found | {f"lin{i}.weight": (1, c, 1, 1) for i, c in enumerate(taps)}


def load_weights(path: str | pathlib.Path) -> dict[str, jax.Array]:
    """Weights of LPIPS, from a file that is only read: none of its code runs.

    Args:
      path: a `.safetensors`, `.npz`, or torch state dict; of AlexNet or VGG16, named
        "conv0.weight", "conv0.bias", ..., "lin0.weight", ... as `shapes` lists; or as
        torchvision ("features.0.weight") and the authors ("lin0.model.1.weight") do.

    Returns:
      Name -> float32 array, as `distance` takes them.

    Raises:
      Refused: for a file that is missing, damaged, or asks for code to run, and for
        weights that are missing, unknown, misshapen, negative in a "lin", or not
        finite.
    """
    path = pathlib.Path(path).expanduser()
    weights = _renamed(_read(path))
    fits = [n for n, net in NETWORKS.items() if weights.keys() == shapes(net).keys()]
    if not fits:
        wanted = ", ".join(f"{n} ({len(shapes(net))})" for n, net in NETWORKS.items())
        shown = ", ".join(sorted(weights)[:6])
        raise Refused(
            f"{path}: not the weights of LPIPS: it has {len(weights)} arrays, such as "
            f"{shown}; those of {wanted} are conv0.weight, conv0.bias, ..., "
            "lin0.weight, ..."
        )
    wrong = []
    for name, shape in shapes(NETWORKS[fits[0]]).items():
        array = weights[name]
        if array.shape != shape:
            wrong.append(f"{name} is {array.shape}, not {shape}")
        elif array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            wrong.append(f"{name} has values that are no finite floating point")
        elif name.startswith("lin") and np.min(array) < 0:
            wrong.append(f"{name} has negative values")
    if wrong:
        raise Refused(f"{path}: not the weights of LPIPS: {'; '.join(wrong[:8])}")
    return {name: jnp.asarray(array, jnp.float32) for name, array in weights.items()}


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return (files.read_npz if path.suffix == ".npz" else files.read_state_dict)(
            path
        )
    files.existing(path)
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # damage can surface anywhere
        raise Refused(
            f"{path}: not a safetensors file ({files.brief(error)})"
        ) from error


def _renamed(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under this module's names, from those of torchvision and of the authors."""
    numbers = sorted({int(m[1]) for n in weights if (m := _OTHERS.fullmatch(n))})
    found = {}
    for name, array in weights.items():
        if match := _OTHERS.fullmatch(name):
            name = f"conv{numbers.index(int(match[1]))}.{match[2]}"
        name = re.sub(r"^(lin\d)\.model\.1\.weight$", r"\1.weight", name)
        if not re.match(r"(classifier|scaling_layer)\.", name):
            found[name] = array
    return found


_OTHERS = re.compile(r"(?:net\.slice\d\.|features\.)(\d+)\.(weight|bias)")


def distance(params: Mapping[str, jax.Array], a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS of pictures, [B]; pure, with a finite gradient everywhere.

    Args:
      params: of `load_weights`.
      a, b: [B, H, W, 3] in [-1, 1], of one shape, 32 x 32 and more; as they are.

    Raises:
      Refused: for other shapes.
    """
    if a.shape != b.shape or a.ndim != 4 or a.shape[3] != 3:
        raise Refused(f"pictures are {a.shape} and {b.shape}: both [B, H, W, 3]")
    if min(a.shape[1:3]) < SMALLEST:
        raise Refused(
            f"pictures are {a.shape[1]} x {a.shape[2]}: LPIPS takes {SMALLEST} x "
            f"{SMALLEST} and more; resize them, as `compare` does"
        )
    taps = _taps(params, jnp.concatenate([a, b]).astype(jnp.float32))
    total = jnp.zeros(len(a), jnp.float32)
    for i, features in enumerate(taps):
        square = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
        features = features * jax.lax.rsqrt(square + EPS)
        one, other = jnp.split(features, 2)
        weight = params[f"lin{i}.weight"].reshape(1, 1, 1, -1)
        apart = jnp.sum(weight * jnp.square(one - other), axis=-1)
        total += jnp.mean(apart, axis=(1, 2))
    return total


def _taps(params: Mapping[str, jax.Array], x: jax.Array) -> list[jax.Array]:
    """Features after each tap, [B, h, w, c]."""
    x = (x - jnp.array(SHIFT)[None, None, None]) / jnp.array(SCALE)[None, None, None]
    network = VGG16 if "conv5.weight" in params else ALEXNET
    number, taps = itertools.count(), []
    for layer in network:
        if isinstance(layer, Pool):
            x = nn.max_pool(x, (layer.size, layer.size), (2, 2))
            continue
        i = next(number)
        x = jax.lax.conv_general_dilated(
            x,
            params[f"conv{i}.weight"],
            (layer.stride, layer.stride),
            [(layer.padding, layer.padding)] * 2,
            dimension_numbers=("NHWC", "OIHW", "NHWC"),
            precision=PRECISION,
        )
        x = jax.nn.relu(x + params[f"conv{i}.bias"][None, None, None])
        taps += [x] * layer.tap
    return taps


def compare(
    params: Mapping[str, jax.Array], a: jax.Array, b: jax.Array, size: int
) -> jax.Array:
    """`distance` of pictures of any size: smaller ones than `size` are enlarged, [B].

    Args:
      params: of `load_weights`.
      a, b: [B, H, W, C] in [-1, 1], C = 3 or 1 (grey, repeated).
      size: the least height and width; bilinear.
    """

    def enlarged(x):
        x = jnp.broadcast_to(x, (*x.shape[:3], 3)).astype(jnp.float32)
        sides = [max(side, size) for side in x.shape[1:3]]
        return jax.image.resize(x, (x.shape[0], *sides, 3), "bilinear")

    return distance(params, enlarged(a), enlarged(b))
