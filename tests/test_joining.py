"""Which processes take part in a run of several."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from pd_jax.runtime import processes

ROOT = pathlib.Path(__file__).parents[1]
ALLOCATION = {
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
STEP = {"SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_NUM_TASKS": "2"}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "host:1",
    "JAX_NUM_PROCESSES": "2",
    "JAX_PROCESS_ID": "1",
}


@pytest.fixture
def joined(monkeypatch):
    """What JAX was told, one entry for each time that it was asked to join."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **kw: calls.append(a))
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_P", "JAX_PROC")):
            monkeypatch.delenv(name)
    return calls


@pytest.mark.parametrize(
    ("environment", "way", "told"),
    [
        ({}, "auto", []),
        ({}, "on", [()]),
        (VARIABLES, "auto", [("host:1", 2, 1)]),
        (VARIABLES, "off", []),
        (ALLOCATION | STEP, "auto", [()]),
        (ALLOCATION | STEP, "off", []),
        (ALLOCATION, "auto", []),  # sbatch's own script
        (ALLOCATION | STEP | {"SLURM_STEP_NUM_TASKS": "1"}, "auto", []),  # a shell
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "auto", [()]),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, "auto", []),
    ],
)
def test_who_joins(joined, monkeypatch, environment, way, told):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.join(way)
    assert joined == told


@pytest.mark.parametrize("missing", VARIABLES)
def test_some_of_the_variables_are_none(joined, monkeypatch, missing):
    for name in VARIABLES.keys() - {missing}:
        monkeypatch.setenv(name, VARIABLES[name])
    with pytest.raises(ValueError, match="set all of"):
        processes.join()
    assert not joined


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ValueError, ValueError), (RuntimeError, OSError), (OSError, OSError)],
)
def test_a_cluster_that_is_none_says_how_to_go_without(monkeypatch, error, raised):
    def fail(**kw):
        raise error("no answer" * 100)

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(raised, match=r"no answer.*--distributed=off") as found:
        processes.join()
    assert len(str(found.value)) < 450


def started(variables, say):
    """A process that joins and then says something; None unsets a variable."""
    environment = {k: v for k, v in (os.environ | variables).items() if v is not None}
    program = f"import jax; from pd_jax.runtime.processes import join; join(); {say}"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.mark.slow
def test_jax_finds_the_tasks_of_a_slurm_step():
    shared = ALLOCATION | STEP | {"JAX_COORDINATOR_PORT": free_port()}
    say = "print(jax.process_index(), jax.process_count()); processes.leave()"
    tasks = [
        started(shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}, say)
        for i in range(2)
    ]
    found = [task.communicate(timeout=120)[0] for task in tasks]
    assert found == ["0 2\n", "1 2\n"]


@pytest.mark.slow
@pytest.mark.parametrize("chips", [True, False])
def test_jax_finds_the_workers_of_a_cloud_tpu(tmp_path, chips):
    """As on GKE; where JAX sees no chips a machine with libtpu is no TPU VM."""
    (tmp_path / "libtpu.py").write_text("def get_library_path(): return 'libtpu.so'")
    variables = {
        "JAX_PLATFORMS": None,
        "JAX_FORCE_TPU_INIT": "1" if chips else None,
        "JAX_COORDINATOR_PORT": free_port(),
        "PYTHONPATH": str(tmp_path),
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        # What JAX would ask of the metadata server.
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
    }
    worker = started(variables, "print(jax.distributed.is_initialized())")
    found, errors = worker.communicate(timeout=120)
    assert found == f"{chips}\n", errors
