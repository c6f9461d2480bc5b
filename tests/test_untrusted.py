"""Files that someone made to do harm, or that a disk made: one clean error, no more.

Mutations and bombs are read within a bound of memory. A reader that asks for more than
that, because a file says so, fails here.
"""

import contextlib
import io
import json
import os
import pathlib
import pickle
import resource
import struct
import zipfile

import flax.serialization
import jax
import msgpack
import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pd_jax import data, models
from pd_jax.checkpoint.released import load_released
from pd_jax.data import _folder_cache
from pd_jax.evaluation.rows import check_entry
from pd_jax.metrics import load_statistics
from pd_jax.runs import loading
from pd_jax.storage import files
from pd_jax.storage.writers import JsonLines
from pd_jax.students import bundle

MOST = 2**28  # bytes that reading any of these small files may add
EXAMPLES = 250  # of each test; most make two files


@contextlib.contextmanager
def bounded():
    """Little more memory than there is now; running into that is no clean error."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + MOST
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def survives(read, *arguments):
    """Whether a file is read; where it is not, the error is a clean one."""
    try:
        with bounded():
            read(*arguments)
    except ValueError as error:
        refusal = error
    else:
        return True
    assert len(str(refusal)) < 2000
    while refusal is not None:
        assert not isinstance(refusal, MemoryError), "more memory was asked for"
        refusal = refusal.__cause__ or refusal.__context__
    return False


JUNK = [b"", b"\0", b"\xff", b"\x80", b"\x7f", b"\0" * 16, b"\xff" * 8, b"9" * 12]
JUNK += [b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff", b"\xc9\x7f\xff\xff\xff\1"]
JUNK += [b"\x8a\xff" + b"\x7f" * 255, b"2", b"\x86R", b"[" * 50, b'{"a":', b"1e999"]
EDITS = st.lists(
    st.tuples(
        st.floats(0.0, 1.0),  # where, as a share of the file
        st.integers(0, 12),  # bytes taken out
        st.sampled_from(JUNK) | st.binary(max_size=6),  # and put there
    ),
    min_size=1,
    max_size=4,
)
fuzz = settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)


def edited(content, edits):
    for share, taken, junk in edits:
        at = int(share * len(content))
        content = content[:at] + junk + content[at + taken :]
    return content


def rezipped(content, member, edits):
    """An archive with one member edited, which all its checksums agree to."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(out, "w") as new,
    ):
        names = old.namelist()
        chosen = names[int(member * (len(names) - 1))]
        for name in names:
            part = old.read(name)
            new.writestr(name, edited(part, edits) if name == chosen else part)
    return out.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


WEIGHTS = {"dense": {"kernel": np.ones((2, 3), "f4"), "bias": np.ones(3, "f4")}}
RELEASED = [
    flax.serialization.msgpack_serialize({"ema_params": WEIGHTS, **more})
    for more in ({"num_sample_steps": 4}, {"step": np.int32(3), "state": {"b": [1.0]}})
]


@fuzz
@given(EDITS)
def test_released_weights(place, edits):
    for whole in RELEASED:
        (place / "released").write_bytes(edited(whole, edits))
        survives(load_released, str(place / "released"), WEIGHTS)


def archive(**arrays):
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


STATISTICS = archive(mu=np.zeros(3), sigma=np.eye(3))
IMAGES = archive(images=np.zeros((4, 2, 2, 3), np.uint8), labels=np.arange(4))


@fuzz
@given(EDITS, st.none() | st.floats(0.0, 1.0))
def test_archives(place, edits, member):
    for name, whole in (("statistics.npz", STATISTICS), ("images.npz", IMAGES)):
        if member is None:
            content = edited(whole, edits)
        else:
            content = rezipped(whole, member, edits)
        (place / name).write_bytes(content)
    survives(load_statistics, place / "statistics.npz")
    path = str(place / "images.npz")
    survives(lambda: data.get("npz", path=path, label_key="labels"))


@pytest.fixture(scope="module")
def state_dicts():
    with np.load(pathlib.Path(__file__).parent / "vectors_metrics.npz") as file:
        return {k: file[f"state_dict_{k}"].tobytes() for k in ("zip", "legacy")}


@fuzz
@given(EDITS, st.none() | st.floats(0.0, 1.0))
def test_state_dicts(place, state_dicts, edits, member):
    for form, content in state_dicts.items():
        if member is not None and form == "zip":
            content = rezipped(content, member, edits)
        else:
            content = edited(content, edits)
        (place / "weights.pth").write_bytes(content)
        survives(files.read_state_dict, place / "weights.pth")


NETWORK = {"name": "mlp", "output": "v", "width": 4, "emb_ch": 4, "num_blocks": 0}
CONTENT = {
    **{"num_steps": 2, "sampler": "ddim", "clip": True, "shape": [2, 2, 1]},
    "schedule": {"name": "cosine", "logsnr_min": -20.0, "logsnr_max": 20.0},
    **{"labels": None, "model": NETWORK, "precision": "float32"},
    **{"metrics": {"frechet_pixels": 0.5}, "facts": {"stage": "student_2"}},
}


