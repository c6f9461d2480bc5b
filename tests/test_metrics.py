import importlib
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special

from pd_jax import api, metrics
from pd_jax.metrics import (
    Moments,
    RunningMoments,
    frechet_distance,
    inception_score,
    kernel_distance,
    load_statistics,
    precision_recall,
    rmse,
    save_statistics,
    shrink,
)
from pd_jax.space import to_uint8
from tests.test_train import tiny


@pytest.fixture(scope="module")
def known():
    """Sets a and b, logits, and what torch-fidelity 0.4.0 and pytorch-fid 0.3.0 say."""
    with np.load(pathlib.Path(__file__).parent / "vectors_metrics.npz") as file:
        return dict(file)


def literal(a, b):
    """The formula with SciPy's square root of the product of covariances."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    shift = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return shift + np.trace(cov_a + cov_b - 2 * root)


def sets(dimensions=6):
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((dimensions, dimensions))
    return rng.standard_normal((400, dimensions)) @ mix, rng.uniform(
        0, 2, (300, dimensions)
    )


def test_frechet_is_the_formula():
    a, b = sets()
    assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-6)
    images = frechet_distance(a.reshape(-1, 3, 2, 1), b.reshape(-1, 3, 2, 1))
    assert images == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert frechet_distance(Moments.of(a), b) == frechet_distance(a, b)


def test_frechet_on_the_line_is_closed():
    rng = np.random.default_rng(0)
    a, b = 1 + 2 * rng.standard_normal((500, 1)), 3 * rng.standard_normal((700, 1))
    true = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(true, rel=1e-9)


def test_frechet_of_singular_covariances():
    a, b = sets()
    wide = [np.concatenate([x, np.zeros((len(x), 40))], 1) for x in (a, b)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    few = a[:4]  # fewer examples than dimensions
    assert np.isfinite(frechet_distance(few, b))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-7)


def test_frechet_of_fewer_examples_than_dimensions():
    """Then the data are factors of the covariances; SciPy's root has fewer digits."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((200, 200)) * np.linspace(1, 0.01, 200) ** 3
    a, b = rng.standard_normal((50, 200)) @ mix, rng.uniform(0, 2, (80, 200)) @ mix
    scaled = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(scaled[0] @ scaled[1].T, compute_uv=False).sum()
    spread = sum(np.sum(x**2) for x in scaled)
    true = np.sum((a.mean(0) - b.mean(0)) ** 2) + spread - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(true, rel=1e-10)
    assert literal(a, b) == pytest.approx(true, rel=1e-6)


@pytest.mark.slow
def test_frechet_of_many_dimensions_is_the_formula():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((1024, 1024)) * np.linspace(1, 0.01, 1024) ** 3 / 30
    for examples in (3000, 300):  # with the latter, the covariances are singular
        a = abs(rng.standard_normal((examples, 1024)) @ mix)
        b = abs(rng.standard_normal((examples, 1024)) @ mix * 1.1 + 0.1)
        assert frechet_distance(a, b) == pytest.approx(literal(a, b), rel=1e-6)


def test_figures_are_those_of_published_tools(known):
    a, b, logits = known["a"], known["b"], known["logits"]
    assert frechet_distance(a, b) == pytest.approx(known["fid"], rel=1e-9)
    assert kernel_distance(a, b) == pytest.approx(known["kid"], rel=1e-5)
    assert precision_recall(b, a) == pytest.approx(known["precision_recall"], abs=1e-6)
    for splits in (1, 4, 10):
        found = inception_score(logits, splits)
        assert found == pytest.approx(known[f"isc_{splits}"], rel=1e-12)


def test_inception_score_is_the_formula():
    logits = 4 * np.random.default_rng(0).standard_normal((50, 7)) + 100
    p = scipy.special.softmax(logits, axis=1)
    divergence = np.mean([np.sum(q * np.log(q / p.mean(0))) for q in p])
    assert inception_score(logits) == pytest.approx(np.exp(divergence), rel=1e-12)
    sure = 1e4 * np.eye(7)
    assert inception_score(sure) == pytest.approx(7.0, rel=1e-12)
    assert inception_score(sure[:3]) == pytest.approx(3.0, rel=1e-12)
    assert inception_score(np.ones((5, 4))) == pytest.approx(1.0, rel=1e-12)


