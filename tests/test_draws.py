"""Subsets are drawn from all of a set, so that its order does not matter."""

import numpy as np
import pytest

from pd_jax import config as configs
from pd_jax import data, metrics
from pd_jax.config import setup
from pd_jax.evaluation.evaluation import values_of
from pd_jax.metrics import Moments, Reference, Summary, frechet_distance
from pd_jax.metrics import _summary as summaries
from pd_jax.metrics.frechet import signed_sums
from pd_jax.runtime.errors import Refused
from pd_jax.space import Space
from pd_jax.storage import draws, files
from pd_jax.storage.draws import Draw

RNG = np.random.default_rng(0)


def test_rows_are_of_all():
    np.testing.assert_array_equal(draws.rows(5, 5, 0), np.arange(5))
    np.testing.assert_array_equal(draws.rows(9, 5, 0), np.arange(5))
    rows = draws.rows(2000, 50_000, 1)
    assert len(set(rows)) == 2000
    # Any first ones are a draw too, and no stride of the data is met.
    for part in (rows, rows[:300]):
        assert np.mean(part) == pytest.approx(25_000, rel=0.06)
        shares = np.bincount(part % 10, minlength=10) / len(part)
        assert np.max(np.abs(shares - 0.1)) < 0.06
    np.testing.assert_array_equal(rows, draws.rows(2000, 50_000, 1))
    assert not np.array_equal(rows, draws.rows(2000, 50_000, 2))


def test_a_draw_of_what_comes_by():
    whole = np.arange(10_000.0)[:, None]
    few, many = Draw(100), Draw(20_000)
    for part in np.array_split(whole, 37):
        few.add(part)
        many.add(part)
    np.testing.assert_array_equal(many.drawn, whole)
    drawn = few.drawn[:, 0]
    assert len(set(drawn)) == 100
    assert np.all(np.diff(drawn) > 0)
    assert np.mean(drawn) == pytest.approx(5000, abs=4 * 2887 / 10)
    # Batches do not matter.
    other = Draw(100)
    other.add(whole)
    np.testing.assert_array_equal(other.drawn, few.drawn)
    assert Draw(3).drawn.shape == (0, 1)


def test_kid_precision_and_recall_of_sorted_data(monkeypatch):
    """Perfect samples against data sorted by class, and the same data shuffled."""
    monkeypatch.setattr(summaries, "KEPT", 400)
    centers = 4.0 * RNG.standard_normal((10, 8))

    def examples(num):
        label = np.sort(RNG.integers(10, size=num))
        return centers[label] + RNG.standard_normal((num, 8))

    def summary(x):
        def features(images):
            return {"pool": current["x"], "logits": current["x"]}

        current, made = {}, Summary(Space.of((1, 1, 1)), features)
        for part in np.array_split(x, 20):
            current["x"] = part
            made.add(np.zeros((len(part), 1, 1, 1), np.float32))
        return made

    def figures(data, samples):
        both = metrics.Comparison(
            summary(samples), Reference.of(summary(data)), data[:1], {}
        )
        return np.array(
            [m.compute(both) for m in metrics.every() if m.name in NAMES], np.float64
        )

    data, samples = examples(4000), RNG.permutation(examples(4000))
    by_class = figures(data, samples)
    shuffled = [figures(RNG.permutation(data), samples) for _ in range(8)]
    error = np.std(shuffled, axis=0, ddof=1)
    assert np.all(np.abs(by_class - np.mean(shuffled, axis=0)) < 4 * error + 1e-3)
    # A prefix alone, as it used to be, is far off.
    prefix = figures(data[:400], samples)
    assert np.max(np.abs(prefix - by_class) / error) > 20


NAMES = ("kid", "precision", "recall")


@pytest.mark.parametrize("dimensions", [3, 40, 300])
def test_moments_of_few_examples_are_those_of_any(dimensions):
    a, b = RNG.standard_normal((2, 20, dimensions))
    b = 0.5 * b + 1.0
    full = [
        Moments(x.mean(0), np.cov(x, rowvar=False).reshape(dimensions, dimensions))
        for x in (a, b)
    ]
    expected = frechet_distance(*full)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(Moments.of(a), full[1]) == pytest.approx(expected, rel=1e-9)
    found = Moments.of(a)
    np.testing.assert_allclose(found.covariance, full[0].covariance, atol=1e-12)
    assert found.spread == pytest.approx(np.trace(full[0].covariance))


