"""Students and their bundles: what is sampled, what a file keeps, what is refused."""

import dataclasses
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
from jax import export

import pd_jax
from pd_jax import conventions, models, samplers, schedules
from pd_jax.runtime.errors import NotFinite, Refused
from pd_jax.space import PICTURES, Space, to_uint8
from pd_jax.students import bundle
from pd_jax.students.student import Student

KEY = jax.random.key(3)
ALONE = pathlib.Path(__file__).parents[1] / "docs" / "bundle_alone.py"
MLP = {"name": "mlp", "output": "v", "width": 8, "num_blocks": 1, "num_classes": 3}


def student(section=MLP, shape=(4, 4, 1), labels=("ant", "bee", "cat"), **more):
    """A student of random weights."""
    model = models.build(section, shape[-1])
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.init(key, shape), KEY)
    params = jax.tree.map(
        lambda a: rng.normal(0.0, 0.3, a.shape).astype(a.dtype), shapes
    )
    fields = dict(metrics={"frechet_pixels": 0.5}, facts={"chain": ["teacher"]})
    return Student(
        model=model,
        params=params,
        num_steps=4,
        schedule=schedules.get("cosine", logsnr_min=-15.0),
        space=shape,
        labels=labels,
        **(fields | more),
    )


@pytest.fixture(scope="module")
def one():
    return student()


@pytest.fixture(scope="module")
def images(one):
    """Its first samples."""
    return one.sample(KEY, 10)


@pytest.fixture(scope="module")
def file(one, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "student.safetensors"
    one.save(path)
    return path


def close(a, b):
    """Equal to one grey level, which another batch's rounding may cost."""
    return a.shape == b.shape and np.abs(np.int32(a) - np.int32(b)).max() <= 1


def test_a_sample_is_a_function_of_key_and_place(one, images):
    assert images.shape == (10, 4, 4, 1)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) > 20
    assert close(one.sample(KEY, 10, batch=4), images)
    places = np.array([7, 2])
    assert close(one.at(KEY, places), images[places])
    assert not close(one.sample(jax.random.key(4), 10), images)


def test_labels(one, images):
    drawn = np.asarray(samplers.labels(KEY, np.arange(10, dtype=np.uint32), 3))
    assert set(drawn) == {0, 1, 2}
    assert close(one.sample(KEY, 10, list(drawn)), images)
    bees = one.sample(KEY, 10, "bee")
    assert close(one.sample(KEY, 10, 1), bees)
    assert close(bees[drawn == 1], images[drawn == 1])
    assert not close(bees[drawn != 1], images[drawn != 1])
    for label, says in ((3, "from 0 to 2"), (-1, "from 0 to 2"), ("be", '"bee"')):
        with pytest.raises(ValueError, match=says):
            one.sample(KEY, 2, label)
    with pytest.raises(ValueError, match="3 labels for 2 samples"):
        one.sample(KEY, 2, [0, 1, 2])
    with pytest.raises(ValueError, match="2 labels for a network of num_classes=3"):
        dataclasses.replace(one, labels=("ant", "bee"))


def test_labels_are_drawn_as_often_as_the_data_had_them(one, file, tmp_path):
    places = np.arange(20_000, dtype=np.uint32)
    for counts in ((0, 900, 100), (5, 0, 0), (1, 2**40, 2**40)):
        drawn = np.asarray(samplers.labels(KEY, places, 3, counts))
        found = np.bincount(drawn, minlength=3)
        share = np.array(counts) / sum(counts)
        np.testing.assert_allclose(found / len(places), share, atol=0.015)
        assert not found[np.array(counts) == 0].any()
        np.testing.assert_array_equal(
            samplers.labels(KEY, places[7:9], 3, counts), drawn[7:9]
        )
    # All alike: as without counts.
    even = samplers.labels(KEY, places, 3)
    np.testing.assert_array_equal(samplers.labels(KEY, places, 3, (4, 4, 4)), even)

    uneven = dataclasses.replace(one, label_counts=(0, 9, 1))
    drawn = np.asarray(
        samplers.labels(KEY, np.arange(10, dtype=np.uint32), 3, (0, 9, 1))
    )
    expected = one.sample(KEY, 10, list(drawn))
    assert close(uneven.sample(KEY, 10), expected)
    with pytest.raises(
        Refused, match=r"0 \(ant\): no example .*: give one of 1 \(bee\), 2 \(c"
    ):
        uneven.sample(KEY, 2, "ant")
    with pytest.raises(Refused, match=r"label=0 \(ant\): no example"):
        uneven.sample(KEY, 2, 0)
    with pytest.raises(Refused, match="give one for each, not all 0"):
        dataclasses.replace(one, label_counts=(1, 2))
    # Kept in a bundle, and in its program.
    path = tmp_path / "uneven.safetensors"
    uneven.save(path)
    for program in (False, True):
        loaded = pd_jax.load(path, program=program)
        assert loaded.label_counts == (0, 9, 1)
        assert close(loaded.sample(KEY, 10), expected)
    assert pd_jax.load(file).label_counts == ()


