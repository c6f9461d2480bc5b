"""Files of others, read without running any code and without trusting any number.

Whatever a file says of its own size is held against the bytes that are there before
memory is asked for, and what cannot be read is one ValueError.
"""

import io
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Collection
from typing import BinaryIO, ClassVar, NamedTuple

import flax.serialization
import msgpack
import numpy as np
from etils import epath

from pd_jax.runtime.errors import Refused

MOST_BYTES = 2**30  # of an archive's arrays, where their reader names no other
MOST_JSON_BYTES = 2**26
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
ZIP = b"PK\x03\x04"
# torch before 1.6: two pickled numbers, a magic one and the protocol 1001.
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}
# What torch.save writes, and older protocols of it; numbers, names and containers.
OPCODES = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE),
    *(pickle.BINPERSID, pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET),
    *(pickle.LONG_BINGET, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.SETITEM),
    pickle.SETITEMS,
)


def existing(path: str | pathlib.Path) -> pathlib.Path:
    """The path, or Refused where no file is there."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise Refused(f"{path}: no such file")
    return path


def read_npz(
    path: str | pathlib.Path,
    wanted: Collection[str] | None = None,
    most_bytes: int = MOST_BYTES,
) -> dict[str, np.ndarray]:
    """Arrays of a `.npz` archive.

    Args:
      path: the file.
      wanted: names to read, where they are there; all where None.
      most_bytes: what they may take in memory: a few bytes can unpack to any size.

    Returns:
      Name -> array.

    Raises:
      Refused: for a file that is missing, damaged, or unpacks to more.
    """
    path = existing(path)
    with open(path, "rb") as file:
        return _npz(file, str(path), wanted, most_bytes)


def npz_names(path: str | pathlib.Path) -> list[str]:
    """Names of a readable `.npz` archive's arrays."""
    with zipfile.ZipFile(path) as archive:
        return [n.removesuffix(".npy") for n in archive.namelist()]


def parse_npz(content: bytes, name: str) -> dict[str, np.ndarray]:
    """As `read_npz`, of a file's content; errors call it `name`."""
    return _npz(io.BytesIO(content), name, None, MOST_BYTES)


def parse_npy(content: bytes, name: str) -> np.ndarray:
    """An array from a `.npy` file's content; Refused calls it `name`."""
    try:
        return _npy(io.BytesIO(content), len(content))
    except Exception as error:
        raise Refused(f"{name}: not a readable .npy file ({brief(error)})") from error


def read_json(path: epath.Path) -> dict:
    """A JSON object; Refused for anything else, OSError where it cannot be read."""
    try:
        if path.stat().length > MOST_JSON_BYTES:
            raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is damaged ({brief(error)})") from error
    if not isinstance(content, dict):
        raise Refused(f"{path} is damaged (not a JSON object)")
    return content


