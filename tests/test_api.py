"""The ladder for a caller's own model: what it takes, leaves, refuses and tells."""

import dataclasses
import io
import itertools
import json
import sys
from concurrent import futures
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tensorboardX.proto import event_pb2

import pd_jax
from pd_jax import conventions, samplers
from pd_jax.config import default
from pd_jax.data import InMemory
from pd_jax.data._stream import Stream
from pd_jax.models import Function, Model
from pd_jax.reports import samples, trackers
from pd_jax.runtime import numerics, processes
from pd_jax.runtime.errors import NotFinite, Refused
from pd_jax.space import Space
from pd_jax.training.callbacks import Callbacks

SHAPE = (4, 4, 1)
IMAGES = np.random.default_rng(0).uniform(-1.0, 1.0, (64, *SHAPE)).astype(np.float32)
LABELS = np.arange(64) % 3
KEYS = dict(
    output="flow",
    start=4,
    updates=6,
    eval=dict(num_samples=16, paired_samples=8, reference_steps=8, num_reference=40),
    run=dict(checkpoint_updates=4, log_updates=2, eval_batch=16, tensorboard=True),
)


def apply(params, z, s, label):
    """A pytree that is no dict, in a convention with a level of its own."""
    first, second = params
    h = z.reshape(z.shape[0], -1) @ first["w"] + s[:, None] + first["labels"][label]
    return (jnp.tanh(h) @ second).reshape(z.shape)


def weights(seed=0):
    rng = np.random.default_rng(seed)
    first = {"w": rng.standard_normal((16, 8)) / 4.0, "labels": np.zeros((3, 8))}
    return [first, jnp.asarray(rng.standard_normal((8, 16)), jnp.bfloat16)]


def batches(first):
    for number in itertools.count(first):
        rows = (8 * number + np.arange(8)) % 64
        yield {"image": IMAGES[rows], "label": LABELS[rows]}


class Told:
    def __init__(self, workdir):
        self.events, self.closed, self.board = [], 0, workdir / "tensorboard"

    def on_start(self, stage, update):
        self.events.append(("start", stage, update))

    def on_metrics(self, entry):
        self.events.append(("metrics", entry["stage"], entry["update"]))

    def on_student(self, student):
        self.events.append(("student", student.num_steps))

    def on_row(self, entry, samples):
        assert samples.shape == (16, *SHAPE)
        self.events.append(("row", entry["model"], entry["num_steps"]))

    def flush(self):
        stage = self.events[-1][1]
        told = [e[2] for e in self.events if e[:2] == ("metrics", stage)]
        assert losses(self.board / stage) == told  # before the checkpoint is made

    def close(self):
        self.closed += 1


