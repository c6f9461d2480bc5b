"""LPIPS: the distance, its files, and what it is used for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy.signal import correlate

import pd_jax
from pd_jax import api
from pd_jax.config import default, setup
from pd_jax.diffusion import predict
from pd_jax.metrics import lpips
from pd_jax.runtime.errors import Refused

RNG = np.random.default_rng(0)


def made_up(network, scale=1.0):
    """Weights of the right shapes, which keep the size of what goes through."""
    weights = {}
    for name, shape in lpips.shapes(network).items():
        values = RNG.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))
        weights[name] = scale * (np.abs(values) if "lin" in name else values)
    return {name: array.astype(np.float32) for name, array in weights.items()}


ALEXNET = made_up(lpips.ALEXNET)
A, B = RNG.uniform(-1.0, 1.0, (2, 2, 40, 33, 3))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "alexnet.safetensors"
    safetensors.numpy.save_file(ALEXNET, path)
    return path


def convolved(x, kernel, bias, stride, padding):
    """[C, H, W], by SciPy, in float64."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    whole = [correlate(x, k, "valid")[0] for k in kernel.astype(np.float64)]
    return np.maximum(np.stack(whole)[:, ::stride, ::stride] + bias[:, None, None], 0)


def pooled(x, size):
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return windows.max((3, 4))[:, ::2, ::2]


def features(x, weights, network):
    """Each tap's, [C, h, w], of unit length over C."""
    shift, scale = np.array([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])
    x, i = ((x - shift) / scale).transpose(2, 0, 1), 0
    for layer in network:
        if isinstance(layer, lpips.Pool):
            x = pooled(x, layer.size)
            continue
        names = weights[f"conv{i}.weight"], weights[f"conv{i}.bias"]
        x, i = convolved(x, *names, layer.stride, layer.padding), i + 1
        if layer.tap:
            yield x / np.sqrt(np.sum(x**2, 0) + 1e-10)


def expected(a, b, weights, network):
    pairs = zip(features(a, weights, network), features(b, weights, network))
    return sum(
        np.mean(np.tensordot(weights[f"lin{i}.weight"][0, :, 0, 0], (f - g) ** 2, 1))
        for i, (f, g) in enumerate(pairs)
    )


def test_the_distance_is_that_of_another_implementation():
    found = lpips.distance(ALEXNET, jnp.float32(A), jnp.float32(B))
    truth = [expected(a, b, ALEXNET, lpips.ALEXNET) for a, b in zip(A, B)]
    np.testing.assert_allclose(found, truth, rtol=1e-5)
    np.testing.assert_array_equal(lpips.distance(ALEXNET, A, A), 0.0)


@pytest.mark.slow
def test_the_distance_by_vgg16_is_that_of_another_implementation():
    weights = made_up(lpips.VGG16)
    a, b = A[:1, :32, :32], B[:1, :32, :32]
    found = lpips.distance(weights, jnp.float32(a), jnp.float32(b))
    truth = expected(a[0], b[0], weights, lpips.VGG16)
    np.testing.assert_allclose(found, [truth], rtol=1e-5)


def test_gradients_are_finite_where_pictures_are_equal_black_or_without_features():
    dead = {n: -np.abs(w) if "conv0" in n else w for n, w in ALEXNET.items()}
    images = jnp.float32(A[:1]), -jnp.ones((1, 40, 33, 3)), jnp.zeros((1, 40, 33, 3))
    slope = jax.jit(jax.grad(lambda a, b, w: lpips.distance(w, a, b).sum()))
    for weights in (ALEXNET, dead):
        for a in images:
            for b in images:
                assert np.all(np.isfinite(slope(a, b, weights)))
    assert np.any(slope(images[0], images[1], ALEXNET))


def test_small_and_grey_pictures_are_enlarged_by_compare():
    a, b = jnp.float32(A[:, :8, :8, :1]), jnp.float32(B[:, :8, :8, :1])
    found = lpips.compare(ALEXNET, a, b, 32)
    a, b = (
        jax.image.resize(jnp.repeat(x, 3, 3), (2, 32, 32, 3), "bilinear")
        for x in (a, b)
    )
    np.testing.assert_allclose(found, lpips.distance(ALEXNET, a, b), rtol=1e-6)
    large = jnp.float32(A), jnp.float32(B)
    as_is = lpips.distance(ALEXNET, *large)
    np.testing.assert_allclose(lpips.compare(ALEXNET, *large, 33), as_is, rtol=1e-6)
    for wrong, says in ((a[..., :1], r"both \[B, H, W, 3\]"), (a[:, :31], "32 x 32")):
        with pytest.raises(Refused, match=says):
            lpips.distance(ALEXNET, wrong, wrong)


