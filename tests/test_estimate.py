"""What a run takes, counted on shapes, against hand counts and real arrays."""

import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from pd_jax import config as configs
from pd_jax import data, main
from pd_jax.config.setup import sketch
from pd_jax.costs import count, estimate, program
from pd_jax.data import digits
from pd_jax.training.method import state_shapes
from pd_jax.training.stage import Stage

ROOT = pathlib.Path(__file__).parents[1]
QUICK = ("digits", "mixture2d")  # no U-Net, whose tracing takes ten seconds


def small(**changes):
    """An MLP on 8x8 images that can be counted by hand, and a ladder of two stages."""
    config = configs.default("digits", "mlp")
    config.model.width = config.model.emb_ch = 8
    config.model.num_blocks = 1
    config.teacher.updates = 600
    config.teacher.ema = 0.99
    config.ladder.start = 4
    config.ladder.updates = (500, 1000)
    config.update_from_flattened_dict(changes)
    return config


def counted(config, num_devices=1):
    return count.count(sketch(config, num_devices), num_devices)


# Published: Salimans & Ho 2022, appendix E; GFLOP of the reference implementation.
RELEASED = {
    "cifar10": (32, "x", 60.0, 34.1, dict(ch=256, emb_ch=1024, ch_mult=(1, 1, 1))),
    "imagenet64": (64, "both", 295.9, 210.7, dict(ch=192, ch_mult=(1, 2, 3, 4))),
    "lsun128": (128, "both", 139.6, 129.9, dict(ch=64, ch_mult=(1, 2, 4, 6, 8))),
}


@pytest.mark.parametrize(
    "name", ["cifar10", "imagenet64", pytest.param("lsun128", marks=pytest.mark.slow)]
)
def test_released_networks_weigh_and_cost_what_was_published(name, monkeypatch):
    size, output, million_weights, gflop, fields = RELEASED[name]
    classes = 1000 if name == "imagenet64" else 0
    described = data.Description((size, size, 3), classes)
    monkeypatch.setattr(data, "describe", lambda name, **kw: described)
    config = configs.default("shapes", "unet")
    config.model.output = output
    config.model.num_res_blocks = 3
    wide = dict(emb_ch=768, attn_resolutions=(8, 16, 32), head_dim=64)
    config.model.update(dict(attn_resolutions=(8, 16)) if name == "cifar10" else wide)
    config.model.update(fields)
    config.model.num_classes = classes
    config.teacher.updates = 1
    config.ladder.start, config.ladder.updates = 2, (1,)
    setup = sketch(config, 1)
    weights = setup.shapes
    assert program.num_bytes(weights) / 4e6 == pytest.approx(million_weights, rel=1e-3)
    by_hand, by_xla = count.forward_flops(setup, weights)
    assert by_hand / 1e9 == pytest.approx(gflop, rel=0.01)
    assert by_xla / 1e9 == pytest.approx(gflop, rel=0.01)


CONVOLUTIONS = [
    dict(window_strides=(1, 1), padding="SAME"),
    dict(window_strides=(2, 2), padding="SAME"),
    dict(window_strides=(2, 1), padding=[(0, 3), (2, 0)]),
    dict(window_strides=(1, 1), padding=[(2, 1), (1, 1)], lhs_dilation=(2, 3)),
    dict(window_strides=(1, 2), padding=[(-1, 2), (4, 4)], rhs_dilation=(2, 3)),
    dict(window_strides=(1, 1), padding="SAME", feature_group_count=2),
    dict(window_strides=(1, 1), padding="VALID", batch_group_count=2),
]