class Stop(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("api") / "mine"
    told = Told(workdir)
    students = pd_jax.distil(
        apply, weights(), batches, workdir, callbacks=[told], **KEYS
    )
    return workdir, students, told


def test_students_that_sample(whole):
    workdir, students, _ = whole
    assert list(students) == [2, 1]
    report = json.loads((workdir / "report.json").read_text())
    assert report["config"] == "mine"
    found = {(r["model"], r["num_steps"]): r["metrics"] for r in report["rows"]}
    assert set(found) == {(m, n) for m in ("teacher", "student") for n in (2, 1)} | {
        ("teacher", 4)
    }
    structure = jax.tree.structure(weights())
    for steps, student in students.items():
        assert student.num_steps == steps
        assert student.metrics == found["student", steps]
        assert jax.tree.structure(student.params) == structure
        images = student.sample(jax.random.key(0), 3, label=2)
        assert images.shape == (3, *SHAPE)
        assert images.dtype == np.uint8
    assert student.num_classes == 3


class Net(nnx.Module):
    """A tuple of layers."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.layers = nnx.data(
            (nnx.Linear(7, 8, rngs=rngs), nnx.Linear(8, 6, rngs=rngs))
        )

    def __call__(self, z, level):
        first, second = self.layers
        inputs = jnp.concatenate([z, level[:, None]], axis=-1)
        return second(jnp.tanh(first(inputs)))


@pytest.mark.slow
def test_nnx_modules_their_state_and_tuples_are_weights(tmp_path):
    graph, state = nnx.split(Net())
    arrays = tuple(jax.tree.leaves(state))
    structure = jax.tree.structure(state)
    given = {
        "module": (lambda params, z, s, label: params(z, s), Net()),
        "state": (lambda params, z, s, label: nnx.merge(graph, params)(z, s), state),
        "tuple": (
            lambda params, z, s, label: nnx.merge(
                graph, jax.tree.unflatten(structure, params)
            )(z, s),
            arrays,
        ),
    }
    points = [IMAGES.reshape(64, 16)[:, :6]]
    keys = KEYS | dict(start=2, updates=2)
    samples = {}
    for name, (function, params) in given.items():
        students = pd_jax.distil(function, params, points, tmp_path / name, **keys)
        assert type(students[1].params) is type(params)
        samples[name] = students[1].sample(jax.random.key(0), 5)
    np.testing.assert_array_equal(samples["module"], samples["state"])
    np.testing.assert_array_equal(samples["module"], samples["tuple"])


def test_students_in_a_file(whole, tmp_path):
    student = whole[1][2]
    student.save(tmp_path / "mine.safetensors")
    fixed = dataclasses.replace(
        student, model=Model(Function(lambda params, z, s, label: z[: len(z)], 3), "v")
    )
    with pytest.raises(ValueError, match=r"z\.shape\[0\] in place of len\(z\)"):
        fixed.program()
    with pytest.raises(Refused, match=r"pd_jax\.load\(path, apply="):
        pd_jax.load(tmp_path / "mine.safetensors")

    def named(params, z, s, label):  # a file has names, and no other structure
        first, second = params["0"], params["1"]
        return apply([first, second], z, s, label)

    model = Model(Function(named, 3), "flow")
    loaded = pd_jax.load(tmp_path / "mine.safetensors", model=model)
    given = jax.random.key(1), 3
    np.testing.assert_array_equal(loaded.sample(*given), student.sample(*given))
    loaded = pd_jax.load(tmp_path / "mine.safetensors", apply=apply)
    np.testing.assert_array_equal(loaded.sample(*given), student.sample(*given))


def test_students_by_the_program_in_their_file(whole, tmp_path):
    student, file = whole[1][2], tmp_path / "mine.safetensors"
    student.save(file)
    loaded = pd_jax.load(file, program=True)
    assert (loaded.digest, loaded.metrics) == (student.digest, student.metrics)
    key = jax.random.key(1)
    for given in ((key, 3), (key, 5, 2), (key, 3, [0, 2, 1])):
        both = loaded.sample(*given), student.sample(*given)
        assert np.abs(np.int32(both[0]) - np.int32(both[1])).max() <= 1
    with pytest.raises(Refused, match="made for 2"):
        loaded.sample(key, 3, num_steps=1, force=True)
    with pytest.raises(Refused, match="its program's sampler is ddim"):
        loaded.sample(key, 3, sampler="heun", force=True)
    with pytest.raises(Refused, match="a program is in a bundle"):
        pd_jax.load(whole[0], program=True)
    samples.sample(str(file), str(tmp_path / "four.npz"), 4, program=True)
    with np.load(tmp_path / "four.npz") as saved:
        assert saved["arr_0"].shape == (4, 4, 4, 3)


def test_students_in_a_folder(whole):
    workdir, students, _ = whole
    with pytest.raises(Refused, match=r"pd_jax\.load\(FOLDER, apply=\.\.\.\)"):
        pd_jax.load(workdir, 2)
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    for steps, student in students.items():
        loaded = pd_jax.load(workdir, steps, apply=apply)
        assert jax.tree.structure(loaded.params) == jax.tree.structure(weights())
        assert loaded.digest == student.digest
        assert loaded.metrics == student.metrics
        given = jax.random.key(1), 3, 2
        np.testing.assert_array_equal(loaded.sample(*given), student.sample(*given))
    after = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert after == before


def test_what_a_callback_is_told(whole):
    told = whole[2]
    stage = [("start", "student_2", 0)]
    stage += [("metrics", "student_2", n) for n in (2, 4, 6)] + [("student", 2)]
    assert told.events[:5] == stage
    rows = [e[1:] for e in told.events if e[0] == "row"]
    assert rows == [("teacher", n) for n in (4, 2, 1)] + [
        ("student", 2),
        ("student", 1),
    ]
    assert told.closed == 1


def test_called_again_it_reads_the_students(whole, capsys):
    workdir, students, _ = whole
    again = pd_jax.distil(apply, weights(), batches, workdir, **KEYS)
    assert "nothing to do" in capsys.readouterr().out
    for steps, student in students.items():
        assert student.metrics == again[steps].metrics
        jax.tree.map(np.testing.assert_array_equal, student.params, again[steps].params)


def test_a_folder_is_for_the_weights_that_it_was_made_with(whole):
    with pytest.raises(Refused, match=r"teacher\.released: sha256:\w+ -> sha256:"):
        pd_jax.distil(apply, weights(1), batches, whole[0], **KEYS)


def events(folder):
    """TensorBoard's view of a run's files: a later start voids the steps beyond it."""
    found = []
    for path in sorted(folder.glob("events*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = event_pb2.Event.FromString(content[at + 12 : at + 12 + size])
            at += size + 16
            if event.HasField("session_log"):
                found = [e for e in found if e[1] < event.step]
            found += [(value.tag, event.step) for value in event.summary.value]
    return found


def losses(folder):
    return [step for tag, step in events(folder) if tag == "loss"]


def test_stopped_and_gone_on_with_the_same_bits(whole, tmp_path):
    def stop_at(stage, update):
        def told(entry):
            if (entry["stage"], entry["update"]) == (stage, update):
                raise Stop

        return told

    def go(*callbacks):
        given = apply, weights(), batches, tmp_path / "run"
        return pd_jax.distil(*given, callbacks=callbacks, **KEYS)

    for stage, update in (("student_2", 6), ("student_1", 2)):
        with pytest.raises(Stop):
            go(stop_at(stage, update))
    told = Told(tmp_path / "run")
    students = go(told)
    assert told.events[0] == ("start", "student_1", 0)
    for steps, student in students.items():
        jax.tree.map(
            np.testing.assert_array_equal, student.params, whole[1][steps].params
        )
    for workdir in (whole[0], tmp_path / "run"):
        board = workdir / "tensorboard"
        for stage in ("student_2", "student_1"):
            assert losses(board / stage) == [2, 4, 6]
        rows = events(board / "rows" / "student")
        assert {("samples", 1), ("frechet_pixels", 2)} <= set(rows)
        assert len(set(rows)) == len(rows)


def test_batches_that_end_too_soon_leave_what_was_made(tmp_path):
    given = apply, weights(), itertools.islice(batches(0), 11), tmp_path / "run"
    with pytest.raises(Refused, match="end at number 11, and the run takes 12"):
        pd_jax.distil(*given, **KEYS)
    assert (tmp_path / "run" / "checkpoints" / "student_2" / "6").is_dir()


class Length:
    """What has a length alone."""

    def __len__(self):
        return 60


def no_batches(first):
    raise AssertionError("read in spite of a mistake")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"updatse": 3}, 'unknown argument "updatse".*Did you mean "updates"'),
        ({"eval": {"num_sample": 3}}, 'unknown key of eval.*"num_samples"'),
        ({"eval": 3}, "eval=3: give a dict"),
        ({"updates": "many"}, "updates"),
        ({"start": 3}, "power of factor"),
        ({"start": None}, "argument start=None"),
        ({"start": 0}, "start is missing: the steps of the teacher's sampler"),
        ({"apply": lambda params, z, s: z}, r"called with \(params, z, level, label\)"),
        ({"apply": nnx.Linear(1, 1, rngs=nnx.Rngs(0))}, r"Linear that .*nnx\.split\("),
        ({"params": nnx.Dropout(0.1, rngs=nnx.Rngs(0))}, r"rngs.*nnx\.Param, \.\.\."),
        ({"params": {}}, r"params is \{\}, without any weights"),
        ({"output": "velocity"}, 'unknown output kind "velocity"'),
        ({"dropout": 0.1}, "dropout"),
        ({"config": default("digits", "mlp")}, 'default."given", "given".'),
        ({"callbacks": [3]}, "callback 3: give a function"),
        ({"batches": 3}, "batches are int"),
        ({"batches": InMemory(IMAGES, LABELS), "num_classes": 2}, "data set has 3"),
        ({"batches": {"image": IMAGES}}, "batches are dict: give a list of them"),
        ({"batches": []}, "not one batch"),
        ({"batch": 16}, "batch=16, but the batches hold 8"),
        ({"batches": InMemory(IMAGES, LABELS), "batch": 9}, "batch=9 is not divisible"),
        ({"params": [{"w": np.arange(3)}]}, r"params\[0\]\['w'\] is int"),
        ({"params": {"w": np.full(3, np.nan)}}, "not finite"),
        ({"params": {"w": apply}}, "is function: give floating-point arrays"),
        ({"params": {"w": np.zeros((0, 3))}}, r"shape \(0, 3\), so no values"),
        ({"params": {"a/b": np.ones(1), "a": {"b": np.ones(1)}}}, '2 weights .*"a/b"'),
        ({"batches": Length()}, "batches are Length: give .* __getitem__ and __len__"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(changes, words, tmp_path):
    given = dict(apply=apply, params=weights(), batches=batches) | KEYS | changes
    with pytest.raises(Refused, match=words):
        pd_jax.distil(workdir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_another_thread_is_refused(tmp_path):
    with futures.ThreadPoolExecutor() as pool:
        given = apply, weights(), no_batches, tmp_path / "run"
        call = pool.submit(pd_jax.distil, *given, **KEYS)
        with pytest.raises(Refused, match="main thread"):
            call.result()


def test_an_output_of_another_shape_shows_at_once(tmp_path):
    with pytest.raises(ValueError, match="shape"):
        pd_jax.distil(
            lambda params, z, s, label: z[..., :1, 0],
            weights(),
            batches,
            tmp_path / "run",
            **KEYS,
        )
    assert not (tmp_path / "run").exists()


def stages(*updates):
    return {(1, i): num for i, num in enumerate(updates)}


def take(stream, stage=0, first=0, num=3, part=(0, 1)):
    found = stream.batches(first * stream.size, stream.size, (0, 1, stage), part)
    return [batch["image"][:, 0] for batch in itertools.islice(found, num)]


def numbered(first=0, end=100):
    for number in range(first, end):
        yield np.full((4, 1), number / 100.0, np.float16)


def places(found):
    return [round(100 * float(x[0])) for x in found]


def test_an_iterator_goes_on_over_the_stages_and_nothing_of_it_is_lost():
    stream = Stream(numbered(), updates=stages(3, 5), num_kept=6)
    assert len(stream) == 6  # of two batches, which are learnt from all the same
    assert stream.shape == (1,)
    # Two more are taken ahead than the stage has updates.
    assert places(take(stream, stage=0, num=5))[:3] == [0, 1, 2]
    assert places(take(stream, stage=1, num=5)) == [3, 4, 5, 6, 7]
    # A run that goes on takes what comes, and this is known at its start.
    assert stream.forgets
    assert places(take(Stream(numbered(), stages(3, 5), 4), stage=1, first=2)) == [
        0,
        1,
        2,
    ]


def test_a_function_is_asked_for_the_batches_of_a_place():
    stream = Stream(numbered, updates=stages(3, 5), num_kept=4)
    assert places(take(stream, stage=1, first=2)) == [5, 6, 7]
    assert places(take(stream, stage=0, first=1, num=2)) == [1, 2]
    some = Stream(lambda n: numbered(n, n + 2), updates=stages(5), num_kept=4)
    assert places(take(some, num=5)) == [0, 1, 2, 3, 4]


def test_what_is_no_iterator_is_started_over():
    stream = Stream(list(numbered(end=2)), updates=stages(5), num_kept=8)
    assert places(take(stream, num=5)) == [0, 1, 0, 1, 0]


class Indexed:
    """What has numbers and a length alone."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, number):
        return self.batches[number]


class Loader:
    """What can only be read from its start, and may know its length."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)


class Sized(Loader):
    def __len__(self):
        return len(self.batches)


@pytest.mark.parametrize("kind", [list, Indexed, Loader, Sized])
def test_stopped_at_random_each_batch_is_used_as_often_as_without(kind):
    """Two stages of 70 and 80 updates, 60 batches, four stops; 8 examples are kept."""
    source, updates, taken = kind(numbered(end=60)), (70, 80), []
    assert not Stream(source, stages(*updates), 8).forgets
    stops = sorted(np.random.default_rng(0).choice(np.arange(1, 150), 4, replace=False))
    for begin, end in itertools.pairwise([0, *stops, 150]):
        stream = Stream(source, stages(*updates), 8)  # of a new process
        for stage, first in ((0, 0), (1, 70)):
            low, high = max(begin, first), min(end, first + updates[stage])
            if low < high:
                place = stage, low - first
                taken += places(take(stream, *place, num=high - low))
    assert taken == [number % 60 for number in range(150)]


def test_a_second_training_goes_on_behind_the_first():
    updates = {(1, 0): 3, (1, 1): 2, (3, 0): 4}
    stream = Stream(numbered, updates, 4)
    batches = stream.batches(stream.size, stream.size, (0, 3, 0))
    found = [batch["image"][:, 0] for batch in itertools.islice(batches, 3)]
    assert places(found) == [6, 7, 8]


def test_a_loader_that_a_plateau_left_early_is_read_on_to_the_next_stage():
    stream = Stream(Loader(numbered(end=9)), stages(5, 3), 4)
    assert places(take(stream, num=2)) == [0, 1]
    assert places(take(stream, stage=1)) == [5, 6, 7]


def test_an_iterator_says_at_the_start_that_it_has_no_place(tmp_path, capsys):
    given = apply, weights(), batches(0), tmp_path / "run"
    keys = KEYS | {"updates": 2, "start": 2}
    pd_jax.distil(*given, **keys)
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("batches are an iterator, which cannot be asked") == 1


def test_processes_take_their_parts_of_a_batch():
    rows = np.arange(8, dtype=np.float32)[:, None] / 8.0
    parts = [take(Stream([rows], stages(1), 4), num=1, part=(i, 2))[0] for i in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(parts), rows[:, 0])


def test_the_callers_own_arrays_may_change():
    mine = np.zeros((4, 1), np.float32)
    (taken,) = take(Stream([mine], stages(1), 4), num=1)
    mine += 1.0
    assert not taken.any()


def test_bytes_become_numbers():
    stream = Stream([np.array([[0], [255]], np.uint8)], stages(1), 2)
    np.testing.assert_array_equal(stream.take(np.arange(2))["image"], [[-1.0], [1.0]])


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.full((4, 2, 2, 1), 2.0), r"go up to 2: scale them to \[-1, 1\]"),
        (np.full((4, 1), np.inf), "not finite"),
        (np.full((4, 1), 1e300), "beyond float32"),
        (np.zeros((4, 8, 8), np.uint8), r"are no pictures.* or change their shape"),
        ({"image": np.zeros((4, 1)), "label": np.full(4, 2**32)}, "2\\^31 - 1"),
        (np.zeros((4, 1), int), "images are int64"),
        (np.zeros(4), r"shape \(4,\)"),
        ({"x": np.zeros((4, 1))}, "the keys 'x'"),
        ({"image": np.zeros((4, 1)), "label": np.zeros(4)}, "labels are float64"),
        ({"image": np.zeros((4, 1)), "label": -np.ones(4, int)}, "negative"),
    ],
)
def test_batches_that_are_none(batch, words):
    with pytest.raises(Refused, match=words):
        Stream([batch], stages(1), 4)


def test_a_smaller_last_batch_is_named():
    stream = Stream(iter([np.zeros((4, 1)), np.zeros((3, 1))]), stages(2), 4)
    with pytest.raises(Refused, match=r"\(3, 1\).*\(4, 1\).*last, smaller one"):
        take(stream, num=2)


def sorted_by_class(first=0, end=10):
    for label in range(first, end):
        yield {"image": np.zeros((4, 1)), "label": np.full(4, label)}


def test_classes_of_a_list_are_those_of_all_its_batches():
    stream = Stream([*sorted_by_class()], stages(10), 4)
    assert stream.num_classes == 10
    # What samples are compared with is a draw from all batches.
    stream = Stream([*sorted_by_class()], stages(10), 20)
    assert np.bincount(stream.take(np.arange(20))["label"]).tolist() == [2] * 10
    with pytest.raises(Refused, match=r"batch 5 of 10.*label is 5.*num_classes=5"):
        Stream([*sorted_by_class()], stages(10), 4, num_classes=5)


def test_a_label_beyond_those_looked_at_is_refused_where_it_comes():
    stream = Stream(sorted_by_class(), stages(10), 12)
    assert stream.num_classes == 3
    words = r"batch 3 of the run.*label is 3, and num_classes=3.*num_classes=4"
    with pytest.raises(Refused, match=words):
        take(stream, num=4)
    stream = Stream(sorted_by_class(), stages(10), 12, num_classes=10)
    assert stream.num_classes == 10
    assert len(take(stream, num=10)) == 10
    with pytest.raises(Refused, match="num_classes=3, but the batches have no labels"):
        Stream(iter([np.zeros((4, 1))]), stages(1), 4, num_classes=3)


GREY = np.zeros((4, 2, 2, 1), np.float32)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (GREY + 3.0, r"images go up to 3: scale them to \[-1, 1\]"),
        (
            np.where(np.arange(4) == 2, np.nan, 0.0)[:, None, None, None] + GREY,
            "2 of 4",
        ),
        (GREY.astype(np.uint8), "images are uint8, those before were floating point"),
        (GREY[:, :1], r"4, 1, 2, 1\).*first one.*4, 2, 2, 1\)"),
        ({"image": GREY, "label": np.zeros(4, int)}, "label.*first one"),
        (GREY.astype(int), "images are int64"),
    ],
)
@pytest.mark.parametrize("kind", [iter, list])
def test_what_does_not_fit_is_refused_with_its_batch(kind, batch, words):
    batches, name = [GREY] * 100, "batch 36 of the run, counted from 0: "
    batches[36] = batch
    taken = []
    if kind is list:
        name = "batch 36 of 100, counted from 0: "

    def read():
        stream = Stream(kind(batches), stages(100), 4)
        taken.extend(itertools.islice(stream.batches(0, 4, (0, 1, 0)), 36))
        list(itertools.islice(stream.batches(36 * 4, 4, (0, 1, 0)), 1))

    with pytest.raises(Refused, match=f"{name}.*{words}.*Nothing was learnt of it"):
        read()
    assert kind is list or len(taken) == 36


def test_a_run_keeps_what_came_before_a_batch_that_is_refused(whole, tmp_path):
    """Checkpoints are 4 updates apart; all 5 before the batch are kept."""

    def source(bad):
        def given(first):
            for number, batch in enumerate(batches(first), first):
                if number == bad:
                    batch = batch | {"image": batch["image"] + np.float32(np.inf)}
                yield batch

        return given

    for bad, names in ((5, "student_2/5"), (11, "student_1/5")):
        given = apply, weights(), source(bad), tmp_path / "run"
        with pytest.raises(Refused, match=f"batch {bad} of the run.*example 0 of 8"):
            pd_jax.distil(*given, **KEYS)
        assert (tmp_path / "run" / "checkpoints" / names).is_dir()
    students = pd_jax.distil(apply, weights(), batches, tmp_path / "run", **KEYS)
    for steps, student in students.items():
        jax.tree.map(
            np.testing.assert_array_equal, student.params, whole[1][steps].params
        )


def test_a_run_of_too_few_classes_goes_on_with_all(tmp_path):
    def given(first):
        for number, batch in enumerate(batches(first), first):
            yield batch | {"label": np.full(8, int(number >= 6))}

    def go(**more):
        keys = KEYS | {"eval": KEYS["eval"] | {"num_reference": 8}} | more
        return pd_jax.distil(apply, weights(), given, tmp_path / "run", **keys)

    with pytest.raises(Refused, match=r"batch 6 of the run.*give num_classes=2"):
        go()
    students = go(num_classes=2)
    assert students[1].num_classes == 2


@pytest.mark.parametrize("shape", [(1,), (2,), (5, 3), (8, 8, 4), (8, 8, 2)])
def test_what_is_no_picture_has_no_bounds(shape):
    assert len(Stream([np.full((4, *shape), 2.0)], stages(1), 4)) == 4


def test_latents_are_neither_clipped_nor_rounded(tmp_path):
    """Four channels of standard deviation 2; their exact denoiser is the teacher."""
    spread = 2.0

    def latents(params, z, logsnr, label):
        share = spread**2 * jax.nn.sigmoid(logsnr)  # of the signal in z
        share = share / (share + jax.nn.sigmoid(-logsnr))
        alpha = jnp.sqrt(jax.nn.sigmoid(logsnr))
        return params["one"] * (share / alpha)[:, None, None, None] * z

    rng = np.random.default_rng(0)
    data = spread * rng.standard_normal((64, 4, 4, 4)).astype(np.float32)
    given = {"one": np.ones((1, 1, 1, 4))}, itertools.repeat(data[:8]), tmp_path / "run"
    keys = {k: v for k, v in KEYS.items() if k != "output"} | {"end": 2}
    (student,) = pd_jax.distil(latents, *given, output="x", **keys).values()
    assert student.space == Space((4, 4, 4), "latents", False)
    key = numerics.key(0)
    x = student.sample(key, 64)
    noise = samplers.noise(key, np.arange(64, dtype=np.uint32), (4, 4, 4))
    denoise = conventions.adapt(latents, "x")(student.params, None)
    expected = samplers.sample(denoise, noise, 2, student.schedule, clip=False)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(x).max() > 2.0
    facts = json.loads(
        (tmp_path / "run/checkpoints/student_2/6/facts/metadata").read_text()
    )
    assert facts["data"]["kind"] == "latents"
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["protocol"]["samples"].endswith("predictions not clipped")
    # A channel beside the other, and eight samples in a row.
    content = (tmp_path / "run" / "samples" / "student_2.png").read_bytes()
    grid = Image.open(io.BytesIO(content))
    side, scale = 4 * 5 - 1, 512 // (8 * 19)
    assert grid.size == ((8 * (side + 1) - 1) * scale, (2 * 5 - 1) * scale)
    assert grid.mode == "L"
    tags = [tag for tag, _ in events(tmp_path / "run/tensorboard/rows/student")]
    assert "samples" in tags


def test_rows_that_cannot_be_measured_say_so_and_cost_nothing_else(tmp_path):
    def broken(params, z, logsnr, label):
        first = z.reshape(len(z), -1)[:, 0, None, None, None]
        return jnp.where(first > 1.0, jnp.nan, params["zero"] * z)

    workdir, given = tmp_path / "run", {"zero": np.zeros((1, 1, 1, 1))}
    keys = {k: v for k, v in KEYS.items() if k != "output"}
    students = pd_jax.distil(broken, given, [IMAGES], workdir, output="x", **keys)
    assert list(students) == [2, 1]
    report = json.loads((workdir / "report.json").read_text())
    noise = samplers.noise(numerics.key(0), np.arange(16, dtype=np.uint32), SHAPE)
    wrong = int(np.sum(np.asarray(noise)[:, 0, 0, 0] > 1.0))
    assert 0 < wrong < 16
    says = f"{wrong} of 16 samples are not finite"
    assert len(report["rows"]) == 5
    assert all(row["metrics"] == {} for row in report["rows"])
    assert all(row["errors"] == [says] for row in report["rows"])
    assert f"student_1: {says}" in report["warnings"]
    assert says in (workdir / "report.html").read_text()
    assert [path.name for path in workdir.glob("samples/*.png")] == [
        "data.png"
    ]  # black where there is no value
    with pytest.raises(NotFinite, match=r"of 16 samples are not finite"):
        students[2].sample(jax.random.key(0), 16)


def test_a_kind_that_does_not_fit():
    for shape, words in (((8, 8, 4), r"\[8, 8, 4\] are no pictures"), ((9,), r"\[9\]")):
        with pytest.raises(Refused, match=words):
            Stream([np.zeros((4, *shape))], stages(1), 4, "pictures")
    with pytest.raises(Refused, match=r'go up to 2.*kind="latents"'):
        Stream([np.full((4, 8, 8, 3), 2.0)], stages(1), 4)
    assert len(Stream([np.full((4, 8, 8, 3), 2.0)], stages(1), 4, "latents")) == 4
    dataset = InMemory(IMAGES)
    with pytest.raises(Refused, match='kind="latents", but the data set says'):
        pd_jax.distil(apply, weights(), dataset, "never", kind="latents", start=2)


def test_callbacks_are_told_in_order_in_the_first_process_alone(monkeypatch):
    told = []
    both = Callbacks(
        [told.append, SimpleNamespace(on_metrics=lambda e: told.append(1))]
    )
    both.on_metrics({"loss": 0.5})
    both.flush()
    assert told == [{"loss": 0.5}, 1]
    assert both.hear("on_metrics")
    assert not both.hear("on_row")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    both.on_metrics({})
    assert len(told) == 2


def test_an_event_that_there_is_not():
    with pytest.raises(Refused, match=r'on_metric\. Did you mean "on_metrics"'):
        Callbacks([SimpleNamespace(on_metric=print)])


class FakeWandb(SimpleNamespace):
    def __init__(self):
        super().__init__(opened=[], axes={}, logged=[], ended=0, Image=np.shape)

    def init(self, **given):
        self.opened.append(given)
        return self

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.ended += 1


def board(tmp_path, **run):
    config = default("digits", "mlp")
    config.run.update(run)
    (found,) = trackers.wanted(config, tmp_path, "mine")
    return found


def test_weights_and_biases(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):  # the second process goes on with the first one's run
        mine = board(tmp_path, wandb="project")
        mine.on_start("student_4", 0)
        mine.on_metrics(
            {"stage": "student_4", "update": 5, "loss": 0.5, "grad_norm": None}
        )
        row = {"model": "student", "stage": "student_4", "num_steps": 4}
        row["metrics"] = {"kid": 0.1}
        mine.on_row(row, np.zeros((3, 8, 8, 1)))
        mine.close()
    first, second = fake.opened
    assert first["id"] == second["id"]
    assert first["project"] == "project"
    assert first["name"] == "mine"
    assert first["config"]["run"]["wandb"] == "project"
    assert fake.ended == 2
    assert fake.axes["student_4/*"] == "student_4/update"
    metrics, row = fake.logged[:2]
    assert metrics == {"student_4/loss": 0.5, "student_4/update": 5}
    assert row["rows/student/kid"] == 0.1
    assert row["rows/student/num_steps"] == 4
    assert row["rows/student/samples"][2] == 3


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Refused, match=r"pip install 'pd_jax\[wandb\]'"):
        board(tmp_path, wandb="project")
    assert not list(tmp_path.iterdir())


def test_points_are_no_pictures(tmp_path):
    mine = board(tmp_path, tensorboard=True)
    mine.on_row(
        {"stage": "teacher", "num_steps": 4, "metrics": {"kid": 0.1}}, np.zeros((3, 2))
    )
    mine.close()
    assert events(tmp_path / "tensorboard" / "rows" / "teacher") == [("kid", 4)]


def test_students_know_how_often_each_label_came(tmp_path):
    """Labels 1 and 2 of three, 1 nine times as often: of a data set, and a stream."""
    labels = np.where(np.arange(64) % 10, 1, 2)
    rows = np.arange(8)

    def stream(first):
        for number in itertools.count(first):
            at = (8 * number + rows) % 64
            yield {"image": IMAGES[at], "label": labels[at]}

    counts = (0, *np.bincount(labels)[1:])
    for name, data in (("data", InMemory(IMAGES, labels)), ("stream", stream)):
        folder = tmp_path / name
        batch = {"batch": 8} if name == "data" else {}
        given = dict(workdir=folder, num_classes=3, **batch, **KEYS)
        students = pd_jax.distil(apply, weights(), data, **given)
        for student in students.values():
            share = np.divide(student.label_counts, sum(student.label_counts))
            np.testing.assert_allclose(share, np.divide(counts, 64), atol=0.05)
            with pytest.raises(
                Refused, match=r"label=0: no example .*: give one of 1, 2"
            ):
                student.sample(numerics.key(0), 2, 0)
        loaded = pd_jax.load(folder, apply=apply)
        assert loaded.label_counts == students[1].label_counts
        if name == "data":
            assert students[1].label_counts == counts
            continue
        assert [sum(students[n].label_counts) for n in (2, 1)] == [6 * 8, 12 * 8]
        # A call that goes on knows what came before, and not what it reads ahead.
        again, seed = Stream(stream, stages(6, 6), 16, num_classes=3), (0, 1, 1)
        again.recall(np.array(students[2].label_counts))
        ahead = again.batches(0, 8, seed)
        for _ in range(5):
            next(ahead)
        assert again.label_counts(3 * 8, seed).sum() == 9 * 8
        assert again.label_counts(3 * 8, seed).sum() == 9 * 8
