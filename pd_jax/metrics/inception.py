"""The Inception network of the FID, in JAX: features and logits of images.

The network is the TensorFlow graph of 2015-12-05 whose last pool is what published FIDs
are computed from (Heusel et al. 2017, 1706.08500). It differs from the InceptionV3 of
today's libraries (Szegedy et al. 2015, 1512.00567) in three places, all kept: average
pools leave the padding out of their count, the pool branch of the last block takes a
maximum, and there are 1008 classes. Weights come from a file that you give.
"""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pd_jax.runtime.errors import Refused
from pd_jax.storage import files

SIDE = 299  # pixels that the network sees
CLASSES = 1008
BATCH_NORM_EPS = 1e-3
# Accelerators multiply float32 in fewer bits by default, which moves an FID.
PRECISION = jax.lax.Precision.HIGHEST


class Conv(NamedTuple):
    """A convolution without bias, batch norm and ReLU; "SAME" or "VALID" padding."""

    name: str
    channels: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


class Pool(NamedTuple):
    """A 3x3 pool; the average counts no padding."""

    kind: str
    stride: int = 1
    padding: str = "SAME"


class Split(NamedTuple):
    """Branches on one input, concatenated; `name` goes before the names inside."""

    name: str
    branches: tuple[tuple, ...]


def _down(name: str, channels: int) -> Conv:
    return Conv(name, channels, (3, 3), 2, "VALID")


AVERAGE, MAX, HALVE = Pool("average"), Pool("max"), Pool("max", 2, "VALID")


def _double3x3(first: int) -> tuple:
    return (
        Conv("branch3x3dbl_1", first),
        Conv("branch3x3dbl_2", 96, (3, 3)),
    )


def _block_a(name: str, pool_channels: int) -> Split:
    return Split(
        name,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
            (*_double3x3(64), Conv("branch3x3dbl_3", 96, (3, 3))),
            (AVERAGE, Conv("branch_pool", pool_channels)),
        ),
    )


def _block_b(name: str) -> Split:
    return Split(
        name,
        (
            (_down("branch3x3", 384),),
            (*_double3x3(64), _down("branch3x3dbl_3", 96)),
            (HALVE,),
        ),
    )


def _block_c(name: str, inner: int) -> Split:
    wide, tall = (1, 7), (7, 1)
    return Split(
        name,
        (
            (Conv("branch1x1", 192),),
            (
                Conv("branch7x7_1", inner),
                Conv("branch7x7_2", inner, wide),
                Conv("branch7x7_3", 192, tall),
            ),
            (
                Conv("branch7x7dbl_1", inner),
                Conv("branch7x7dbl_2", inner, tall),
                Conv("branch7x7dbl_3", inner, wide),
                Conv("branch7x7dbl_4", inner, tall),
                Conv("branch7x7dbl_5", 192, wide),
            ),
            (AVERAGE, Conv("branch_pool", 192)),
        ),
    )


def _block_d(name: str) -> Split:
    return Split(
        name,
        (
            (Conv("branch3x3_1", 192), _down("branch3x3_2", 320)),
            (
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                _down("branch7x7x3_4", 192),
            ),
            (HALVE,),
        ),
    )


def _block_e(name: str, pool: Pool) -> Split:
    def fork(first: str, second: str) -> Split:
        return Split("", ((Conv(first, 384, (1, 3)),), (Conv(second, 384, (3, 1)),)))

    return Split(
        name,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), fork("branch3x3_2a", "branch3x3_2b")),
            (
                Conv("branch3x3dbl_1", 448),
                Conv("branch3x3dbl_2", 384, (3, 3)),
                fork("branch3x3dbl_3a", "branch3x3dbl_3b"),
            ),
            (pool, Conv("branch_pool", 192)),
        ),
    )