def test_a_student_prints_as_one_line(one):
    says = "num_steps=4, sampler='ddim', shape=(4, 4, 1), num_classes=3, 10,008 weights"
    assert repr(one) == f"Student({says})"


def test_step_counts(one, images):
    with pytest.raises(ValueError, match="was made for 4; force=True"):
        one.sample(KEY, 2, num_steps=8)
    assert not close(one.sample(KEY, 10, num_steps=1, force=True), images)
    teacher = dataclasses.replace(one, num_steps=0)
    with pytest.raises(ValueError, match="give num_steps"):
        teacher.sample(KEY, 2)
    assert close(teacher.sample(KEY, 10, num_steps=4), images)
    with pytest.raises(ValueError, match="no steps of its own"):
        teacher.program()
    with pytest.raises(ValueError, match='Did you mean "heun"'):
        one.sample(KEY, 2, sampler="huen")
    with pytest.raises(Refused, match='"heun": this student was made for "ddim"; fo'):
        one.sample(KEY, 2, sampler="heun")
    one.sample(KEY, 2, sampler="heun", force=True)
    teacher.sample(KEY, 2, num_steps=4, sampler="heun")


def test_a_student_of_several_step_counts(one, images, tmp_path):
    several = dataclasses.replace(one, step_counts=[1, 2, 4])
    np.testing.assert_array_equal(several.sample(KEY, 10), images)
    two = one.sample(KEY, 10, num_steps=2, force=True)
    np.testing.assert_array_equal(several.sample(KEY, 10, num_steps=2), two)
    with pytest.raises(ValueError, match="was made for 1, 2, 4; force=True"):
        several.sample(KEY, 2, num_steps=8)
    with pytest.raises(ValueError, match=r"num_steps=4 is none of step_counts"):
        dataclasses.replace(one, step_counts=(1, 2))
    several.save(tmp_path / "several")
    assert pd_jax.load(tmp_path / "several").step_counts == (1, 2, 4)
    back = pd_jax.load(tmp_path / "several", 2)
    assert (back.num_steps, back.step_counts) == (2, (1, 2, 4))
    np.testing.assert_array_equal(back.sample(KEY, 10), two)
    forced = pd_jax.load(tmp_path / "several", 8, force=True)
    assert (forced.num_steps, forced.step_counts) == (8, ())


def test_a_bundle_of_before_step_counts():
    old = pd_jax.load(pathlib.Path(__file__).parent / "data/bundle_a95d4fd.safetensors")
    assert (old.num_steps, old.step_counts) == (4, ())
    assert old.metrics == {"frechet_pixels": 0.5}
    # What commit a95d4fd, which wrote the file, sampled with it.
    before = [[-0.6392975, -0.6971790], [-0.2824424, 0.6479165]]
    np.testing.assert_allclose(old.sample(KEY, 2), before, atol=1e-5)