def neighbours(real, generated, k):
    """Precision and recall by loops over exact distances."""
    within = []
    for balls, points in ((real, generated), (generated, real)):
        inside = np.zeros(len(points), bool)
        for i, centre in enumerate(balls):
            others = np.delete(balls, i, axis=0)
            reach = np.sort(np.sum((others - centre) ** 2, axis=1))[k - 1]
            inside |= np.sum((points - centre) ** 2, axis=1) <= reach
        within.append(inside.mean())
    return tuple(within)


@pytest.mark.parametrize("tile", [7, 1024])
def test_pairs_by_tiles_are_the_loops(monkeypatch, tile):
    monkeypatch.setattr("pd_jax.metrics._pairs.TILE", tile)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((40, 3)), 0.6 + 1.2 * rng.standard_normal((31, 3))
    for k in (1, 3, 12, 30):
        assert precision_recall(a, b, k) == neighbours(a, b, k)
        assert precision_recall(a + 1e5, b + 1e5, k) == neighbours(a, b, k)

    def mean(x, y, least):
        kernel = [(u @ v / 3 + 1) ** 3 for i, u in enumerate(x) for v in y[: least(i)]]
        return np.mean(kernel)

    true = mean(a, a, lambda i: i) + mean(b, b, lambda i: i)
    true -= 2 * mean(a, b, lambda i: None)
    assert kernel_distance(a, b) == pytest.approx(true, rel=1e-12)
    assert kernel_distance(a[:, :, None], b) == kernel_distance(a, b)


@pytest.mark.parametrize("offset", [0.0, 0.37])
def test_manifolds_of_equal_distances(offset):
    """On a grid many examples lie on the very edge of a ball, or on one another."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 4, (12, 2)), rng.integers(0, 5, (15, 2))
        assert precision_recall(a + offset, b + offset, 2) == neighbours(a, b, 2)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_running_moments_are_those_of_the_whole(offset):
    rng = np.random.default_rng(0)
    data = rng.standard_normal((500, 5)) @ rng.standard_normal((5, 5)) + offset
    data[300:] += 3.0
    running = RunningMoments()
    for i, j in ((0, 1), (1, 1), (1, 4), (4, 260), (260, 499), (499, 500)):
        running.add(data[i:j])
    found, want = running.moments(), np.cov(data - offset, rowvar=False)
    assert running.count == 500
    np.testing.assert_allclose(found.covariance, want, rtol=0, atol=1e-12 * want.max())
    np.testing.assert_allclose(found.mean - offset, data.mean(0) - offset, atol=2e-9)
    np.testing.assert_allclose(
        Moments.of(data).covariance, found.covariance, rtol=1e-11
    )
    images = Moments.of(data.reshape(-1, 1, 5, 1))
    np.testing.assert_array_equal(images.mean, Moments.of(data).mean)


def test_running_moments_refuse():
    running = RunningMoments()
    running.add(np.zeros((1, 2)))
    with pytest.raises(ValueError, match="at least 2"):
        running.moments()
    with pytest.raises(ValueError, match="3 dimensions after those of 2"):
        running.add(np.zeros((4, 3)))


def test_statistics_files(tmp_path):
    a, b = sets()
    moments, path = Moments.of(a), tmp_path / "reference.npz"
    save_statistics(path, moments)
    assert [p.name for p in tmp_path.iterdir()] == ["reference.npz"]
    with np.load(path) as file:
        np.testing.assert_array_equal(file["mu"], moments.mean)
        np.testing.assert_array_equal(file["sigma"], moments.covariance)
    assert frechet_distance(load_statistics(path), b) == frechet_distance(a, b)


def test_statistics_that_are_none(tmp_path):
    path, mu, sigma = tmp_path / "s.npz", np.zeros(3), np.eye(3)
    for arrays, said in (
        ({"mu": mu}, "sigma"),
        ({"mu": mu, "sigma": sigma[:2]}, r"\(2, 3\)"),
        ({"mu": mu * np.nan, "sigma": sigma}, "finite"),
        ({"mu": mu, "sigma": np.triu(np.ones((3, 3)))}, "symmetric"),
        ({"mu": mu, "sigma": np.array([None])}, "allow_pickle"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=said):
            load_statistics(path)
    np.savez(path, mu=mu, sigma=sigma)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        load_statistics(path)
    with pytest.raises(ValueError, match="no such file"):
        load_statistics(tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"\.npz"):
        save_statistics(tmp_path / "s.json", Moments(mu, sigma))


def test_shrink_takes_means_of_areas():
    images = np.random.default_rng(0).uniform(-1, 1, (3, 64, 28, 2)).astype(np.float32)
    small = shrink(images)
    assert small.shape == (3, 16, 14, 2)
    assert small.dtype == np.float32
    want = images.reshape(3, 16, 4, 14, 2, 2).mean((2, 4))
    np.testing.assert_allclose(small, want, atol=1e-6)
    assert shrink(images, 64) is images
    odd = np.broadcast_to(np.arange(37.0)[None, :, None, None], (1, 37, 5, 1))
    np.testing.assert_allclose(  # 13 places of 37/13 pixels; pixel j is [j, j + 1]
        shrink(odd)[0, [0, -1], 0, 0],
        [35 / 37, 36 - 35 / 37],
        rtol=1e-6,
    )
    np.testing.assert_allclose(shrink(odd).mean(), 18.0, rtol=1e-6)
    whole = np.full((1, 32, 32, 3), 255, np.uint8)
    np.testing.assert_allclose(shrink(whole), 255.0, rtol=1e-6)


def test_rmse():
    assert rmse(np.zeros((2, 2)), np.full((2, 2), 3.0)) == 3.0


def test_wrong_shapes():
    with pytest.raises(ValueError, match="dimensions"):
        frechet_distance(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="shapes"):
        rmse(np.zeros(2), np.zeros(3))
    for figure in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match="dimensions"):
            figure(np.zeros((5, 2)), np.zeros((5, 3)))
        with pytest.raises(ValueError, match="at least"):
            figure(np.zeros((5, 2)), np.zeros((1, 2)))
        with pytest.raises(ValueError, match="0 examples"):
            figure(np.zeros((5, 2)), np.zeros((0, 2)))
        with pytest.raises(ValueError, match="finite"):
            figure(np.zeros((5, 2)), np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(np.zeros((5, 2)), np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="k=0"):
        precision_recall(np.zeros((5, 2)), np.zeros((5, 2)), k=0)
    with pytest.raises(ValueError, match="11 splits of 10"):
        inception_score(np.zeros((10, 3)), splits=11)
    with pytest.raises(ValueError, match=r"\[N, K\]"):
        inception_score(np.zeros(10))


def test_metrics_are_named_as_their_files_and_have_an_order():
    names = [metric.name for metric in metrics.every()]
    assert len(set(names)) == len(names)
    for metric in metrics.every():
        module = importlib.import_module(f"pd_jax.metrics.{metric.name}")
        assert module.METRIC is metric
    assert names.index("frechet_pixels") < names.index("fid") < names.index("recall")
    assert metrics.main()[:2] == ["fid", "frechet_pixels"]
    assert metrics.label("kid") == "KID"
    assert metrics.label("of_another_version") == "of_another_version"
    assert metrics.direction("kid") == "lower is better"
    assert metrics.direction("recall") == "higher is better"
    assert not metrics.direction("of_another_version")
    assert metrics.is_log("fid")
    assert not metrics.is_log("kid")


MEAN = """
from pd_jax.metrics import Metric

