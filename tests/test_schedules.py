import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pd_jax import schedules


def closed_form(t, low=-20.0, high=20.0):
    """The formula of the paper's appendix D, in float64."""
    t = np.asarray(t, np.float64)
    b = np.arctan(np.exp(-0.5 * high))
    a = np.arctan(np.exp(-0.5 * low)) - b
    return -2.0 * np.log(np.tan(a * t + b))


@pytest.mark.parametrize(("low", "high"), [(-20.0, 20.0), (-10.0, 15.0), (-6.0, 4.0)])
def test_cosine_equals_its_formula_in_float64_at_float32_precision(low, high):
    t = np.linspace(0.0, 1.0, 4097, dtype=np.float32)
    found = schedules.cosine(low, high)(t)
    assert found.dtype == jnp.float32
    # |logsnr| goes up to 20, where one float32 unit is 2e-6; at the ends d logsnr / dt
    # is 7e4, so t's own float32 grid is the limit there.
    np.testing.assert_allclose(found, closed_form(t, low, high), rtol=2e-6, atol=4e-6)


def test_ends_are_exact(cosine):
    assert float(cosine(jnp.float32(0.0))) == pytest.approx(20.0, abs=1e-5)
    assert float(cosine(jnp.float32(1.0))) == pytest.approx(-20.0, abs=1e-5)


def test_angle_and_logsnr_are_one_noise_level(cosine):
    with jax.enable_x64(True):
        t = jnp.linspace(0.0, 1.0, 1001)
        phi = cosine.angle(t)
        np.testing.assert_allclose(phi, np.arctan(np.exp(-0.5 * cosine(t))), rtol=1e-11)
        np.testing.assert_allclose(np.diff(phi), np.diff(phi)[0], rtol=1e-9)


def test_any_shape_and_falling(cosine):
    t = np.linspace(0.0, 1.0, 24, dtype=np.float32)
    chex.assert_shape(cosine(t.reshape(2, 3, 4)), (2, 3, 4))
    assert np.all(np.diff(cosine(t)) < 0)
    assert cosine(1).shape == ()


def test_released_values(cosine, vectors):
    # The last value of the reference is float32 round-off of the steep end.
    found = cosine(vectors["t"])
    np.testing.assert_allclose(found[:-1], vectors["logsnr"][:-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[-1], vectors["logsnr"][-1], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "kw", "says"),
    [
        ("cosin", {}, 'Did you mean "cosine"'),
        ("cosine", {"logsnr_min": 20.0}, "must be below"),
        ("cosine", {"logsnr_max": float("nan")}, "not finite"),
        ("cosine", {"logsnr_mni": 1.0}, "logsnr_mni"),
    ],
)
def test_wrong_schedules(name, kw, says):
    with pytest.raises(ValueError, match=says):
        schedules.get(name, **kw)
