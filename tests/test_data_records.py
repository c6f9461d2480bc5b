"""Records through Grain: order, parts, places, workers, errors."""

import collections
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pd_jax.data._records import Records
from pd_jax.runtime.errors import Refused


class Encoded:
    """`num` PNGs of 6 x 8: level i on the left, 255 in the right-most columns."""

    def __init__(self, num, broken=()):
        self.records = []
        for i in range(num):
            pixels = np.full((6, 8, 3), i, np.uint8)
            pixels[:, -4:] = 255
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            data = file.getvalue()[: 60 if i in broken else None]
            self.records.append({"image": data, "label": i % 3})

    def __str__(self):
        return "made-up pictures"

    def __len__(self):
        return len(self.records)

    def __getitem__(self, row):
        return self.records[row]

    @property
    def labels(self):
        return np.array([record["label"] for record in self.records], np.int32)


NUM = 80  # Grain's shuffle takes long over a handful
SMALL = Records(Encoded(NUM), (6, 6, 3), num_classes=3, flip=True)


def rows(batch):
    """Which records a batch holds, whichever way round they are."""
    return np.rint((batch["image"].min((1, 2, 3)) + 1) * 127.5).astype(int)


def draw(dataset, first, size, num=1, seed=(1,), part=(0, 1), workers=0):
    """`num` batches, one after the other, as one."""
    batches = dataset.batches(first, size, seed, part, workers)
    drawn = [next(batches) for _ in range(num)]
    batches.close()
    return {key: np.concatenate([b[key] for b in drawn]) for key in drawn[0]}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def test_batches_are_as_the_contract_says():
    batch = next(SMALL.batches(0, 4, (0,)))
    assert batch["image"].shape == (4, *SMALL.shape)
    assert batch["image"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    assert type(batch["image"]) is type(batch["label"]) is np.ndarray
    assert batch["image"].max() == 1.0
    assert batch["image"].min() >= -1.0
    np.testing.assert_array_equal(batch["label"], rows(batch) % 3)
    unlabelled = Records(SMALL.source, (6, 6, 3))
    assert set(next(unlabelled.batches(0, 4, (0,)))) == {"image"}
    assert unlabelled.draw_labels(np.random.default_rng(0), 3) is None


def test_every_epoch_visits_all_in_an_order_of_its_own():
    epochs = rows(draw(SMALL, 0, 3 * NUM)).reshape(3, NUM)
    for epoch in epochs:
        assert collections.Counter(epoch.tolist()) == collections.Counter(range(NUM))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0], rows(draw(SMALL, 0, NUM, seed=(2,))))
    assert not np.array_equal(epochs[0], rows(draw(SMALL, 0, NUM, seed=(1, 2))))


def test_what_comes_is_a_function_of_the_place():
    whole = draw(SMALL, 0, 2 * NUM)
    for first, size, num in [(0, 6, 20), (7, 1, 5), (72, 16, 3), (25, 100, 1)]:
        stop = first + size * num
        part = {key: value[first:stop] for key, value in whole.items()}
        same(draw(SMALL, first, size, num), part)
    far = 2**33
    same(draw(SMALL, far, 4, 2), draw(SMALL, far, 8))