@pytest.mark.parametrize("how", CONVOLUTIONS, ids=str)
def test_convolutions_cost_two_flop_a_product_that_meets_an_input(how):
    # Of ones with ones, a convolution counts its own products.
    channels = 4 // how.get("feature_group_count", 1)
    x, kernel = jnp.ones((2, 6, 7, 4)), jnp.ones((3, 3, channels, 6))

    def conv(x, kernel):
        spec = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=spec, **how)

    products = int(conv(x, kernel).sum())
    assert program.matmul_flops(jax.make_jaxpr(conv)(x, kernel).jaxpr) == 2 * products

    def backward(x, kernel):
        return jax.grad(lambda *a: jnp.sum(conv(*a) ** 2), (0, 1))(x, kernel)

    # Each product comes back once for the input, once for the kernel.
    assert (
        program.matmul_flops(jax.make_jaxpr(backward)(x, kernel).jaxpr) == 6 * products
    )


def test_loops_and_branches_count_as_often_as_they_run():
    a, b = jnp.ones((5, 2, 3)), jnp.ones((5, 3, 4))
    product = 2 * 5 * 2 * 3 * 4

    def run(a, b):
        def body(total, _):
            return total + a @ b, None

        total, _ = jax.lax.scan(body, jnp.zeros((5, 2, 4)), length=7)
        branch = jax.lax.cond(a[0, 0, 0] > 0, lambda: a @ b, lambda: a @ b @ b.mT @ b)
        return total + branch

    found = program.matmul_flops(jax.make_jaxpr(jax.jit(run))(a, b).jaxpr)
    assert found == (7 + 2) * product + 2 * 5 * 2 * 4 * 3


def peak(function, *args):
    return program.peak_bytes(jax.make_jaxpr(function)(*args).jaxpr)


def test_memory_of_the_gradient_of_two_layers():
    x, y = jnp.ones((10, 3)), jnp.ones((10, 2))
    params = jnp.ones((3, 7)), jnp.ones((2, 7))

    def loss(params):
        hidden = jnp.sin(x @ params[0])
        return jnp.mean((hidden @ params[1].T - y) ** 2)

    # At the second layer's gradient: what the sine is of, the sine, which a product
    # reads, the error, and the gradient. The cosine is not stored.
    assert peak(jax.grad(loss), params) == 4 * (10 * 7 + 10 * 7 + 10 * 2 + 2 * 7)


def test_memory_of_loops_branches_and_what_is_elementwise():
    a = jnp.ones((100, 100))

    def chain(a):  # one product at a time beside the one that it is of
        return jnp.tanh(jax.jit(lambda a: a @ a)(a).T @ a) @ a

    assert peak(chain, a) == 2 * a.nbytes
    assert peak(lambda a: jnp.exp(2.0 * a) - a.T, a) == 0  # in place of what is given
    assert peak(jax.checkpoint(chain), a) == peak(chain, a)

    def branch(flag, a):
        return jax.lax.cond(flag, chain, lambda a: a @ a, a)

    assert peak(branch, True, a) - peak(chain, a) < 10  # beside the flag as a number

    def loop(a):
        return jax.lax.scan(lambda c, _: (jnp.sin(c @ a), None), a @ a, length=9)[0]

    # What is carried, in place, and within the body the product.
    assert peak(loop, a) == 2 * a.nbytes


@pytest.fixture(scope="module")
def found():
    return counted(small(**{"eval.num_samples": 100, "eval.paired_samples": 80}), 4)


def test_memory_to_the_byte(found):
    teacher, ladder = found.trainings
    num_weights = 2 * (8 * 8 + 8)  # embedding
    num_weights += (8 * 16 + 16) + 2 * 8 + 2 * (8 * 8 + 8)  # block
    num_weights += (64 * 8 + 8) + 2 * 8 + (8 * 64 + 64)  # in, norm, out
    assert found.num_weights == num_weights
    weights = 4 * num_weights
    batch = 3 * 32 * (8 * 8 * 4 + 4)  # images and labels, two calls ahead
    parts = dict(weights=weights, optimizer=2 * weights + 4, batch=batch)
    parts |= {"averaged weights": weights, "teacher's weights": 0}
    computed = ("gradients, casts", "activations")
    assert teacher.memory == parts | {part: teacher.memory[part] for part in computed}
    # The teacher's matrices are in bfloat16; vectors, the embedding's 2 and the others'
    # biases, are not.
    matrices = 2 * 8 * 8 + 8 * 16 + 2 * 8 * 8 + 64 * 8 + 8 * 64
    cast = weights - 2 * matrices
    parts |= {"averaged weights": 0, "teacher's weights": cast}
    assert ladder.memory == parts | {part: ladder.memory[part] for part in computed}
    for cost in (teacher, ladder):
        assert cost.gradients == weights
        assert cost.reduced == weights + 4  # and the loss
        assert weights <= cost.memory["gradients, casts"] <= 2 * weights
    numbers = 4 * (1 + 4)  # the step, the stage's numbers
    assert teacher.checkpoint == 4 * weights + 4 + numbers
    assert ladder.checkpoint == 3 * weights + 4 + numbers
    assert teacher.total == sum(teacher.memory.values())


