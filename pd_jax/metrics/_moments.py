"""Means and covariances in float64 on the host: at once, by batches, from files."""

import dataclasses
import functools
import io
import pathlib

import numpy as np
from etils import epath

from pd_jax.runtime.errors import Refused
from pd_jax.storage import files
from pd_jax.storage.writers import write_whole


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean [D] and covariance [D, D] of a set of vectors, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, data: np.ndarray) -> "Moments":
        """Moments of examples [N, ...], flattened; N >= 2, unbiased covariance."""
        if 2 <= len(data) < np.size(data) // len(data):
            return _FewMoments.of(data)
        running = RunningMoments()
        running.add(data)
        return running.moments()

    @property
    def spread(self) -> float:
        """The trace of the covariance."""
        return float(np.trace(self.covariance))

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """L [D, rank] with L L^T the covariance: Cholesky with pivots, computed once.

        Pivots below D eps times the largest variance are rounding, and left out.
        """
        from scipy.linalg.lapack import dpstrf  # late: it takes longer than NumPy

        lower, pivots, rank, _ = dpstrf(self.covariance, lower=1)
        factor = np.empty((len(lower), rank))
        factor[pivots - 1] = np.tril(lower)[:, :rank]
        return factor


class _FewMoments(Moments):
    """Moments of fewer examples than values: no more memory than the examples."""

    def __init__(self, mean: np.ndarray, factor: np.ndarray):
        """Of a mean [D], and L [D, N] with L L^T the covariance."""
        object.__setattr__(self, "mean", mean)
        self.__dict__["factor"] = factor

    @classmethod
    def of(cls, data: np.ndarray) -> "Moments":
        """As `Moments.of`."""
        flat = np.asarray(data, np.float64).reshape(len(data), -1)
        mean = flat.mean(axis=0)
        return cls(mean, (flat - mean).T / np.sqrt(len(flat) - 1))

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], made when it is asked for."""
        return self.factor @ self.factor.T

    @property
    def spread(self) -> float:
        """The trace of the covariance."""
        return float(np.sum(np.square(self.factor)))


class RunningMoments:
    """Moments of examples that come in batches, in memory for one batch and [D, D].

    Batches are merged by the update of Chan, Golub & LeVeque 1979 (STAN-CS-79-773),
    about the mean of the first batch: an offset common to all examples then costs no
    digits.
    """

    def __init__(self):
        self.count = 0
        self._origin = self._mean = self._scatter = np.zeros(())

    def add(self, batch: np.ndarray) -> None:
        """Counts in examples [N, ...], flattened; ValueError for other dimensions."""
        if not len(batch):
            return
        flat = np.asarray(batch, np.float64).reshape(len(batch), -1)
        if not self.count:
            dimensions = flat.shape[1]
            self._origin = flat.mean(axis=0)
            self._mean = np.zeros(dimensions)
            self._scatter = np.zeros((dimensions, dimensions))
        if flat.shape[1] != self._mean.size:
            raise ValueError(
                f"examples of {flat.shape[1]} dimensions after those of "
                f"{self._mean.size}: all need the same"
            )
        flat = flat - self._origin
        mean = flat.mean(axis=0)
        flat -= mean
        total = self.count + len(flat)
        shift = mean - self._mean
        self._scatter += flat.T @ flat
        self._scatter += np.outer(shift, shift * (self.count * len(flat) / total))
        self._mean += shift * (len(flat) / total)
        self.count = total

    def moments(self) -> Moments:
        """Moments of all examples so far, unbiased covariance; ValueError below 2."""
        if self.count < 2:
            raise ValueError(f"{self.count} examples: a covariance needs at least 2")
        return Moments(self._origin + self._mean, self._scatter / (self.count - 1))


def save_statistics(path: str | pathlib.Path, moments: Moments) -> None:
    """Writes `mu` [D] and `sigma` [D, D], as EDM and pytorch-fid name them.

    The file is there whole or not at all.

    Raises:
      Refused: for a path that does not end in .npz.
    """
    path = epath.Path(path)
    if path.suffix != ".npz":
        raise Refused(f"{path}: statistics are saved as .npz")
    file = io.BytesIO()
    np.savez(file, mu=moments.mean, sigma=moments.covariance)
    write_whole(path, file.getvalue())


def load_statistics(path: str | pathlib.Path) -> Moments:
    """Moments from a `.npz` with `mu` [D] and `sigma` [D, D].

    Raises:
      Refused: for a file that is missing or damaged, lacks one of the two, or holds
        other shapes, values that are no finite numbers, or a sigma not symmetric.
    """
    arrays = files.read_npz(path, ("mu", "sigma"))
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise Refused(
                f'{path}: no array "{name}"; statistics have mu and sigma, this file '
                f"has: {', '.join(files.npz_names(path))}"
            )
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != (mu.size, mu.size):
        raise Refused(
            f"{path}: mu is {mu.shape} and sigma {sigma.shape}; they are [D] and [D, D]"
        )
    for name, array in (("mu", mu), ("sigma", sigma)):
        if array.dtype.kind != "f" or not np.all(np.isfinite(array)):
            raise Refused(f'{path}: "{name}" holds values that are no finite numbers')
    if not np.allclose(sigma, sigma.T):
        raise Refused(f'{path}: "sigma" is not symmetric, as a covariance is')
    return Moments(mu.astype(np.float64), sigma.astype(np.float64))