def test_students_that_differ_in_weights_and_steps_share_a_program():
    section = MLP | {"width": 9}  # of no other test
    first, compilations = student(section), []

    def note(event, seconds, **kw):
        compilations.append(kw.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        first.sample(KEY, 10)
        before = compilations.count("_sample")
        params = jax.tree.map(lambda a: 2 * a, first.params)
        second = dataclasses.replace(student(section), params=params, num_steps=7)
        assert not close(second.sample(KEY, 10), first.sample(KEY, 10))
        assert compilations.count("_sample") == before > 0
        first.sample(KEY, 10, sampler="heun", force=True)
        assert compilations.count("_sample") > before
    finally:
        jax.monitoring.unregister_event_duration_listener(note)


def test_points_of_the_plane_are_floats(tmp_path):
    section = {"name": "mlp", "output": "x", "width": 8, "num_blocks": 1}
    plane = student(section, (2,), None)
    points = plane.sample(KEY, 5)
    assert points.shape == (5, 2)
    assert points.dtype == np.float32
    plane.save(tmp_path / "plane")
    np.testing.assert_array_equal(
        pd_jax.load(tmp_path / "plane").sample(KEY, 5), points
    )


def test_latents_are_floats_and_unclipped(tmp_path):
    latents = student(MLP | {"num_classes": 0}, (4, 4, 4), None)
    x = latents.sample(KEY, 5)
    assert (x.shape, x.dtype) == ((5, 4, 4, 4), np.float32)
    assert np.abs(x).max() > 1.5
    latents.save(tmp_path / "latents")
    back = pd_jax.load(tmp_path / "latents")
    assert back.space == Space((4, 4, 4), "latents", False)
    np.testing.assert_array_equal(back.sample(KEY, 5), x)


def test_a_bundle_of_before_kinds_samples_as_it_did(tmp_path):
    latents = student(MLP | {"num_classes": 0}, (4, 4, 4), None)
    latents.save(tmp_path / "new")
    content = bundle.Bundle(tmp_path / "new").content
    content = {k: v for k, v in content.items() if k not in ("kind", "digests")}
    content["clip"] = True
    bundle.write(tmp_path / "old", latents.params, latents.program(), content)
    old = pd_jax.load(tmp_path / "old")
    assert old.space == Space((4, 4, 4), PICTURES, True)
    assert old.sample(KEY, 5).dtype == np.uint8


def too_large(one):
    """A student whose samples are not finite."""
    params = jax.tree.map(lambda a: np.float32(1e38) * a, one.params)
    return dataclasses.replace(one, params=params)


def test_samples_that_are_not_finite_are_an_error(one):
    with pytest.raises(NotFinite, match="16 of 16 samples are not finite"):
        too_large(one).sample(KEY, 16)


def test_nor_does_a_bundle_alone_give_them(one, tmp_path, monkeypatch):
    too_large(one).save(tmp_path / "large")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ALONE), str(tmp_path / "large")])
    with pytest.raises(SystemExit, match="64 of 64 samples are not finite"):
        runpy.run_path(str(ALONE))
    assert not (tmp_path / "samples.npy").exists()


@pytest.mark.parametrize("places", [[-1], [2**32], [0.5]])
def test_places_that_are_none(one, places):
    with pytest.raises(ValueError, match=r"whole numbers from 0 to 2\^32 - 1"):
        one.at(KEY, np.array(places))


def test_a_bundle_gives_the_student_back(one, images, file):
    back = pd_jax.load(file)
    for field in ("num_steps", "schedule", "space", "sampler", "model"):
        assert getattr(back, field) == getattr(one, field)
    assert tuple(back.labels) == one.labels
    assert (back.metrics, back.facts) == (one.metrics, one.facts)
    assert back.digest == one.digest
    np.testing.assert_array_equal(back.sample(KEY, 10), images)
    with pytest.raises(ValueError, match="num_steps=8: this student was made for 4"):
        pd_jax.load(file, 8)
    assert pd_jax.load(file, 8, force=True).num_steps == 8


def test_a_bundle_is_the_same_bytes_each_time_and_names_no_place(one, file, tmp_path):
    size, _ = one.save(tmp_path / "again")
    content = file.read_bytes()
    assert (tmp_path / "again").read_bytes() == content
    assert size == len(content)
    assert b".py" not in content  # nor whose machine it was


def test_any_reader_of_safetensors_opens_a_bundle(one, file):
    with safetensors.safe_open(file, "numpy") as opened:
        about = json.loads(opened.metadata()["pd_jax"])["content"]
        bias = opened.get_tensor("params/dense_in/bias")
    np.testing.assert_array_equal(bias, one.params["dense_in"]["bias"])
    assert about["times"] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert about["logsnr"][0] == pytest.approx(-15.0, rel=1e-5)
    assert about["labels"] == ["ant", "bee", "cat"]