def test_the_folder(found):
    teacher, ladder = found.trainings
    # Checkpoints every 500 updates, two are kept: of 600, of 500 and of 1000 updates.
    assert found.checkpoints == 2 * teacher.checkpoint + 3 * ladder.checkpoint
    rows = 7 + 2
    assert found.samples == (rows * 80 + 80) * 64 * 4
    steps = (256 + 32 + 16 + 8 + 4 + 2 + 1) + (2 + 1)
    # Pairs: the teacher's best samples, its path, and three models at 16 times of it.
    pairs = 1024 + 256 + 3 * 16
    assert found.evaluation == found.forward * (100 * steps + 80 * pairs)
    updates = 600 * teacher.flops + 1500 * ladder.flops
    assert found.flops == updates + found.evaluation


@pytest.mark.slow
def test_pairs_are_counted_with_what_their_teacher_takes(capsys):
    config = configs.default("digits", "mlp", student="knowledge_distillation")
    config.model.width = config.model.emb_ch = 8
    config.model.num_blocks = 1
    config.teacher.updates = config.student.updates = 10
    config.student.update(pairs=1000, teacher_steps=6, steps=(2,))
    config.student.teacher_sampler = "heun@quadratic"
    costs = counted(config)
    assert costs.pairs == 1000 * 6 * 2 * costs.forward
    assert costs.pair_files == 1000 * 3 * 64 * 4
    passes = costs.flops - costs.pairs - costs.evaluation
    assert passes == sum(10 * cost.flops for cost in costs.trainings)
    estimate.run(config, "pairs")
    assert "768 kB of pairs" in capsys.readouterr().out
    assert counted(small()).pairs == counted(small()).pair_files == 0


def test_an_exact_teacher_costs_nothing_where_it_is_sampled():
    config = configs.default("ring2d", "mlp")
    config.teacher.exact = True
    config.ladder.start, config.ladder.updates = 4, (10,)
    config.eval.sampler = "heun"  # two evaluations a step
    found = counted(config)
    (ladder,) = found.trainings
    samples = 2 * 4000 * (2 + 1) + 500 * 2 * 16  # and two students at 16 times
    assert found.evaluation == found.forward * samples
    assert ladder.flops / ladder.batch == pytest.approx(5 * found.forward, rel=0.03)


