"""Checkpoints of a state that nobody has trained: writing, failing, sealing."""

import pathlib
import resource
import shutil
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pd_jax import checkpoint
from pd_jax.checkpoint import StageCheckpoints, checksum
from pd_jax.training.stage import Stage
from pd_jax.training.state import Trained, TrainState
from tests.test_damage import flip, largest

STAGE = Stage("teacher", 0, 0, 40, 1e-3)


def state(update):
    rng = np.random.default_rng(update)  # zeros would take no room
    weights = {str(i): jnp.float32(rng.normal(size=(100, 100))) for i in range(4)}
    moments = {"mu": weights, "nu": weights}
    model = Trained(weights, {}, moments)
    return TrainState(jnp.int32(update), STAGE.values(), {"model": model})


class METHOD:
    @staticmethod
    def result(state):
        return {"model": state.model.weights}


def opened(folder):
    return StageCheckpoints(folder, STAGE)


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path)


@pytest.fixture
def saved(workdir):
    """A folder with checkpoints of updates 5 and 10."""
    with opened(workdir) as kept:
        kept.save(state(5), METHOD, {})
        kept.save(state(10), METHOD, {"seconds": 1.0})
    return workdir


@pytest.fixture
def no_room():
    """Lets no file become longer than some bytes, as a quota would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def until(condition):
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("size", [0, 64, 300, 3000, 30_000])
def test_a_write_that_fails_is_told_soon_and_leaves_nothing(
    saved, no_room, capsys, size
):
    before = threading.active_count()

    def write():
        with opened(saved) as kept:
            no_room(size)
            kept.save(state(15), METHOD, {})
            until(lambda: kept.check() or False)

    with pytest.raises(OSError, match=r"teacher: checkpoint not written .* goes on"):
        write()
    until(lambda: threading.active_count() <= before)  # nothing waits for ever
    assert sorted(p.name for p in (saved / "checkpoints" / "teacher").iterdir()) == [
        "10",
        "5",
    ]
    no_room(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    with opened(saved) as kept:
        assert kept.updates == 10
        kept.save(state(15), METHOD, {})
        assert kept.damage() is None
    assert checksum.made(saved / "checkpoints" / "teacher" / "15")


def test_no_room_is_told_before_anything_is_written(saved, monkeypatch):
    usage = shutil.disk_usage(saved)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    says = r"no room: it takes 0\.5 MB, and 0\.1 MB are free"
    with opened(saved) as kept, pytest.raises(OSError, match=says):
        kept.save(state(15), METHOD, {})
    assert len(list((saved / "checkpoints" / "teacher").iterdir())) == 2


def test_what_is_written_is_sealed_without_another_one_after_it(workdir):
    with opened(workdir) as kept:
        kept.save(state(5), METHOD, {})
        until(lambda: checksum.made(kept.newest))
        assert kept.damage() is None


def test_what_was_not_sealed_is_sealed_when_it_is_read(saved):
    place = saved / "checkpoints" / "teacher" / "10"
    for left in (None, b'{"facts'):  # killed before sealing, or in the middle of it
        (place / checksum.NAME).unlink()
        if left is not None:
            (place / checksum.NAME).write_bytes(left)
        with opened(saved) as kept:
            read, facts = kept.restore(shapes(state(10)), METHOD)
        np.testing.assert_array_equal(
            read.model.params["3"], state(10).model.params["3"]
        )
        assert facts["seconds"] == 1.0
        assert checksum.made(place)
        assert checksum.damage(place) is None
    flip(largest(pathlib.Path(place / "state" / "d")))
    with opened(saved) as kept, pytest.raises(checkpoint.Damaged, match="10 is damag"):
        kept.restore(shapes(state(10)), METHOD)


def shapes(tree):
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), tree
    )
