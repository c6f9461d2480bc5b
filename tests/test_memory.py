"""What memory updates certainly need, against what a machine has."""

import jax
import jax.numpy as jnp
import pytest

from pd_jax.config import default, recipes
from pd_jax.config.setup import build
from pd_jax.costs import memory
from pd_jax.costs.count import held_bytes
from pd_jax.costs.program import result_bytes
from pd_jax.runtime import host
from pd_jax.runtime.errors import Refused

GROUP = "sys/fs/cgroup/jobs/one/memory.max"


def test_results_of_products_are_counted_by_hand():
    def network(x, w):
        x = jnp.tanh(x @ w)
        again = jax.checkpoint(lambda x: jnp.tanh(jnp.tanh(x @ w) @ w))
        return again(x) @ w[:, :2]

    x, w = jnp.zeros((5, 8)), jnp.zeros((8, 8))
    jaxpr = jax.make_jaxpr(network)(x, w).jaxpr
    assert result_bytes(jaxpr, recomputes=False) == 4 * 5 * (8 + 8 + 8 + 2)
    assert result_bytes(jaxpr, recomputes=True) == 4 * 5 * (8 + 8 + 2)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"proc/meminfo": "MemTotal: 100 kB\nSwapTotal:  20 kB\n"}, 120 * 1024),
        ({"proc/meminfo": "MemTotal: 100 kB\n", GROUP: "max\n"}, 100 * 1024),
        ({"proc/meminfo": "MemTotal: 100 kB\n", GROUP: "5000\n"}, 5000),
        (
            {
                "proc/meminfo": "MemTotal: 100 kB\n",
                "sys/fs/cgroup/memory.max": "4000\n",
                GROUP: "5000\n",
            },
            4000,
        ),
    ],
)
def test_memory_of_a_machine_and_of_its_control_groups(tmp_path, files, says):
    for name, text in {"proc/self/cgroup": "0::/jobs/one\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host.memory_bytes(str(tmp_path)) == says


def test_memory_of_this_machine_is_known():
    assert host.memory_bytes() > 2**28


def config(**teacher):
    config = default("shapes", "unet")
    recipes.smoke_unet(config)
    config.data.size = 16
    config.teacher.update(teacher)
    return config


def test_what_cannot_fit_is_refused_with_values_that_fit(monkeypatch):
    setup = build(config(batch=1024))
    training, devices = setup.trainings[0], jax.local_device_count()
    room = devices * (held_bytes(setup, training) + 3e7) / memory.ROOM
    monkeypatch.setattr(host, "memory_bytes", lambda: int(room))
    with pytest.raises(Refused) as error:
        memory.check(setup, {"teacher", "ladder"})
    assert "teacher.batch=1024; this machine has" in str(error.value)
    memory.check(setup, {"ladder"})  # all of the teacher is trained
    values = {}
    for word in str(error.value).replace(";", "").split():
        key, _, value = word.partition("=")
        values[key.removeprefix("--config.")] = value
    batch, parts = (int(values[f"teacher.{k}"]) for k in ("batch", "microbatches"))
    assert batch * parts == 1024
    for given in ({"batch": batch}, {"batch": 1024, "microbatches": parts}):
        memory.check(build(config(**given)), {"teacher"})
    anyway = config(batch=1024)
    anyway.run.check_memory = False
    memory.check(build(anyway), {"teacher"})


def test_compilers_of_accelerators_may_do_with_less(monkeypatch, capsys):
    setup = build(config(batch=1024))
    limit = held_bytes(setup, setup.trainings[0]) / memory.ROOM
    device = type(
        "Chip",
        (),
        {"platform": "gpu", "memory_stats": lambda self: {"bytes_limit": limit}},
    )()
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    memory.check(setup, {"teacher"})
    assert "warning: an update of teacher needs" in capsys.readouterr().out