METRIC = Metric(
    "brightness",
    "mean brightness",
    lambda both: float(both.first.mean()),
    lambda run: f"mean of {run.num_paired} samples or more",
    needs=("images",),
    higher_is_better=True,
    log_axis=False,
)
"""


@pytest.mark.slow
def test_a_metric_is_added_as_one_file(tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(MEAN)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    config = tiny(**{"ladder.updates": (2,), "teacher.updates": 2})
    report = api.run(config, tmp_path / "run", "tiny")
    assert [*report["rows"][0]["metrics"]][-1] == "brightness"
    samples = np.load(tmp_path / "run" / "evaluation" / "student_1.npy")
    value = report["rows"][-1]["metrics"]["brightness"]
    assert value == pytest.approx(float(samples.mean()), rel=1e-6)
    assert report["protocol"]["brightness"].startswith("mean of")
    page = (tmp_path / "run" / "report.html").read_text()
    assert re.search(r"mean brightness <span[^>]*>higher is better", page)
    assert "brightness (higher is better)" in (
        (tmp_path / "run" / "report.md").read_text()
    )


def test_grey_levels_are_the_same_for_numpy_and_jax():
    x = np.linspace(-1.2, 1.2, 10_001, dtype=np.float32)
    levels = to_uint8(x)
    assert (levels.dtype, levels.min(), levels.max()) == (np.uint8, 0, 255)
    np.testing.assert_array_equal(to_uint8(jnp.asarray(x)), levels)
    np.testing.assert_array_equal(to_uint8(np.arange(256) / 127.5 - 1), np.arange(256))
