"""Arrays by name, read from files without running any code that they hold."""

import collections
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ZIP = b"PK\x03\x04"
# torch before 1.6: two pickled numbers, a magic one and the protocol 1001.
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


def read_npz(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` archive; ValueError if there is none or it is damaged."""
    path = existing(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # damage can surface anywhere in zipfile, zlib, NumPy
        raise ValueError(f"{path}: not a readable .npz archive ({error})") from error


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a torch state dict, in the zip format or in the one before it.

    Such a file is a pickle, which could have any function called. Here it may name the
    three things that a state dict is made of (an ordered dict, a tensor, a float32 or
    int64 storage), each of which stands for something made in this module.

    Raises:
      ValueError: for a file that is missing, damaged or of another format, or names
        anything else, which is not called then.
    """
    path = existing(path)
    with open(path, "rb") as file:
        head = file.read(len(LEGACY))
    if not head.startswith(ZIP) and head != LEGACY:
        raise ValueError(
            f"{path}: not a torch state dict (a .pth file of torch.save), nor a .npz"
        )
    try:
        return _read_zip(path) if head.startswith(ZIP) else _read_legacy(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path}: not a readable state dict ({error})") from error


def existing(path: str | pathlib.Path) -> pathlib.Path:
    """The path, or ValueError where no file is there."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return path


class _Storage(NamedTuple):
    """A flat array in the file: its key, NumPy dtype and number of elements."""

    key: str
    dtype: str
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, flat: np.ndarray) -> np.ndarray:
        """The view of `flat`; ValueError unless it lies within the storage."""
        numbers = (self.offset, *self.shape, *self.strides)
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        if not (
            flat.size == self.storage.size
            and all(type(n) is int and n >= 0 for n in numbers)
            and 0 < math.prod(self.shape) <= flat.size
            and last < flat.size
        ):
            raise ValueError(f"{self} does not fit into {flat.size} elements")
        strides = [s * flat.itemsize for s in self.strides]
        start = flat[self.offset :]
        return np.lib.stride_tricks.as_strided(
            start, self.shape, strides, writeable=False
        )


# The Python class, not the C one: its memo is a dict, so that a few damaged bytes
# cannot ask for gigabytes of it.
class _Unpickler(pickle._Unpickler):
    """Knows the parts of a state dict, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable | str:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # Made anew: what a file does to it ends with the file.
            return lambda storage, offset, shape, strides, *_: _Tensor(
                storage, offset, tuple(shape), tuple(strides)
            )
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise ValueError(
            f"it names {module}.{name}, which is no part of a state dict and was not "
            "called"
        )

    def persistent_load(self, pid: tuple) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if (
            kind != "storage"
            or dtype not in STORAGES.values()
            or not (type(key) is str and type(size) is int and size >= 0)
            or view not in ([], [None])
        ):
            raise ValueError(f"unknown storage {pid}")
        return _Storage(key, dtype, size)


def _read_zip(path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members, names = archive.infolist(), archive.namelist()
        # torch stores without compression: nothing unpacks to more than the file.
        if (
            any(m.compress_type != zipfile.ZIP_STORED for m in members)
            or sum(m.file_size for m in members) > path.stat().st_size
        ):
            raise ValueError("its parts are compressed, or larger than the whole")
        roots = [name[:-8] for name in names if name.endswith("data.pkl")]
        if len(roots) != 1:
            raise ValueError("it has no data.pkl, or several")
        root = roots[0]
        if (
            root + "byteorder" in names
            and archive.read(root + "byteorder") != b"little"
        ):
            raise ValueError("its numbers are big-endian")
        tensors = _tensors(io.BytesIO(archive.read(root + "data.pkl")))
        flat = {
            key: np.frombuffer(archive.read(f"{root}data/{key}"), storage.dtype)
            for key, storage in _storages(tensors).items()
        }
    return _arrays(tensors, flat)


def _read_legacy(path: pathlib.Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    file = io.BytesIO(data)
    file.seek(len(LEGACY))
    if not _Unpickler(file).load()["little_endian"]:
        raise ValueError("its numbers are big-endian")
    tensors = _tensors(file)
    storages, flat = _storages(tensors), {}
    # Then a list of keys, and for each of them its length and its elements.
    for key in _Unpickler(file).load():
        size = int(np.frombuffer(file.read(8), "<i8")[0])
        dtype = np.dtype(storages[key].dtype)
        flat[key] = np.frombuffer(data, dtype, size, file.tell())
        file.seek(size * dtype.itemsize, io.SEEK_CUR)
    return _arrays(tensors, flat)


def _tensors(file: io.BytesIO) -> dict[str, _Tensor]:
    state = _Unpickler(file).load()
    if not isinstance(state, dict):
        raise ValueError(f"it holds {type(state).__name__}, not a dict of tensors")
    for name, tensor in state.items():
        if not (isinstance(name, str) and isinstance(tensor, _Tensor)):
            raise ValueError(f"{name!r} is {type(tensor).__name__}, not a tensor")
    return state


def _storages(tensors: dict[str, _Tensor]) -> dict[str, _Storage]:
    return {tensor.storage.key: tensor.storage for tensor in tensors.values()}


def _arrays(tensors: dict[str, _Tensor], flat: dict[str, np.ndarray]) -> dict:
    return {name: t.of(flat[t.storage.key]) for name, t in tensors.items()}
