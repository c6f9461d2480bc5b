"""Frechet distance between two Gaussians fitted to data, in float64 on the host.

    d^2 = |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^1/2)

Source: Dowson & Landau 1982; Heusel et al. 2017 (1706.08500) for features of images.
"""

import numpy as np

from pd_jax.metrics._moments import Moments


def frechet_distance(a: Moments | np.ndarray, b: Moments | np.ndarray) -> float:
    """Squared Frechet distance (the "FID" form) of two sets.

    Args:
      a, b: examples [N, ...], or their Moments. Moments keep what is costly to them:
        give the same object again for a reference that many sets are held against.

    Raises:
      ValueError: for sets of different dimensions, of one example, or not finite.

    The product of two covariances is not symmetric, and its square root is unstable
    where they are singular (pixels that never change). With any factors A = L L^T and
    B = M M^T, its trace is also the sum of the singular values of L^T M, which are
    never below 0.
    """
    a, b = (s if isinstance(s, Moments) else Moments.of(s) for s in (a, b))
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"{a.mean.size} and {b.mean.size} dimensions: both sets need the same"
        )
    spread = a.spread + b.spread
    shift = np.sum(np.square(a.mean - b.mean))
    if not np.isfinite(spread + shift):
        raise ValueError("a set holds values that are not finite")
    cross = np.linalg.svd(a.factor.T @ b.factor, compute_uv=False).sum()
    return max(0.0, float(shift + spread - 2.0 * cross))


def signed_sums(x: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Vectors [N, D] as at most `most` values each, so that distances stay in the mean.

    Where D is larger, values are dealt out at random to as many sums, each value with a
    random sign: in the mean over deals, a squared length is that of the sums. The deal
    is a function of D, `most` and `seed`. Vectors that are short already come back.

    Source: the count sketch of Charikar, Chen & Farach-Colton 2002.
    """
    dimensions = x.shape[1]
    if dimensions <= most:
        return x
    rng = np.random.default_rng((seed, dimensions, most))
    order, signs = rng.permutation(dimensions), rng.choice((-1.0, 1.0), dimensions)
    dealt = np.zeros((len(x), -(-dimensions // most) * most))
    dealt[:, :dimensions] = (x * signs)[:, order]
    return dealt.reshape(len(x), -1, most).sum(axis=1)


def shrink(images: np.ndarray, side: int = 16) -> np.ndarray:
    """Averages areas of images [N, H, W, C] until no side has over `side` pixels.

    Keeps the Frechet distance on the pixels of larger images affordable: its cost grows
    with the cube of their number. A side of n pixels becomes one of ceil(n / f) with
    f = ceil(n / side), so that a pixel is the mean of f x f where f divides n, and else
    of areas a little smaller, pixels at their borders counted in part. Images that are
    small already come back as they are; others as floating point, in their own range.
    """
    height, width = (_areas(n, side) for n in images.shape[1:3])
    if len(height) == images.shape[1] and len(width) == images.shape[2]:
        return images
    count, _, columns, channels = images.shape
    rows = np.matmul(height, images.reshape(count, -1, columns * channels))
    return np.matmul(width, rows.reshape(count, len(height), columns, channels))


def _areas(size: int, side: int) -> np.ndarray:
    """Weights [places, size] of `size` pixels in the mean over each of the places."""
    places = -(-size // -(-size // side))
    edges = np.linspace(0.0, size, places + 1)[:, None]
    covered = np.clip(edges - np.arange(size)[None], 0.0, 1.0)
    return (np.diff(covered, axis=0) * (places / size)).astype(np.float32)