def test_files_of_all_kinds_and_names(file, tmp_path):
    np.savez(tmp_path / "w.npz", **ALEXNET)
    places = dict(zip(range(5), (0, 3, 6, 8, 10)))
    others = {
        (
            f"features.{places[int(name[4])]}{name[5:]}"
            if name.startswith("conv")
            else name.replace(".weight", ".model.1.weight")
        ): array
        for name, array in ALEXNET.items()
    }
    others["classifier.1.weight"] = np.zeros((2, 2), np.float32)
    safetensors.numpy.save_file(others, tmp_path / "others.safetensors")
    for path in (file, tmp_path / "w.npz", tmp_path / "others.safetensors"):
        found = lpips.load_weights(path)
        assert found.keys() == ALEXNET.keys()
        for name, array in ALEXNET.items():
            np.testing.assert_array_equal(found[name], array)
    assert len(lpips.shapes(lpips.VGG16)) == 2 * 13 + 5
    assert lpips.shapes(lpips.VGG16)["lin4.weight"] == (1, 512, 1, 1)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lin4.weight": None}, "it has 14 arrays"),
        (
            {"conv1.bias": np.zeros(3, np.float32)},
            r"conv1.bias is \(3,\), not \(192,\)",
        ),
        ({"conv1.bias": np.full(192, np.nan, np.float32)}, "no finite"),
        ({"lin0.weight": -ALEXNET["lin0.weight"]}, "lin0.weight has negative"),
    ],
)
def test_files_that_are_refused(changes, says, tmp_path):
    weights = {n: a for n, a in (ALEXNET | changes).items() if a is not None}
    safetensors.numpy.save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(Refused, match=says):
        lpips.load_weights(tmp_path / "w.safetensors")


def test_files_that_are_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 30)
    for name, says in (("w.safetensors", "not a safetensors"), ("x.npz", "no such")):
        with pytest.raises(Refused, match=says):
            lpips.load_weights(tmp_path / name)


def config_of(file, **changes):
    config = default("digits", "mlp", student="consistency_distillation")
    config.model.update(width=16, num_blocks=1)
    config.teacher.update(updates=2, batch=8)
    config.student.update(updates=2, batch=8, steps=(1,), grid=8, loss="lpips")
    config.perceptual.update(weights=str(file), size=32)
    config.eval.update(teacher_steps=(2,), reference_steps=4)
    config.eval.update(num_samples=16, paired_samples=8, num_reference=16)
    config.run.update(eval_batch=16, **changes)
    return config


@pytest.mark.slow
def test_a_loss_and_a_metric_of_a_run(file, tmp_path):
    report = api.run(config_of(file), tmp_path / "run", "small")
    rows = report["rows"]
    assert all(row["metrics"]["lpips_to_teacher"] > 0 for row in rows)
    student, teacher = (
        np.load(tmp_path / "run" / "evaluation" / f"{name}.npy")
        for name in ("student_1", "reference_teacher")
    )
    found = lpips.compare(ALEXNET, student[:8], teacher, 32)
    assert rows[-1]["metrics"]["lpips_to_teacher"] == pytest.approx(
        float(np.mean(found)), rel=1e-5
    )
    assert "enlarged to 32 pixels" in report["protocol"]["lpips_to_teacher"]
    assert pd_jax.load(tmp_path / "run").num_steps == 1


def test_the_loss_is_of_what_predictions_point_at(file):
    built = setup.build(config_of(file))
    training = built.trainings[-1]
    method, stage = training.method, training.stages[0]
    weights = built.fresh_weights(jax.random.key(0))
    given = {"model": weights, "teacher": weights}
    state = method.begin(given, stage, jax.random.key(1))
    x, other = RNG.uniform(-1.0, 1.0, (2, 4, 8, 8, 1)).astype(np.float32)
    logsnr, z = jnp.zeros(4), jnp.float32(RNG.standard_normal(x.shape))
    found = method.difference(
        state, predict(x, z, logsnr, "x"), predict(other, z, logsnr, "x")
    )
    np.testing.assert_allclose(found, lpips.compare(ALEXNET, x, other, 32), rtol=1e-3)


def test_what_lacks_is_refused(file):
    config = config_of("")
    says = r'student.loss="lpips", but perceptual\.weights'
    for make in (setup.build, functools.partial(setup.sketch, num_devices=1)):
        with pytest.raises(Refused, match=says):
            make(config)
    config = config_of(file)
    config.perceptual.size = 31
    with pytest.raises(Refused, match=r"perceptual\.size=31: must be at least 32"):
        setup.build(config)
    points = default("ring2d", "mlp", student="consistency_distillation")
    points.perceptual.weights = str(file)
    for training in ("teacher", "student"):
        points[training].updates = 2
    with pytest.raises(Refused, match=r"perceptual\.weights needs pictures"):
        setup.build(points)
