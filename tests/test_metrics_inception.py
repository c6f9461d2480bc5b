"""The Inception network against a PyTorch port, and the reading of its weights.

`vectors_metrics.npz` holds, for the images of `image` and the weights of `weights`:
`pool_*` and `logits_*`, the first 64 of each by torch-fidelity 0.4.0 in float64, and
`resized_*`, every 37th row and 41st column of its resized images; and for the reader,
`state_dict_*`, files of torch 2.13 with the tensors `state.*`.
"""

import io
import os
import pathlib
import pickle
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax.metrics import inception
from pd_jax.storage import files

VECTORS = pathlib.Path(__file__).parent / "vectors_metrics.npz"
SIZES = [(32, 32), (64, 48), (320, 310), (299, 299)]


@pytest.fixture(scope="module")
def known():
    with np.load(VECTORS) as file:
        return dict(file)


@pytest.fixture(scope="module")
def weights():
    return {name: weight(name, shape) for name, shape in inception.shapes().items()}


def weight(name, shape):
    a = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("bn.weight"):
        a = 1 + 0.1 * a
    elif name.endswith("running_var"):
        a = 1 + 0.1 * abs(a)
    elif len(shape) == 1:
        a = 0.1 * a
    else:
        a = a * np.sqrt(2 / np.prod(shape[1:]))
    return a.astype(np.float32)


def image(height, width):
    """Two images of 4 x 4 coloured patches and noise; those of 299 x 299 are grey."""
    rng = np.random.default_rng(height)
    patches = rng.integers(0, 256, (2, 4, 4, 3))
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    noise = rng.integers(-30, 31, (2, height, width, 3))
    images = np.clip(patches[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)
    return images[..., :1] if height == 299 else images


def agrees(params, known, height, width):
    found = jax.jit(inception.features)(params, image(height, width))
    for name, full in (("pool", 2048), ("logits", 1008)):
        assert found[name].shape == (2, full)
        assert found[name].dtype == jnp.float32
        want = known[f"{name}_{height}x{width}"]
        assert want.std() > 0.3  # what is compared is not all alike
        np.testing.assert_allclose(found[name][:, :64], want, atol=2e-5)


def test_network_of_weights_from_a_file(weights, known, tmp_path):
    counted = {"Mixed_7c.branch_pool.bn.num_batches_tracked": np.array(3)}
    np.savez(tmp_path / "inception.npz", **weights, **counted)
    params = inception.load_weights(tmp_path / "inception.npz")
    assert params.keys() == weights.keys()
    agrees(params, known, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), SIZES[1:])
def test_network_at_other_sizes(weights, known, height, width):
    agrees(weights, known, height, width)