def parse_msgpack(content: bytes) -> dict:
    """A tree of arrays by name, as Flax writes it; ValueError for anything else."""
    try:
        # msgpack makes room for as many elements as a list claims to have, in each of
        # a thousand nested ones; Flax has next to none, so a first reading sets limits.
        msgpack.unpackb(
            content, ext_hook=_check_array, max_array_len=1024, strict_map_key=True
        )
        tree = flax.serialization.msgpack_restore(content)
    except Exception as error:  # damage can surface anywhere
        raise ValueError(f"not Flax msgpack ({brief(error)})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"not Flax msgpack of a dictionary: {type(tree).__name__}")
    return tree


def brief(error: Exception) -> str:
    """An error's kind and the start of its first line, for a message of one's own."""
    text = str(error).partition("\n")[0].partition(" [tensorstore_spec")[0][:300]
    # Those that say what is meant; other kinds are half of the message.
    plain = type(error) in (ValueError, OSError, Refused)
    return text if plain and text else f"{type(error).__name__}: {text}"


def _check_array(code: int, content: bytes) -> None:
    if code not in (1, 3):  # flax.serialization: an array, a scalar
        raise ValueError(f"it holds an object of kind {code}, not an array")
    msgpack.unpackb(content, raw=True, max_array_len=32, max_map_len=0, max_ext_len=0)


def _npz(
    file: BinaryIO, name: str, wanted: Collection[str] | None, most_bytes: int
) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {
                member.filename[:-4]: member
                for member in archive.infolist()
                if member.filename.endswith(".npy")
                and (wanted is None or member.filename[:-4] in wanted)
            }
            size = sum(member.file_size for member in members.values())
            if size > most_bytes:
                raise ValueError(
                    f"its arrays take {size:.3g} bytes, of at most {most_bytes:.3g}"
                )
            arrays = {}
            for key, member in members.items():
                with archive.open(member) as part:
                    arrays[key] = _npy(part, member.file_size)
            return arrays
    except Exception as error:  # damage can surface anywhere in zipfile, zlib, NumPy
        raise Refused(
            f"{name}: not a readable .npz archive ({brief(error)})"
        ) from error


def _npy(file: BinaryIO, size: int) -> np.ndarray:
    """The array in `size` bytes, which its header must agree to before room is made."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"its .npy format is {version}")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read (allow_pickle)")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"{dtype} {shape} are not {size - file.tell()} bytes")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_state_dict(path: str | pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors of a torch state dict, in the zip format or in the one before it.

    Such a file is a pickle, which could have any function called. Here it may name the
    three things that a state dict is made of (an ordered dict, a tensor, a float32 or
    int64 storage), each of which stands for something made in this module.

    Raises:
      Refused: for a file that is missing, damaged or of another format, or names
        anything else, which is not called then.
    """
    path = existing(path)
    with open(path, "rb") as file:
        head = file.read(len(LEGACY))
    if not head.startswith(ZIP) and head != LEGACY:
        raise Refused(
            f"{path}: not a torch state dict (a .pth file of torch.save), nor a .npz"
        )
    try:
        return _read_zip(path) if head.startswith(ZIP) else _read_legacy(path)
    except Exception as error:  # a damaged pickle can raise anything
        raise Refused(f"{path}: not a readable state dict ({brief(error)})") from error


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
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError("a tensor does not fit: its numbers are not whole")
        last = self.offset + sum(
            (n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)
        )
        if not (
            flat.size == self.storage.size
            and 0 < math.prod(self.shape) <= flat.size
            and last < flat.size
        ):
            raise ValueError(f"{self} does not fit into {flat.size} elements")
        strides = [s * flat.itemsize for s in self.strides]
        start = flat[self.offset :]
        return np.lib.stride_tricks.as_strided(
            start, self.shape, strides, writeable=False
        )


class _Names(dict):
    """A dict by name alone: to hash other keys could take a file's own idea of time."""

    def __setitem__(self, key: str, value: object) -> None:
        if type(key) is not str:
            raise ValueError(f"a {type(key).__name__} stands where a name should")
        super().__setitem__(key, value)


# The Python class, not the C one: its memo is a dict, so that a few damaged bytes
# cannot ask for gigabytes of it.
class _Unpickler(pickle._Unpickler):
    """Knows the parts of a state dict, and nothing else."""

    def find_class(self, module: str, name: str) -> Callable | str:
        # Made anew: what a file does to them ends with the file.
        if (module, name) == ("collections", "OrderedDict"):
            return lambda: _Names()
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
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
            raise ValueError("it has a storage of an unknown kind")
        return _Storage(key, dtype, size)

    def _push_dict(self) -> None:
        self.append(_Names())

    def _pass_over(self) -> None:
        self.stack.pop()  # attributes of a dict, which torch notes versions in

    dispatch: ClassVar = {
        **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES},
        pickle.EMPTY_DICT[0]: _push_dict,
        pickle.BUILD[0]: _pass_over,
    }


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
        if type(key) is not str:
            raise ValueError(f"a {type(key).__name__} stands where a name should")
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