def test_the_program_samples_the_same(one, images):
    weights = {f"params/{n}": a for n, a in bundle.flatten(one.params).items()}
    program = export.deserialize(bytearray(one.program()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    place, label = np.arange(10, dtype=np.uint32), np.full(10, -1, np.int32)
    found = program.call(weights, jax.random.key_data(KEY), place, label)
    assert close(to_uint8(np.asarray(found)), images)


UNET = {"name": "unet", "output": "both", "ch": 32, "emb_ch": 32, "ch_mult": (1, 2)}
UNET |= {"num_res_blocks": 1, "attn_resolutions": (4,), "num_heads": 2}
DIT = {"name": "dit", "output": "eps", "depth": 1}


@pytest.mark.parametrize("section", [UNET, DIT], ids=lambda s: s["name"])
def test_programs_of_all_networks_lower_for_all_platforms(section):
    model = models.build(section | {"num_classes": 3}, 3, "bfloat16")
    shapes = jax.eval_shape(lambda key: model.init(key, (8, 8, 3)), KEY)
    model = models.Model(model.network.clone(attention="cudnn"), model.output)
    several = Student(model, shapes, 2, schedules.get("cosine"), (8, 8, 3), labels=3)
    program = several.program()
    assert b"cudnn" not in program
    assert export.deserialize(bytearray(program)).platforms == ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A function as a model."""

    def cast(self, params):
        return params

    def denoiser(self, params, label):
        def denoise(z, logsnr):
            x = jax.numpy.tanh(z * params["scale"])
            return conventions.get("x").outputs(x, z, logsnr)

        return denoise


def test_a_foreign_network(tmp_path):
    scale = {"scale": np.float32(0.5)}
    other = Student(Foreign(), scale, 2, schedules.get("cosine"), (4, 4, 3))
    path = tmp_path / "foreign"
    other.save(path)
    with pytest.raises(ValueError, match="is none of pd_jax"):
        pd_jax.load(path)
    back = pd_jax.load(path, model=Foreign())
    np.testing.assert_array_equal(back.sample(KEY, 3), other.sample(KEY, 3))


def test_weights_without_names_are_refused(one, tmp_path):
    for params in ({"a/b": np.ones(2)}, {"": np.ones(2)}, {"a": [1.0]}, {}):
        with pytest.raises(ValueError, match="weights"):
            dataclasses.replace(one, model=Foreign(), params=params).save(
                tmp_path / "x"
            )
    assert not list(tmp_path.iterdir())


def test_what_is_not_there(tmp_path):
    (tmp_path / "text").write_text("text")
    for path, says in (
        ("nothing", "no such file or folder"),
        ("text", "not a bundle"),
        ("", "no folder of a run"),
    ):
        with pytest.raises(ValueError, match=says):
            pd_jax.load(tmp_path / path)


def test_damage_is_seen(file, tmp_path):
    content = bytearray(file.read_bytes())
    path = tmp_path / "damaged"
    for place in (20, 300, len(content) // 2, len(content) - 5):
        content[place] ^= 16
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a bundle"):
            pd_jax.load(path)
        content[place] ^= 16
    path.write_bytes(content)
    pd_jax.load(path)


NEEDED = ("flatbuffers", "jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy")
START = """
import runpy, sys
sys.path.append(sys.argv[1])
try:
    import flax
except ModuleNotFoundError:
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_a_bundle_runs_where_jax_alone_is_installed(one, file, tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in NEEDED:
        for part in pathlib.Path(jax.__file__).parents[1].glob(f"{name}*"):
            if part.name in (name, f"{name}.libs"):
                (packages / part.name).symlink_to(part)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", START, packages, ALONE, file],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 steps: uint8 (64, 4, 4, 1)\n"
    found = np.load(tmp_path / "samples.npy")
    assert close(found, one.sample(jax.random.key(0), 64))


def test_the_stand_alone_reader_is_short_and_needs_little():
    text = ALONE.read_text()
    assert len(text.splitlines()) <= 30
    assert "import pd_jax" not in text
    reader = text[text.index("import json") : text.index("print(")].strip()
    readme = (ALONE.parents[1] / "README.md").read_text()
    assert [
        line for line in reader.splitlines() if line not in readme.splitlines()
    ] == [
        "import json",
        "import sys",
        "import jax",
        "import numpy as np",
    ]


def test_the_stand_alone_reader_without_a_file():
    done = subprocess.run([sys.executable, ALONE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "give the file of a bundle\n"
