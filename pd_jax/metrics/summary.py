"""What is kept of a set of images, to compare it with another set."""

import dataclasses
import io
from collections.abc import Callable

import numpy as np

from pd_jax.metrics.frechet import frechet_distance, shrink
from pd_jax.metrics.kernel import kernel_distance
from pd_jax.metrics.manifold import precision_recall
from pd_jax.metrics.moments import Moments, RunningMoments
from pd_jax.metrics.score import inception_score
from pd_jax.storage import files

SIDE = 16  # pixels a side at which the Frechet distance of pixels is taken, at most
KEPT = 10_000  # examples whose features are kept for metrics that are no moments


class Summary:
    """Figures of a set of examples, fed batch by batch.

    Attributes:
      num: examples so far.
    """

    def __init__(self, features: Callable | None = None):
        """Begins empty.

        Args:
          features: uint8 images [B, H, W, C] to {"pool" [B, D], "logits" [B, K]}; None
            where no weights are at hand.
        """
        self.num = 0
        self._features = features
        self._pixels, self._pool = RunningMoments(), RunningMoments()
        self._kept, self._logits = [], []

    def add(self, x: np.ndarray) -> None:
        """Adds examples [B, ...]; images in [-1, 1]."""
        if x.ndim == 4 and self._features is not None:
            found = self._features(to_uint8(x))
            self._pool.add(found["pool"])
            self._kept.append(found["pool"][: max(0, KEPT - self.num)])
            self._logits.append(found["logits"])
        small = shrink(x, SIDE) if x.ndim == 4 else x
        self._pixels.add(small.reshape(len(x), -1))
        self.num += len(x)

    @property
    def pixels(self) -> Moments:
        """Moments of the examples' raw values, images area-averaged to 16 pixels."""
        return self._pixels.moments()

    @property
    def pool(self) -> Moments:
        """Moments of the pooled features."""
        return self._pool.moments()

    @property
    def kept(self) -> np.ndarray:
        """Pooled features of the first examples, [N, D]; N = 0 without a network."""
        return np.concatenate(self._kept) if self._kept else np.zeros((0, 1))

    def compare(self, reference: "Reference") -> dict[str, float]:
        """Metrics of these examples as an imitation of the reference."""
        metrics = {"frechet_pixels": frechet_distance(self.pixels, reference.pixels)}
        if self._features is not None:
            kept = self.kept
            precision, recall = precision_recall(reference.kept, kept)
            metrics |= {
                "fid": frechet_distance(self.pool, reference.pool),
                "inception_score": inception_score(np.concatenate(self._logits)),
                "kid": kernel_distance(kept, reference.kept),
                "precision": precision,
                "recall": recall,
            }
        return metrics


@dataclasses.dataclass(eq=False)
class Reference:
    """The figures that a summary is compared with, and their file.

    Attributes:
      num: examples that they were made from.
      pixels, pool: moments; pool is None without a network.
      kept: pooled features [N, D].
    """

    num: int
    pixels: Moments
    pool: Moments | None
    kept: np.ndarray

    @classmethod
    def of(cls, summary: Summary) -> "Reference":
        """A finished summary as a reference."""
        pool = summary.pool if len(summary.kept) else None
        return cls(summary.num, summary.pixels, pool, summary.kept)

    def to_bytes(self) -> bytes:
        """As an .npz archive."""
        file = io.BytesIO()
        pool = {}
        if self.pool is not None:
            pool = {"mu": self.pool.mean, "sigma": self.pool.covariance}
        np.savez(
            file,
            num=self.num,
            pixels_mu=self.pixels.mean,
            pixels_sigma=self.pixels.covariance,
            kept=self.kept,
            **pool,
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Reference":
        """Reads what `to_bytes` made; ValueError where it is damaged."""
        found = files.parse_npz(content, "reference figures")
        try:
            pool = Moments(found["mu"], found["sigma"]) if "mu" in found else None
            pixels = Moments(found["pixels_mu"], found["pixels_sigma"])
            return cls(int(found["num"]), pixels, pool, found["kept"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"reference figures lack {error}") from error


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Images in [-1, 1] as grey levels 0..255, to the nearest."""
    return np.round((np.clip(x, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
