"""What is kept of a set of images, to compare it with another set."""

import dataclasses
import functools
import io
from collections.abc import Callable

import numpy as np

from pd_jax.metrics._moments import Moments, RunningMoments
from pd_jax.metrics.frechet import shrink, signed_sums
from pd_jax.metrics.manifold import precision_recall
from pd_jax.space import Space, to_uint8
from pd_jax.storage import files
from pd_jax.storage.draws import Draw

SIDE = 16  # pixels a side at which the Frechet distance of pixels is taken, at most
KEPT = 10_000  # examples whose features are kept for metrics that are no moments
VALUES = 1024  # of an example, at which its raw values' covariance is taken, at most


class Summary:
    """Figures of a set of examples, fed batch by batch.

    Attributes:
      num: examples so far.
    """

    def __init__(self, space: Space, features: Callable | None = None):
        """Begins empty.

        Args:
          space: what an example is.
          features: uint8 images [B, H, W, C] to {"pool" [B, D], "logits" [B, K]}; None
            where no weights are at hand, or examples are no pictures.
        """
        self.num, self._space = 0, space
        self._features = features
        self._pixels, self._pool = RunningMoments(), RunningMoments()
        self._pooled, self._logits = Draw(KEPT), []

    def add(self, x: np.ndarray) -> None:
        """Adds examples [B, ...]; images in [-1, 1]."""
        self.add_values(self.values(x))

    def values(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """What is measured of examples [B, ...], [B, D] each: for `add_values`."""
        small = shrink(x, SIDE) if self._space.has_areas else x
        values = {"raw": signed_sums(small.reshape(len(x), -1), VALUES)}
        if self._features is not None:
            values |= self._features(to_uint8(x))
        return values

    def add_values(self, values: dict[str, np.ndarray]) -> None:
        """Adds examples by their `values`, which several summaries may share."""
        if self._features is not None:
            self._pool.add(values["pool"])
            self._pooled.add(values["pool"])
            self._logits.append(values["logits"])
        self._pixels.add(values["raw"])
        self.num += len(values["raw"])

    @property
    def pixels(self) -> Moments:
        """Moments of the examples' raw values, of at most `VALUES` numbers each.

        Images are area-averaged to 16 pixels; of what is larger still there are sums.
        """
        return self._pixels.moments()

    @property
    def pool(self) -> Moments:
        """Moments of the pooled features."""
        return self._pool.moments()

    @property
    def features(self) -> np.ndarray:
        """Pooled features of a draw of examples, [N, D]; N = 0 without a network."""
        return self._pooled.drawn

    @property
    def logits(self) -> np.ndarray:
        """Logits of all examples, [N, K]; there are none without a network."""
        return np.concatenate(self._logits)


@dataclasses.dataclass(eq=False)
class Reference:
    """The figures that a summary is compared with, and their file.

    Attributes:
      num: examples that they were made from.
      pixels, pool: moments; pool is None without a network.
      features: pooled, of a draw of examples, [N, D].
    """

    num: int
    pixels: Moments
    pool: Moments | None
    features: np.ndarray

    @classmethod
    def of(cls, summary: Summary) -> "Reference":
        """A finished summary as a reference."""
        pool = summary.pool if len(summary.features) else None
        return cls(summary.num, summary.pixels, pool, summary.features)

    def to_bytes(self) -> bytes:
        """As an .npz archive."""
        file = io.BytesIO()
        arrays = {
            "num": self.num,
            "pixels_mu": self.pixels.mean,
            "pixels_sigma": self.pixels.covariance,
            "kept": self.features,
        }
        if self.pool is not None:
            arrays |= {"mu": self.pool.mean, "sigma": self.pool.covariance}
        np.savez(file, **arrays)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Reference":
        """Reads what `to_bytes` made; ValueError where it is damaged."""
        arrays = files.parse_npz(content, "reference figures")
        try:
            pool = Moments(arrays["mu"], arrays["sigma"]) if "mu" in arrays else None
            pixels = Moments(arrays["pixels_mu"], arrays["pixels_sigma"])
            return cls(int(arrays["num"]), pixels, pool, arrays["kept"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"reference figures lack {error}") from error


@dataclasses.dataclass(eq=False)
class Comparison:
    """A row's samples and what they are compared with.

    Attributes:
      samples, data: figures of the samples, and of the data.
      first: the first samples [n, ...].
      references: by name, samples from the same noise as the first.
      perceptual: of two arrays of pictures [n, H, W, C], how different they look, [n];
        None without weights.
    """

    samples: Summary
    data: Reference
    first: np.ndarray
    references: dict[str, np.ndarray]
    perceptual: Callable | None = None

    @functools.cached_property
    def precision_recall(self) -> tuple[float, float]:
        """Both, of the features kept; two metrics, computed once."""
        return precision_recall(self.data.features, self.samples.features)