@pytest.mark.slow
def test_network_on_four_devices(weights):
    mesh = jax.sharding.Mesh(jax.devices(), ("batch",))
    spread = jax.NamedSharding(mesh, jax.P("batch"))
    images = np.concatenate([image(32, 32), 255 - image(32, 32)])
    alone = jax.jit(inception.features)(weights, images)
    params = jax.device_put(weights, jax.NamedSharding(mesh, jax.P()))
    shared = jax.jit(inception.features)(params, jax.device_put(images, spread))
    assert shared["pool"].sharding.is_equivalent_to(spread, 2)
    for name in alone:
        np.testing.assert_allclose(shared[name], alone[name], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_is_that_of_tensorflow_1(known, height, width):
    found = jax.jit(inception.resize)(image(height, width))[:, ::37, ::41]
    want = known[f"resized_{height}x{width}"][..., : found.shape[3]]
    np.testing.assert_allclose(found, want, atol=1e-4)


def test_shapes():
    shapes = inception.shapes()
    assert len(shapes) == 94 * 5 + 2
    assert shapes["Mixed_6c.branch7x7dbl_4.conv.weight"] == (160, 160, 7, 1)
    assert shapes["Mixed_7b.branch3x3dbl_3b.bn.running_mean"] == (384,)
    assert shapes["fc.weight"] == (1008, 2048)


def test_images_of_other_kinds():
    params = {
        k: jax.ShapeDtypeStruct(s, "float32") for k, s in inception.shapes().items()
    }
    for dtype, shape in (
        ("float32", (2, 32, 32, 3)),
        ("uint8", (32, 32, 3)),
        ("uint8", (2, 32, 32, 4)),
    ):
        with pytest.raises(ValueError, match=r"uint8 in 0\.\.255"):
            jax.eval_shape(
                inception.features, params, jax.ShapeDtypeStruct(shape, dtype)
            )


def test_wrong_weights_are_all_named(tmp_path):
    given = {"fc.bias": np.zeros(1000, "f4"), "AuxLogits.fc.weight": np.zeros(2, "f4")}
    shapes = inception.shapes()
    held = {k: np.broadcast_to(np.float32(1), s) for k, s in shapes.items()}
    del held["Conv2d_1a_3x3.bn.bias"]
    held["Conv2d_1a_3x3.bn.weight"] = np.full(32, np.nan, "f4")
    np.savez_compressed(tmp_path / "w.npz", **(held | given))
    with pytest.raises(ValueError, match="4 of 472") as caught:
        inception.load_weights(tmp_path / "w.npz")
    for part in (
        "Conv2d_1a_3x3.bn.bias is missing",
        "AuxLogits.fc.weight is unknown",
        "fc.bias is (1000,), not (1008,)",
        "Conv2d_1a_3x3.bn.weight has values",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_state_dicts_of_torch(known, tmp_path, form):
    path = tmp_path / "small.pth"
    path.write_bytes(known[f"state_dict_{form}"].tobytes())
    found = files.read_state_dict(path)
    want = {k[6:]: v for k, v in known.items() if k.startswith("state.")}
    assert found.keys() == want.keys()
    for name in want:
        np.testing.assert_array_equal(found[name], want[name])
        assert found[name].dtype == want[name].dtype
    with pytest.raises(ValueError, match=r"Conv2d_1a_3x3\.bn\.bias is missing"):
        inception.load_weights(path)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_damaged_state_dicts(known, tmp_path, form):
    whole = known[f"state_dict_{form}"].tobytes()
    path, refused = tmp_path / "damaged.pth", 0
    cut = [whole[:n] for n in range(0, len(whole) - 1, 41)]
    flipped = [
        whole[:n] + bytes([whole[n] ^ bit]) + whole[n + 1 :]
        for n in range(0, len(whole), 23)
        for bit in (1, 0x80)
    ]
    for data in cut + flipped:  # a flip in a name or a number can go unnoticed
        path.write_bytes(data)
        try:
            files.read_state_dict(path)
        except ValueError:
            refused += 1
    assert refused > len(cut) + len(flipped) / 10
    for data in cut:
        path.write_bytes(data)
        with pytest.raises(ValueError, match="state dict"):
            files.read_state_dict(path)


class Touch:
    """Unpickled in the usual way, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "npz"])
def test_a_file_cannot_run_code(tmp_path, form):
    made, path = tmp_path / "made", tmp_path / f"evil.{form}"
    evil = pickle.dumps({"fc.bias": Touch(str(made))}, 2)
    if form == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", evil)
    elif form == "legacy":
        path.write_bytes(files.LEGACY + pickle.dumps({"little_endian": True}, 2) + evil)
    else:
        np.savez(path, **{"fc.bias": np.array(Touch(str(made)), object)})
    with pytest.raises(ValueError, match=r"posix\.mkdir|allow_pickle"):
        inception.load_weights(path)
    assert not made.exists()
    pickle.loads(evil)
    assert made.exists()  # the file would have run code


def test_files_that_are_none(tmp_path):
    for name in ("none.pth", "none.npz"):
        with pytest.raises(ValueError, match="no such file"):
            inception.load_weights(tmp_path / name)
        (tmp_path / name).write_bytes(b"<html>not found</html>")
        with pytest.raises(ValueError, match="not a"):
            inception.load_weights(tmp_path / name)


def test_tensors_that_leave_their_storage():
    storage = files._Storage("0", "<f4", 6)
    flat = np.arange(6, dtype="f4")
    assert files._Tensor(storage, 1, (2, 2), (1, 2)).of(flat).tolist() == [
        [1, 3],
        [2, 4],
    ]
    for offset, shape, strides in (
        (1, (2, 3), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (10**9,), (0,)),
        (0, (2, 2), (1,)),
        (0, (0,), (1,)),
    ):
        with pytest.raises(ValueError, match=r"fit|shorter"):
            files._Tensor(storage, offset, shape, strides).of(flat)
    with pytest.raises(ValueError, match="fit"):
        files._Tensor(storage, 0, (2,), (1,)).of(flat[:5])


def test_compressed_members_are_refused(known, tmp_path):
    """torch never writes them; they could unpack to any size."""
    with (
        zipfile.ZipFile(io.BytesIO(known["state_dict_zip"].tobytes())) as whole,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="compressed"):
        files.read_state_dict(tmp_path / "w.pth")
