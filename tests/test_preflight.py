import closed_forms
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_forms import CONVENTIONS, IMAGES, RING, examples, network

from pd_jax import data, methods, models, schedules
from pd_jax.evaluation.preflight import check
from pd_jax.methods import Parts
from pd_jax.models import Model
from pd_jax.runtime.errors import Refused
from pd_jax.training.stage import Stage

STD = 0.15
SCHEDULE = schedules.cosine(-8.5, 9.0)  # known to every convention
CLASSES = np.arange(10)


def check_on(batch, teacher, claim, schedule=SCHEDULE, params=None, clip=False):
    key = jax.random.key(0)
    return check(
        teacher, params, claim, schedule, batch, key, batch_size=256, clip=clip
    )


def refusal(*args, **kw):
    with pytest.raises(Refused) as caught:
        check_on(*args, **kw)
    return str(caught.value)


IMAGE_DATA = examples(IMAGES, STD, 256)


def quick(quick_ones, all_ones):
    """All as parameters, most of them marked long."""
    marks = {True: [], False: pytest.mark.long}
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=marks[quick])
        for one in all_ones
        for quick in [one in quick_ones]
    ]


@pytest.mark.parametrize("name", quick(["v", "ddpm", "both"], CONVENTIONS))
def test_exact_teachers_pass(name):
    found = check_on(IMAGE_DATA, network(name, IMAGES, STD), name)
    assert found["notes"] == []
    assert found["score"] < 0.9
    assert found["next_best"] > 0.95 * found["score"]
    assert set(found["samples"]) == {"8", "32", "data"}
    assert found["samples"]["32"]["std"] == pytest.approx(
        found["samples"]["data"]["std"], rel=0.2
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v", "x"])
@pytest.mark.parametrize(
    ("means", "std"), [(RING, 0.05), (np.full((1, 4, 4, 1), 0.2), 0.4)]
)
def test_other_data_passes(name, means, std):
    found = check_on(examples(means, std, 256), network(name, means, std), name)
    assert found["notes"] == []
    # Of a Gaussian nothing is known but mean and variance; a ring has structure.
    low, high = (0.9, 1.1) if len(means) == 1 else (0.2, 0.9)
    assert low < found["score"] < high


SINGLE = [name for name in CONVENTIONS if name != "both"]
PAIRS = [(a, b) for a in SINGLE for b in SINGLE if a != b]
QUICK = [("x", "v"), ("eps", "x"), ("v", "eps"), ("ddpm", "eps"), ("v", "flow")]


@pytest.mark.parametrize(("true", "claim"), quick(QUICK, PAIRS))
def test_a_wrong_output_kind_is_named(true, claim):
    says = refusal(IMAGE_DATA, network(true, IMAGES, STD), claim)
    assert f'read as "{claim}"' in says
    assert says.endswith(f'set model.output="{true}"')


def test_outputs_of_the_wrong_shape():
    says = refusal(IMAGE_DATA, network("both", IMAGES, STD), "v")
    assert 'model.output="v"' in says
    assert 'model.output="both"' in says
    says = refusal(IMAGE_DATA, network("v", IMAGES, STD), "both")
    assert 'model.output="both"' in says


@pytest.mark.parametrize(
    ("name", "tell", "clue"),
    [
        ("v", lambda level: -level, "flip its sign"),
        ("eps", lambda level: -level, "flip its sign"),
        ("x", lambda level: level - 2.0, "+2 at"),
        ("eps", lambda level: level + 2.0, "-2 at"),
        # Timesteps of a schedule that adds noise half as fast.
        ("ddpm", lambda step: 0.5 * step, "off by"),
        ("edm", lambda s: 4.0 * s, "off by"),
    ],
)
def test_a_wrong_noise_level_is_found(name, tell, clue):
    says = refusal(IMAGE_DATA, network(name, IMAGES, STD, tell=tell), name)
    assert "level input means something else" in says
    assert clue in says


@pytest.mark.parametrize(
    ("scale", "offset", "clue"),
    [(0.5, 0.5, "x/2 + 1/2"), (0.5, 0.0, "given x/2,"), (2.0, -1.0, "2 x - 1")],
)
@pytest.mark.parametrize("name", quick(["v"], ["v", "edm"]))
def test_a_wrong_range_of_the_data_is_found(name, scale, offset, clue):
    teacher = network(name, scale * IMAGES + offset, scale * STD)
    says = refusal(IMAGE_DATA, teacher, name)
    assert clue in says
    assert "data.*" in says


LABELLED = examples(IMAGES, STD, 256, CLASSES)


@pytest.mark.parametrize(
    ("theirs", "clue"),
    [
        ((CLASSES + 1) % 10, "labels one more"),
        ((CLASSES - 1) % 10, "labels one less"),
        (np.random.default_rng(0).permutation(10), "given 4 for 0, 6 for 1, 2 for 2"),
    ],
)
def test_wrong_labels_are_found(theirs, clue):
    says = refusal(LABELLED, network("v", IMAGES, STD, theirs), "v")
    assert clue in says
    assert "data's labels" in says


def test_two_classes_swapped_are_found():
    labels = (CLASSES < 4).astype(int)
    batch = examples(IMAGES, STD, 256, labels)
    assert "labels" in refusal(batch, network("v", IMAGES, STD, 1 - labels), "v")


def test_neighbouring_classes_alike():
    """On a ring, the class next door is nearer than a class at random."""
    labels = np.arange(8)
    batch = examples(RING, 0.05, 256, labels)
    says = refusal(batch, network("edm", RING, 0.05, (labels + 1) % 8), "edm")
    assert "labels one more" in says


def test_right_and_ignored_labels_pass():
    found = check_on(LABELLED, network("v", IMAGES, STD, CLASSES), "v")
    assert found["notes"] == []
    assert found["labels"]["gain"] == pytest.approx(1.0, abs=0.1)
    found = check_on(LABELLED, network("v", IMAGES, STD), "v")
    assert found["notes"] == ["labels make no difference to the teacher's predictions"]


def test_levels_that_a_teacher_never_saw():
    teacher = network("ddpm", IMAGES, STD)
    says = refusal(IMAGE_DATA, teacher, "ddpm", schedules.cosine())
    assert says.endswith("set schedule.logsnr_min=-10.1")
    assert check_on(IMAGE_DATA, teacher, "ddpm", schedules.cosine(-10.1))["notes"] == []


def poor(params, y, level, label):
    """Shrunk, and with an error of its own in every pixel."""
    raw = network("eps", IMAGES, STD)(params, y, level, label)
    return 0.7 * raw + 0.1 * jnp.cos(7.0 * y)


def anything(params, y, level, label):
    """What random weights make of their input and label."""
    return 3.0 * jnp.cos(9.0 * y + label[:, None, None, None] + level.mean())


def test_a_poor_teacher_and_random_weights_are_noted():
    found = check_on(IMAGE_DATA, poor, "eps")
    assert any("poor" in note for note in found["notes"])
    found = check_on(IMAGE_DATA, lambda p, y, level, label: 0.0 * y, "x")
    assert any("worse than the data's mean" in note for note in found["notes"])
    for output in ("x", "v"):  # nothing can be said of labels either
        found = check_on(LABELLED, anything, output, clip=True)
        assert found["score"] > 1.5
    says = refusal(IMAGE_DATA, lambda p, y, level, label: jnp.nan * y, "v")
    assert "not finite" in says


def test_what_it_costs():
    """In network evaluations and in compilations, batch by batch."""
    calls, traces = [], []

    def counted(params, y, level, label):
        traces.append(1)
        jax.debug.callback(lambda: calls.append(len(y)))
        return network("v", IMAGES, STD, CLASSES)(params, y, level, label)

    check(counted, None, "v", SCHEDULE, LABELLED, jax.random.key(0), batch_size=256)
    jax.effects_barrier()
    assert 256 < sum(calls) <= 17 * 256 + 1280
    assert len(traces) <= 4  # its shape, one batch, one sampler's loop


@pytest.mark.slow
def test_a_few_examples_and_batches():
    few = {"image": IMAGE_DATA["image"][:3]}
    assert check_on(few, network("v", IMAGES, STD), "v")["score"] > 0
    whole = check_on(IMAGE_DATA, network("v", IMAGES, STD), "v")
    args = (network("v", IMAGES, STD), None, "v", SCHEDULE, IMAGE_DATA)
    parts = check(*args, jax.random.key(0), batch_size=64, clip=False)
    assert parts["score"] == pytest.approx(whole["score"], rel=1e-4)


def test_useless_data():
    same = {"image": np.zeros((8, 4, 4, 1), np.float32)}
    assert "are the same" in refusal(same, network("v", IMAGES, STD), "v")


@pytest.mark.slow
@pytest.mark.parametrize(("output", "classes"), [("v", 10), ("x", 0), ("eps", 10)])
def test_trained_networks(output, classes, cosine):
    """From the first updates on, a network read rightly passes; wrongly, it does not
    once it has learnt something."""
    digits = data.get("digits")

    def batch(first, size, seed):
        found = next(digits.batches(first, size, seed))
        return found if classes else {"image": found["image"]}

    net = models.get("mlp", width=128, num_blocks=2, num_classes=classes)
    model = Model(net, output)
    parts = Parts("teacher", model, cosine)
    method = methods.get("standard").Method(parts, weighting="snr_plus_1")
    stage = Stage("teacher", 0, 0, 1600, 1e-3)
    weights = {"model": model.init(jax.random.key(0), digits.shape)}
    state = method.begin(weights, stage, jax.random.key(0))
    update = jax.jit(
        jax.vmap(
            method.update, (None, 0, 0), (None, None), axis_name="batch", axis_size=1
        )
    )
    held = batch(0, 256, (1,))
    for i in range(1600):
        if i in (30, 100, 400):
            check_on(held, model.raw, output, cosine, method.result(state)["model"])
        one = jax.tree.map(lambda a: a[None], batch(64 * i, 64, (0,)))
        keys = jax.random.split(jax.random.fold_in(jax.random.key(5), i), 64)
        state, _ = update(state, one, keys[None])
    params = method.result(state)["model"]
    found = check_on(held, model.raw, output, cosine, params)
    assert found["next_best"] > 0.9 * found["score"]
    if output == "v":
        for claim in ("x", "eps"):
            says = refusal(held, model.raw, claim, cosine, params)
            assert says.endswith('set model.output="v"')
        bright = {**held, "image": 0.5 * held["image"] + 0.5}
        assert "2 x - 1" in refusal(bright, model.raw, "v", cosine, params)
        if classes:
            held["label"] = (held["label"] + 1) % 10
            assert "labels one less" in refusal(held, model.raw, "v", cosine, params)


def test_closed_forms_are_one_teacher():
    """The fixtures agree with each other where their inputs coincide."""
    z, logsnr = jnp.ones((3, 4, 4, 1)), jnp.array([-4.0, 0.0, 4.0])
    x, n = jnp.split(network("both", IMAGES, STD)(None, z, logsnr), 2, axis=-1)
    alpha, sigma = closed_forms.scales("v", logsnr)
    alpha, sigma = (a[:, None, None, None] for a in (alpha, sigma))
    np.testing.assert_allclose(alpha * x + sigma * n, z, atol=1e-5)
    v = network("v", IMAGES, STD)(None, z, logsnr)
    np.testing.assert_allclose(v, alpha * n - sigma * x, atol=1e-5)