def weights(**network):
    """Weights of such a network."""
    model = models.build(NETWORK | network, 1)
    like = jax.eval_shape(lambda key: model.init(key, (2, 2, 1)), jax.random.key(0))
    return jax.tree.map(lambda a: np.ones(a.shape, a.dtype), like)


@pytest.fixture(scope="module")
def bundled(place):
    """A bundle's bytes, and its weights."""
    params = weights()
    bundle.write(place / "whole", params, b"no program: it is never run", CONTENT)
    return (place / "whole").read_bytes(), params


@fuzz
@given(EDITS)
def test_bundles(place, bundled, edits):
    path = place / "bundle"
    content = edited(bundled[0], edits)
    path.write_bytes(content)
    assert survives(loading.load, path) == (content == bundled[0])


@settings(fuzz, max_examples=EXAMPLES // 2)
@given(EDITS)
def test_bundles_whose_checksums_agree(place, bundled, edits):
    """As who means harm makes them: not the bytes are off, but what they say."""
    text = edited(json.dumps(CONTENT).encode(), edits)
    try:
        content = json.loads(text)
        bundle.write(place / "bundle", bundled[1], b"program", content)
    except (ValueError, TypeError, RecursionError):
        return
    survives(loading.load, place / "bundle")


CLAIMS = {
    "a network without end": {"model": NETWORK | {"num_blocks": 10**9}},
    "a network of huge layers": {"model": NETWORK | {"width": 2**40}},
    "a width of many digits": {"model": NETWORK | {"width": 10**400}},
    "a network of no such name": {"model": NETWORK | {"name": "os"}},
    "a list for a width": {"model": NETWORK | {"width": [4]}},
    "a text for a width": {"model": NETWORK | {"width": "4"}},
    "no output kind": {"model": {"name": "mlp"}},
    "huge samples": {"shape": [2**20, 2**20, 1]},
    "samples of no values": {"shape": [0, 2, 1]},
    "endless samples": {"shape": [2] * 400},
    "no steps": {"num_steps": 0},
    "endless steps": {"num_steps": 2**40},
    "labels that the network lacks": {"labels": 2**30},
    "labels that are no names": {"labels": [1, 2]},
    "another schedule": {"schedule": {"name": "exec", "code": "1"}},
    "a schedule out of range": {"schedule": {"name": "cosine", "logsnr_max": 1e9}},
    "another sampler": {"sampler": "os.system"},
    "another precision": {"precision": "float8"},
    "metrics that are none": {"metrics": []},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_bundles(tmp_path, bundled, claim):
    path = tmp_path / "bundle"
    bundle.write(path, bundled[1], b"program", CONTENT | CLAIMS[claim])
    assert not survives(loading.load, path)


def test_weights_of_bundles(tmp_path, bundled):
    more = bundled[1] | {"a": {"b": np.ones(2)}}
    deep = {"a": np.ones(2)}
    for _ in range(100):
        deep = {"a": deep}
    fewer = {k: v for k, v in bundled[1].items() if k != "embed0"}
    for params in (more, fewer, deep, weights(width=8)):
        bundle.write(tmp_path / "bundle", params, b"program", CONTENT)
        assert not survives(loading.load, tmp_path / "bundle")
        foreign = CONTENT | {"model": None}
        bundle.write(tmp_path / "bundle", params, b"program", foreign)
        known = survives(lambda: loading.load(tmp_path / "bundle", model=object()))
        assert known == (params is not deep)


def test_a_bundle_that_claims_more_than_its_file(tmp_path):
    for shape, end in (([2**40], 2**42), ([2**62, 4], 8), ([2], 2**63)):
        claim = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
        header = json.dumps({"params/a": claim}).encode()
        content = struct.pack("<Q", len(header)) + header + bytes(8)
        (tmp_path / "bundle").write_bytes(content)
        assert not survives(loading.load, tmp_path / "bundle")
    (tmp_path / "bundle").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert not survives(loading.load, tmp_path / "bundle")


ENTRY = {"model": "teacher", "sampler": "ddim", "num_steps": 4, "metrics": {"a": 0.5}}
LINES = b"".join(
    json.dumps({"stage": "teacher", "update": n}).encode() + b"\n" for n in range(5)
)


@fuzz
@given(EDITS)
def test_json(place, edits):
    path = epath.Path(place / "file.json")
    path.write_bytes(edited(json.dumps(ENTRY).encode(), edits))
    survives(lambda: check_entry(files.read_json(path)))
    path.write_bytes(edited(LINES, edits))
    lines = JsonLines(path)
    assert survives(lambda: list(lines.read()))


@fuzz
@given(EDITS)
def test_arrays_of_an_evaluation(place, edits):
    out = io.BytesIO()
    np.save(out, np.zeros((3, 4), np.float32))
    survives(files.parse_npy, edited(out.getvalue(), edits), "samples.npy")


@settings(fuzz, max_examples=EXAMPLES // 2)
@given(EDITS, st.sampled_from(["squares", "notes.json"]))
def test_image_caches(place, cache, edits, name):
    folder = place / "cache"
    folder.mkdir(exist_ok=True)
    for part, content in cache.items():
        (folder / part).write_bytes(edited(content, edits) if part == name else content)

    def read():
        cached = _folder_cache._read(folder, 10, 5)
        _folder_cache.Squares(cached.file, 4, None).all()

    survives(read)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The files of a cache of five grey squares."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(5):
        Image.new("RGB", (4, 4), (40 * i,) * 3).save(root / f"{i}.png")
    listed, _ = _folder_cache.listing(root)
    cached = _folder_cache.get(root, listed, 4, 10, str(root / "cache"))
    return {path.name: path.read_bytes() for path in (cached.file, cached.notes)}


def nested(depth):
    """Lists within lists, each of which says that it is as long as the file."""
    size = struct.pack(">I", 5 * depth)
    return (b"\xdd" + size) * depth


def header(shape, dtype="<f8"):
    """A .npy file that claims a shape and holds nothing."""
    out = io.BytesIO()
    claims = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, claims)
    return out.getvalue()


def zipped(**members):
    """An archive, compressed but for torch's part."""
    out, torch = io.BytesIO(), "data.pkl" in members
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED * (not torch)) as new:
        for name, content in members.items():
            new.writestr(name, content)
    return out.getvalue()


GLOBAL = b"ctorch._utils\n_rebuild_tensor_v2\n"
NUMBERS = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
NUMBERS += b"X\x03\x00\x00\x00cpuK\x01tQ"
# (shape of one huge number, stride of a tuple): the product would be the bomb.
REPEATS = b"\x80\x02}X\x01\x00\x00\x00a" + GLOBAL + b"(" + NUMBERS
REPEATS += b"K\x00(J\xff\xff\xff\x7ft((K\x01K\x02tttRs."
# Sixty doublings of one tuple, as a key: hashing it would never end.
DOUBLED = b"\x80\x02}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
BYTEARRAY = b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00."

BOMBS = {
    "an array larger than its file": (
        "statistics.npz",
        zipped(**{"mu.npy": header((2**40,)), "sigma.npy": header((2**40, 2**40))}),
    ),
    "a shape that overflows": (
        "statistics.npz",
        zipped(**{"mu.npy": header((2**62, 4)), "sigma.npy": header((2**32, 2**32))}),
    ),
    "zeros that unpack to gigabytes": (
        "statistics.npz",
        zipped(**{"mu.npy": header((2**30,), "|u1") + bytes(2**20)}),
    ),
    "lists in lists": ("released", nested(900)),
    "lists in lists in an array": (
        "released",
        msgpack.packb({"ema_params": msgpack.ExtType(1, nested(900))}),
    ),
    "an unknown object": (
        "released",
        msgpack.packb({"ema_params": msgpack.ExtType(42, b"x")}),
    ),
    "brackets": ("file.json", b"[" * 10**6),
    "digits": ("file.json", b'{"num_steps":' + b"9" * 10**6 + b"}"),
    "a stride that is a list": (
        "weights.pth",
        zipped(**{"data.pkl": REPEATS, "data/0": b"one!"}),
    ),
    "a key of 2^60 parts": ("weights.pth", zipped(**{"data.pkl": DOUBLED})),
    "an array of bytes": ("weights.pth", zipped(**{"data.pkl": BYTEARRAY})),
}
READERS = {
    "statistics.npz": load_statistics,
    "released": lambda path: load_released(str(path), WEIGHTS),
    "file.json": lambda path: check_entry(files.read_json(epath.Path(path))),
    "weights.pth": files.read_state_dict,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(tmp_path, bomb):
    name, content = BOMBS[bomb]
    (tmp_path / name).write_bytes(content)
    assert not survives(READERS[name], tmp_path / name)


class Trap:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_reader_unpickles(tmp_path):
    trap = Trap(tmp_path / "trap")
    for protocol in (0, 2, 4):
        content = pickle.dumps({"ema_params": trap, "mu": trap}, protocol)
        array = io.BytesIO()
        np.save(array, np.array([trap], object), allow_pickle=True)
        of = {
            "statistics.npz": [zipped(**{"mu.npy": array.getvalue()}), content],
            "released": [content, msgpack.packb({"ema_params": content})],
            "file.json": [content],
            "weights.pth": [
                content,
                zipped(**{"data.pkl": content}),
                files.LEGACY + content,
            ],
        }
        for name, contents in of.items():
            for content in contents:
                (tmp_path / name).write_bytes(content)
                assert not survives(READERS[name], tmp_path / name)
        with pytest.raises(ValueError, match="allow_pickle"):
            files.parse_npy(array.getvalue(), "samples.npy")
    assert not (tmp_path / "trap").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "trap").exists()  # the files would have made it


def test_the_package_unpickles_and_unpacks_nothing():
    """But where tensors are read, by a class that knows their parts alone."""
    package = pathlib.Path(files.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert "extractall" not in text
        assert "allow_pickle=True" not in text
        assert "np.load(" not in text
        assert path.name == "files.py" or "import pickle" not in text
    assert "pickle.load" not in pathlib.Path(files.__file__).read_text()