NETWORK = (  # side and channels after each line: 299 x 3 comes in
    _down("Conv2d_1a_3x3", 32),  # 149 x 32
    Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),  # 147 x 32
    Conv("Conv2d_2b_3x3", 64, (3, 3)),  # 147 x 64
    HALVE,  # 73 x 64
    Conv("Conv2d_3b_1x1", 80),  # 73 x 80
    Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),  # 71 x 192
    HALVE,  # 35 x 192
    _block_a("Mixed_5b.", 32),  # 35 x 256
    _block_a("Mixed_5c.", 64),  # 35 x 288
    _block_a("Mixed_5d.", 64),  # 35 x 288
    _block_b("Mixed_6a."),  # 17 x 768
    _block_c("Mixed_6b.", 128),  # 17 x 768
    _block_c("Mixed_6c.", 160),  # 17 x 768
    _block_c("Mixed_6d.", 160),  # 17 x 768
    _block_c("Mixed_6e.", 192),  # 17 x 768
    _block_d("Mixed_7a."),  # 8 x 1280
    _block_e("Mixed_7b.", AVERAGE),  # 8 x 2048
    _block_e("Mixed_7c.", MAX),  # 8 x 2048
)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every weight: kernels [out, in, height, width], as published."""
    sizes: dict[str, tuple[int, ...]] = {}
    channels = _collect(NETWORK, 3, "", sizes)
    return sizes | {"fc.weight": (CLASSES, channels), "fc.bias": (CLASSES,)}


def _collect(layers: tuple, channels: int, prefix: str, sizes: dict) -> int:
    """Adds the shapes of `layers` to `found`; returns the channels they put out."""
    for layer in layers:
        if isinstance(layer, Conv):
            name = prefix + layer.name
            sizes[f"{name}.conv.weight"] = (layer.channels, channels, *layer.size)
            for part in ("weight", "bias", "running_mean", "running_var"):
                sizes[f"{name}.bn.{part}"] = (layer.channels,)
            channels = layer.channels
        elif isinstance(layer, Split):
            channels = sum(
                _collect(branch, channels, prefix + layer.name, sizes)
                for branch in layer.branches
            )
    return channels


def load_weights(path: str | pathlib.Path) -> dict[str, jax.Array]:
    """The published weights, from a file that is only read: none of its code runs.

    Args:
      path: the `.pth` of pytorch-fid or torch-fidelity (a torch state dict, in either
        of torch's formats), or a `.npz` with the same names; `shapes()` lists them,
        and `num_batches_tracked` is ignored.

    Returns:
      Name -> float32 array, as `features` takes them.

    Raises:
      Refused: for a file that is missing, damaged, or asks for code to run, and for
        weights that are missing, unknown, misshapen or not finite.
    """
    path = pathlib.Path(path)
    read = files.read_npz if path.suffix == ".npz" else files.read_state_dict
    weights = {
        name: array
        for name, array in read(path).items()
        if not name.endswith(".num_batches_tracked")
    }
    wanted = shapes()
    wrong = [f"{name} is missing" for name in wanted if name not in weights]
    wrong += [f"{name} is unknown" for name in weights if name not in wanted]
    for name in wanted.keys() & weights.keys():
        if weights[name].shape != wanted[name]:
            wrong.append(f"{name} is {weights[name].shape}, not {wanted[name]}")
        elif weights[name].dtype.kind != "f" or not np.all(np.isfinite(weights[name])):
            wrong.append(f"{name} has values that are no finite floating point")
    if wrong:
        shown = "; ".join(sorted(wrong)[:8]) + ("; ..." if len(wrong) > 8 else "")
        raise Refused(
            f"{path}: not the weights of the FID's Inception network "
            f"(pt_inception-2015-12-05): {len(wrong)} of {len(wanted)} weights are "
            f"wrong: {shown}"
        )
    return {name: jnp.asarray(weights[name], jnp.float32) for name in wanted}


def features(params: Mapping[str, jax.Array], images: jax.Array) -> dict:
    """What the network makes of images; pure, to be jitted by the caller.

    Nothing mixes examples: jitted with `images` sharded over devices along the batch
    and `params` replicated, every device works on its own.

    Args:
      params: of `load_weights`, or arrays of the names and shapes of `shapes()`.
      images: uint8 [B, H, W, C] in 0..255, C = 3 or 1 (grey, repeated), any H and W.

    Returns:
      "pool" [B, 2048], the input of FID, KID, precision and recall; "logits" [B, 1008],
      `pool @ fc.weight.T + fc.bias`, as PyTorch ports name it. The Inception Score of
      the original TensorFlow code (and "logits_unbiased" of torch-fidelity) leaves the
      bias out: subtract `params["fc.bias"]` for it. Both float32.

    Raises:
      Refused: for another dtype or shape.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise Refused(
            f"images are {images.dtype} {images.shape}; Inception takes uint8 in "
            "0..255, [B, H, W, C], with C = 3 or 1"
        )
    x = (resize(images) - 128.0) / 128.0
    x = jnp.broadcast_to(x, (*x.shape[:3], 3))
    pool = jnp.mean(_apply(NETWORK, x, "", params), axis=(1, 2))
    logits = jnp.matmul(pool, params["fc.weight"].T, precision=PRECISION)
    return {"pool": pool, "logits": logits + params["fc.bias"][None]}


def resize(images: jax.Array) -> jax.Array:
    """Bilinear resize [B, H, W, C] -> float32 [B, 299, 299, C] as in TensorFlow 1.

    Output pixel i is read at i * size / 299, between two input pixels: no half-pixel
    centres, corners not aligned, and no smoothing where the image gets smaller. FIDs
    made with another resize cannot be compared (Parmar et al. 2021, 2104.11222).
    """
    x = images.astype(jnp.float32)
    for axis in (2, 1):
        size = x.shape[axis]
        place = np.arange(SIDE, dtype=np.float32) * (np.float32(size) / SIDE)
        low = place.astype(np.int32)
        high = np.minimum(low + 1, size - 1)
        part = np.expand_dims(place - low, [a for a in range(4) if a != axis])
        below, above = jnp.take(x, low, axis), jnp.take(x, high, axis)
        x = below + (above - below) * part
    return x


def _apply(layers: tuple, x: jax.Array, prefix: str, params: Mapping) -> jax.Array:
    for layer in layers:
        if isinstance(layer, Conv):
            x = _conv(layer, x, prefix + layer.name, params)
        elif isinstance(layer, Pool):
            strides = (layer.stride, layer.stride)
            if layer.kind == "max":
                x = nn.max_pool(x, (3, 3), strides, layer.padding)
            else:
                x = nn.avg_pool(x, (3, 3), strides, layer.padding, False)
        else:
            inside = prefix + layer.name
            branches = [_apply(b, x, inside, params) for b in layer.branches]
            x = jnp.concatenate(branches, axis=-1)
    return x


def _conv(layer: Conv, x: jax.Array, name: str, params: Mapping) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x,
        params[f"{name}.conv.weight"],
        (layer.stride, layer.stride),
        layer.padding,
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=PRECISION,
    )
    variance = params[f"{name}.bn.running_var"]
    scale = params[f"{name}.bn.weight"] / jnp.sqrt(variance + BATCH_NORM_EPS)
    shift = params[f"{name}.bn.bias"] - params[f"{name}.bn.running_mean"] * scale
    return jax.nn.relu(x * scale[None, None, None] + shift[None, None, None])