def test_parts_substeps_and_devices_scale_as_in_the_real_step():
    wide = {
        "model.width": 64,
        "model.emb_ch": 64,
        "teacher.dropout": 0.1,
        "teacher.batch": 256,
    }
    parts = {"teacher.microbatches": 2, "ladder.microbatches": 2, "run.substeps": 10}
    whole, setup = counted(small(**wide), 2), sketch(small(**wide, **parts), 2)
    found = count.count(setup, 2)
    # Networks evaluated, a backward pass as two; inputs need no gradient of theirs.
    spared = 2 * 64 * 64 + 2 * 64 * 64  # of the image's and the noise level's layers
    shapes = setup.shapes
    for before, cost, training in zip(
        whole.trainings, found.trainings, setup.trainings
    ):
        passes = training.method.forwards
        assert cost.flops == cost.batch * (passes * found.forward - spared)
        stage = training.stages[0]
        state = state_shapes(training.method, stage, shapes)
        images = jax.ShapeDtypeStruct((1, 10, cost.batch // 2, 8, 8, 1), jnp.float32)
        traced = training.step.trace(state, {"image": images}, training.key)
        assert 10 * cost.flops == 2 * program.matmul_flops(traced.jaxpr.jaxpr)
        assert cost.flops == before.flops
        assert cost.xla_flops == pytest.approx(before.xla_flops, rel=0.05)
        assert cost.flops < before.xla_flops < 1.2 * cost.flops
        rest = cost.total - cost.memory["batch"] * 9 // 10
        assert before.needs(before.at_once // 2, 2) == pytest.approx(rest, rel=0.05)


@pytest.mark.slow
def test_the_compiler_is_asked_about_the_real_step(capsys):
    config = configs.default("ring2d", "mlp")
    config.model.width, config.model.num_blocks = 8, 1
    config.teacher.exact = True
    config.ladder.start, config.ladder.updates = 2, (6,)
    config.run.substeps = 3
    estimate.run(config, "small", num_chips=2, compiled=True)
    (cost,) = counted(config, 2).trainings
    points, key = 3 * 64 * 2 * 4, 8
    held = cost.checkpoint + cost.memory["teacher's weights"] + points + key
    said = f"ladder, compiled for cpu: {held / 1e3:.4g} kB of state and batch + "
    assert said in capsys.readouterr().out


def made(activations, batch=1024, updates=3_600_000):
    """Costs of one training of 98.5 TFLOP an update on 16 devices."""
    memory = {"weights": 10**9, "gradients, casts": 10**9, "activations": activations}
    stage = Stage("student_1", 0, 1, updates, 1e-3)
    flops = 985 * 10**11
    sizes = 10**9, 10**9, 3 * 10**9
    cost = count.Cost("ladder", [stage], batch, 64, 1, flops, 1e14, memory, *sizes)
    return count.Costs(10**9 // 4, 10**9, 1e9, [cost], 0, 6 * 10**9, 0)


def test_time_is_work_over_pace():
    # Half of a v5e's peak is 98.5 TFLOP/s: a second an update.
    lines = estimate.table("made", made(10**9), "v5e", 16, 0.5).splitlines()
    (stage,) = (line.split() for line in lines if line.startswith("student_1"))
    assert stage == ["student_1", "3,600,000", "3,686", "1,000", "2.6"]
    (other,) = (line.split() for line in lines if line.startswith("v5p"))
    assert other == ["v5p", "459", "429", "1.12", "95", "GB", "3%"]
    assert "ladder: fits" in lines
    assert max(map(len, lines)) <= 80


def test_all_reduce_is_told_beside_the_computing():
    # 15/8 of 1 GB at 200 GB/s; computing takes 1/16 s on each of 16 chips.
    lines = estimate.table("made", made(10**9), "v5e", 16, 0.5).splitlines()
    first = lines.index(next(a for a in lines if a.startswith("all-reduce")))
    assert lines[first + 1].split() == ["ladder", "1.875", "GB", "9.38", "ms", "15.00%"]
    alone = estimate.table("made", made(10**9), "v5e", 1, 0.5)
    assert "0 ms" in alone


def test_what_does_not_fit_says_which_keys_help():
    said = estimate.table("made", made(64 * 10**9), "v5e", 16, 0.5)
    assert "of 16 GB (v5e)" in said
    # 64 images at once take 64 GB, beside 2 GB (3 GB in parts); 14.4 GB may be used.
    assert "ladder: does not fit; one of" in said
    assert "--config.ladder.microbatches=8: 11 GB" in said
    assert "--num_chips=128: 10 GB" in said
    assert "--config.ladder.batch=192: 14 GB" in said
    tight = estimate.table("made", made(13 * 10**9), "v5e", 16, 0.5)
    assert "ladder: is tight" in tight
    hopeless = estimate.table("made", made(64 * 15 * 10**9), "v5e", 16, 0.5)
    assert "even one image at a time needs 18 GB" in hopeless


def test_shapes_are_enough(monkeypatch):
    config = small(
        **{"model.width": 1024, "model.emb_ch": 1024, "model.num_classes": 10}
    )

    def load(num_images=1500):
        raise AssertionError("the data were read")

    monkeypatch.setattr(digits, "load", load)
    described = dict(value=lambda **options: ((8, 8, 1), None), raising=False)
    monkeypatch.setattr(digits, "describe", **described)
    before = sum(a.nbytes for a in jax.live_arrays())
    found = counted(config, num_devices=8)
    assert found.num_weights > 6 * 10**6
    assert sum(a.nbytes for a in jax.live_arrays()) - before < 1000
    monkeypatch.setattr(digits, "describe", lambda **options: None)
    with pytest.raises(AssertionError, match="were read"):
        sketch(config, 8)


def test_a_description_is_that_of_the_data():
    assert data.describe("digits") == ((8, 8, 1), 10, None, "pictures")
    shapes = data.describe("shapes", size=4, num_images=2)
    assert shapes == ((4, 4, 3), 0, None, "pictures")
    assert data.describe("ring2d").denoise is not None


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; (exit code, printed, files)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        for name in [n for n in flags.FLAGS if n.startswith("config.")]:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()
        for name in ("chip", "num_chips", "utilisation", "compile", "mode"):
            flags.FLAGS[name].value = flags.FLAGS[name].default
        monkeypatch.setattr(sys, "argv", ["main", "--mode=estimate", *arguments])
        code = main.main(sys.argv)
        return code, capsys.readouterr(), list(tmp_path.rglob("*"))

    yield call
    flags.FLAGS["mode"].value = flags.FLAGS["mode"].default


def runs(name, variant=""):
    file = ROOT / "configs" / f"{name}.py"
    config = runpy.run_path(str(file))["get_config"](variant)
    return f"--config={file}{':' * bool(variant)}{variant}", config


def check_printed(name, code, printed, files):
    assert code == 0, printed.err
    assert not files
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"{name} on 8 x v5e, at 40% of 197 TFLOP/s")
    assert max(map(len, lines)) <= 80
    for chip in estimate.CHIPS:
        assert any(line.startswith(chip) for line in lines)


@pytest.mark.parametrize("name", QUICK)
def test_miniatures_are_estimated_and_nothing_written(call, name):
    flag, _ = runs(name, "smoke")
    check_printed(f"{name}:smoke", *call(flag))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("imagenet64", marks=pytest.mark.slow),
        pytest.param("image_folder", marks=pytest.mark.slow),
        pytest.param("photos32", marks=pytest.mark.long),
    ],
)
def test_configs_are_estimated_without_their_data(call, name):
    flag, _ = runs(name)
    check_printed(name, *call(flag))


@pytest.mark.slow
def test_counts_of_a_step_agree():
    _, config = runs("photos32")
    found = counted(config, 64)
    for cost, passes in zip(found.trainings, (3, 5)):
        each = cost.flops / cost.batch / found.forward
        assert each == pytest.approx(passes, rel=0.001)
        assert cost.xla_flops == pytest.approx(cost.flops, rel=0.02)


WRONG = [
    ("--chip=H10", 'unknown --chip "H10"'),
    ("--chip=v5", 'Did you mean "v5'),
    ("--num_chips=0", "--num_chips=0"),
    ("--num_chips=many", "num_chips"),
    ("--num_chips=3", "teacher.batch=128 is not divisible by 3 devices"),
    ("--utilisation=0", "above 0"),
    ("--utilisation=40", "at most 1"),
    ("--config.model.emb_ch=3", "model.emb_ch=3"),
]


@pytest.mark.parametrize(("flag", "says"), WRONG)
def test_wrong_use_is_one_clear_message(call, flag, says):
    config, _ = runs("digits", "smoke")
    code, printed, files = call(config, flag)
    assert code == 2
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert not printed.out
    assert not files