def test_parts_make_up_the_global_batch():
    whole = draw(SMALL, 5, 8, 3)
    for count in (2, 4):
        parts = [draw(SMALL, 5, 8, 3, part=(i, count)) for i in range(count)]
        joined = {
            key: np.concatenate(
                [p[key].reshape(3, 8 // count, *p[key].shape[1:]) for p in parts], 1
            ).reshape(whole[key].shape)
            for key in whole
        }
        same(joined, whole)


def test_half_are_mirrored():
    batch = draw(SMALL, 0, 400)
    plain = SMALL.take(rows(batch))["image"]
    mirrored = batch["image"][:, 0, 0, 0] == 1.0
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(
        batch["image"],
        np.where(mirrored[:, None, None, None], plain[:, :, ::-1], plain),
    )
    # An example is not the same way round in all of the five epochs.
    assert len({*zip(rows(batch), mirrored)}) > 1.8 * NUM
    straight = Records(SMALL.source, (6, 6, 3))
    assert np.all(draw(straight, 0, 100)["image"][:, 0, 0, 0] < 1.0)


def test_take_and_labels():
    batch = SMALL.take(np.array([7, 0, 7]))
    np.testing.assert_array_equal(rows(batch), [7, 0, 7])
    np.testing.assert_array_equal(batch["label"], [1, 0, 1])
    assert batch["label"].dtype == np.int32
    labels = SMALL.draw_labels(np.random.default_rng(0), 5000)
    assert labels.dtype == np.int32
    shares = np.bincount(labels) / 5000
    np.testing.assert_allclose(shares, 1 / 3, atol=0.03)
    assert SMALL.label_counts().tolist() == [27, 27, 26]


def test_a_broken_record_is_named():
    broken = Records(Encoded(NUM, broken=[4]), (6, 6, 3))
    for attempt in (lambda: broken.take(np.arange(9)), lambda: draw(broken, 0, NUM)):
        with pytest.raises(ValueError, match="made-up pictures: record 4 does not dec"):
            attempt()
    assert len(broken.take(np.array([3, 5]))["image"]) == 2


def test_a_label_of_a_class_that_there_is_not_is_named():
    two = Records(SMALL.source, (6, 6, 3), num_classes=2)
    assert len(two.take(np.array([0, 1, 3]))["label"]) == 3
    with pytest.raises(Refused, match=r"record 2 has label 2, and there are 2 classes"):
        two.take(np.arange(3))
    with pytest.raises(Refused, match=r"record 2 has label 2, and there are 2 classes"):
        two.draw_labels(np.random.default_rng(0), 3)


class Cut(Encoded):
    def __getitem__(self, row):
        if row == 4:
            raise IndexError("the file is shorter than its index")
        return super().__getitem__(row)


def test_a_record_that_cannot_be_read_is_named():
    cut = Records(Cut(NUM), (6, 6, 3))
    for attempt in (lambda: cut.take(np.arange(9)), lambda: draw(cut, 0, NUM)):
        with pytest.raises(Refused, match=r"made-up pictures: record 4 cannot .*short"):
            attempt()


@pytest.mark.slow
def test_a_worker_that_dies_is_told():
    batches = SMALL.batches(0, 4, (0,), workers=1)
    next(batches)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(OSError, match=r"made-up pictures: reading .*data_workers"):
        collections.deque(batches, maxlen=0)


SMALL_SHARED_MEMORY = """
mount -t tmpfs -o size=$1 tmpfs /dev/shm || exit 77
exec "$2" -c "
from tests.test_data_records import *
wide = Records(Encoded(NUM), (64, 64, 3))
draw(wide, 0, NUM, 20, workers=2)
"
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "2m"])  # at the start, and later
def test_shared_memory_that_is_full_is_told(size):
    command = ["unshare", "-m", "bash", "-c", SMALL_SHARED_MEMORY, "-", size]
    done = subprocess.run(
        [*command, sys.executable],
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        capture_output=True,
        text=True,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("nothing can be mounted here")
    says = "OSError: made-up pictures: reading with run.data_workers=2 ended"
    assert says in done.stderr
    assert "Memory or /dev/shm (" in done.stderr


def test_worker_processes_give_the_same():
    expected = draw(SMALL, 3, 4, 5, part=(1, 2))
    same(draw(SMALL, 3, 4, 5, part=(1, 2), workers=2), expected)


@pytest.mark.slow
def test_one_worker_process_and_many_give_the_same():
    expected = draw(SMALL, 3, 4, 9)
    for workers in (1, 3):
        same(draw(SMALL, 3, 4, 9, workers=workers), expected)


@pytest.mark.slow
def test_a_broken_record_is_named_by_a_worker():
    broken = Records(Encoded(NUM, broken=[4]), (6, 6, 3))
    with pytest.raises(ValueError, match="made-up pictures: record 4 does not decode"):
        draw(broken, 0, NUM, workers=1)


PARENT = """
import sys
sys.path.insert(0, {here!r})
from test_data_records import SMALL
import multiprocessing
if __name__ == "__main__":
    batches = SMALL.batches(0, 4, (0,), workers=2)
    next(batches)
    print(*[p.pid for p in multiprocessing.active_children()], flush=True)
    {then}
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("then", ["input()", "batches.close(); input()", "pass"])
def test_workers_end(tmp_path, then):
    here = os.path.dirname(os.path.abspath(__file__))
    program = tmp_path / "program.py"
    program.write_text(PARENT.format(here=here, then=then))
    with subprocess.Popen(
        [sys.executable, "-W", "error", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.path.dirname(here)},
    ) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        for pid in (
            workers if then == "input()" else []
        ):  # as a whole group would be told
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
            assert alive(pid)
        if then == "input()":
            parent.kill()
        deadline = time.monotonic() + 60
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(map(alive, workers))
        _, errors = parent.communicate(input="\n", timeout=60)
        assert errors == ""