def test_few_examples_of_many_values_cost_what_they_are():
    a, b = RNG.standard_normal((2, 16, 200_000)).astype(np.float32)
    # A covariance would be 320 GB.
    found = frechet_distance(a, b)
    assert found == pytest.approx(2 * 200_000 * (1 + 1 / 16), rel=0.05)


def test_signed_sums_keep_distances_in_the_mean():
    x = RNG.standard_normal((2, 5000)) + 0.3
    assert signed_sums(x, 5000) is x
    sums = signed_sums(x, 512)
    assert sums.shape == (2, 512)
    np.testing.assert_array_equal(sums, signed_sums(x, 512))
    squared = np.sum(np.square(x[0] - x[1]))
    found = [
        np.sum(np.square(np.subtract(*signed_sums(x, 512, seed)))) for seed in range(40)
    ]
    error = np.std(found) / np.sqrt(len(found))
    assert np.mean(found) == pytest.approx(squared, abs=4 * error)
    # Linear: the mean of sums is the sum of means.
    np.testing.assert_allclose(
        signed_sums(x.mean(0, keepdims=True), 512)[0], sums.mean(0), atol=1e-9
    )


def test_large_examples_are_summed_up():
    space = Space.of((65_536, 1), "signals")
    a, b, far = (Summary(space) for _ in range(3))
    for made, shift in ((a, 0.0), (b, 0.0), (far, 1.0)):
        for _ in range(4):
            x = RNG.standard_normal((32, 65_536, 1)) + shift
            made.add(x.astype(np.float32))
    assert a.pixels.mean.shape == (summaries.VALUES,)
    content = Reference.of(a).to_bytes()
    assert len(content) < 10e6
    again = Reference.from_bytes(content)
    near = frechet_distance(again.pixels, b.pixels)
    distance = frechet_distance(again.pixels, far.pixels)
    assert distance - near == pytest.approx(65_536, rel=0.2)


def test_statistics_beside_large_arrays_are_read(tmp_path, monkeypatch):
    """A limit holds for what is read: ADM's files hold 2 GB of pictures, too."""
    path = tmp_path / "reference.npz"
    mu, sigma = np.zeros(8), np.eye(8)
    np.savez_compressed(path, arr_0=np.zeros((3000, 1000)), mu=mu, sigma=sigma)
    monkeypatch.setattr(files.read_npz, "__defaults__", (None, 100_000))
    moments = metrics.load_statistics(path)
    np.testing.assert_array_equal(moments.covariance, sigma)
    with pytest.raises(Refused, match="of at most"):
        files.read_npz(path)
    np.savez(path, arr_0=mu, mu=mu)
    with pytest.raises(Refused, match='no array "sigma"'):
        metrics.load_statistics(path)


def test_what_a_metric_needs_at_least_is_said():
    least = {metric.name: metric.least for metric in metrics.every()}
    with pytest.raises(ValueError, match="at least 4"):
        metrics.precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))
    assert least["precision"] == least["recall"] == 4


def test_too_few_samples_are_refused_at_the_start():
    config = configs.default("digits", "mlp")
    config.eval.update(num_samples=3, paired_samples=2)
    dataset = data.get("digits")
    setup._check_numbers(config, dataset)
    config.eval.inception = "weights.npz"
    with pytest.raises(Refused, match=r"eval\.num_samples=3: precision needs 4"):
        setup._check_numbers(config, dataset)
    config.eval.update(num_samples=100, num_reference=3)
    with pytest.raises(Refused, match="num_reference=3, of 1500 examples: precision"):
        setup._check_numbers(config, dataset)


def test_a_metric_that_fails_costs_its_figure_alone(capsys):
    def fail(both):
        raise MemoryError("32 GiB")

    made = [
        metrics.Metric("good", "good", lambda both: 1.5, str),
        metrics.Metric("bad", "bad", fail, str),
        metrics.Metric("last", "last", lambda both: 2.5, str),
    ]
    both = metrics.Comparison(None, None, np.zeros((2, 1)), {})
    values, errors = values_of(both, made)
    assert values == {"good": 1.5, "last": 2.5}
    assert errors == ["bad: MemoryError: 32 GiB"]
    assert "Traceback" in capsys.readouterr().out
