"""tpu.sh on a small cloud of its own."""

import pytest
from launch_stage import AWKWARD, CONFIG, kill_group, program, stage, until

__all__ = ["stage"]  # a fixture

# A small cloud: $STAGE/vm and $STAGE/queue hold the states to come, the last of which
# stays; each worker is a home folder, gone with the VM; $STAGE/bucket is gs://bucket.
GCLOUD = """
import pathlib, shutil, signal, subprocess
stage = pathlib.Path(os.environ["STAGE"])
homes = [stage / f"worker{i}" for i in range(2)]
words = sys.argv[1:]
flags = dict(w[2:].split("=", 1) for w in words if w.startswith("--") and "=" in w)

def state(kind):
    file = stage / kind
    states = file.read_text().split() if file.exists() else []
    if len(states) > 1:
        file.write_text(" ".join(states[1:]))
    return states[0] if states else "MISSING"

def wipe():
    for home in homes:
        pid = home / "pd_jax_run/pid"
        if pid.exists():
            try:
                os.killpg(int(pid.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(home, ignore_errors=True)

def connect():
    if state("vm") != "READY":
        sys.exit(255)
    fails = stage / "ssh_fails"
    left = int(fails.read_text()) if fails.exists() else 0
    if left and "tar xzf" in flags.get("command", ""):
        fails.write_text(str(left - 1))
        sys.exit(255)
    for home in homes:
        home.mkdir(exist_ok=True)
    worker = flags.get("worker", "0")
    return homes if worker == "all" else [homes[int(worker)]]

def ask(kind):
    found = state(kind)
    if found == "MISSING":
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if found == "FORBIDDEN":
        sys.exit("ERROR: (gcloud) PERMISSION_DENIED: no")
    print(found)

match words:
    case ["compute", "tpus", "tpu-vm", "describe", *_]:
        ask("vm")
    case ["compute", "tpus", "queued-resources", "describe", *_]:
        ask("queue")
    case ["compute", "tpus", "tpu-vm", "create", *_]:
        (stage / "vm").write_text("READY")
    case ["compute", "tpus", "queued-resources", "create", *_]:
        (stage / "queue").write_text("ACCEPTED WAITING_FOR_RESOURCES ACTIVE")
        (stage / "vm").write_text("MISSING MISSING MISSING CREATING READY")
    case ["compute", "tpus", "tpu-vm", "delete", *_]:
        (stage / "vm").unlink()
        wipe()
    case ["compute", "tpus", "queued-resources", "delete", *_]:
        (stage / "queue").unlink()
        (stage / "vm").unlink(missing_ok=True)
        wipe()
    case ["compute", "tpus", "tpu-vm", "scp", file, to, *_]:
        for home in connect():
            shutil.copy(file, home / to.split(":")[1])
    case ["compute", "tpus", "tpu-vm", "ssh", *_]:
        codes = [
            subprocess.run(
                ["sh", "-c", flags["command"]], cwd=h, env=os.environ | {"HOME": str(h)}
            ).returncode
            for h in connect()
        ]
        sys.exit(max(codes))
    case ["storage", "ls", url]:
        path = stage / url.removeprefix("gs://")
        sys.exit(0 if path.exists() else "ERROR: One or more URLs matched no objects.")
    case ["storage", "rsync", "--recursive", _, url, to]:
        source = stage / url.removeprefix("gs://")
        leave = shutil.ignore_patterns("checkpoints", "evaluation")
        shutil.copytree(source, to, ignore=leave, dirs_exist_ok=True)
    case _:
        sys.exit(f"no such command: {words}")
"""

# Stands in for pd_jax.main on a worker: what it does at its n-th start on worker 0 is
# the n-th word of $STAGE/plan.
RUN = """#!/usr/bin/env bash
cd "$STAGE"
printf '%s\\n' "$@" >"$HOME/arguments"
case $HOME in *1) echo "on worker 1"; exec sleep 60 ;; esac
read -r now then <plan
echo "$then" >plan
echo "so far: $now"
case $now in
  done)
    mkdir -p bucket/run/checkpoints bucket/run/samples
    touch bucket/run/checkpoints/big bucket/run/samples/a.png bucket/run/report.json
    ;;
  preempted)
    echo PREEMPTED >vm
    exec sleep 60
    ;;
  late)
    mkdir -p bucket/run
    touch bucket/run/report.json
    echo PREEMPTED >vm
    exec sleep 60
    ;;
  wait)
    trap 'sleep 0.2; echo saved >saved; exit 143' TERM
    for _ in {1..400}; do sleep 0.05; done
    ;;
  *) exit "$now" ;;
esac
"""
RUN_ARGUMENTS = ["--", CONFIG, "--workdir=gs://bucket/run", *AWKWARD]


@pytest.fixture
def tpu(stage):
    stage.stand_in("gcloud", GCLOUD)
    program(
        stage.bin / "python3", '#!/bin/sh\necho "$@" >>"$STAGE/${HOME##*/}.python3"\n'
    )
    program(stage.folder / "run.sh", RUN)
    stage.environment["PD_JAX_COMMAND"] = str(stage.folder / "run.sh")
    stage.environment |= {"PD_JAX_TYPE": "v5litepod-16", "PD_JAX_ZONE": "z1"}
    return stage


def set_up(tpu, *plan):
    """A VM with everything installed, and a plan for what runs there."""
    (tpu.folder / "vm").write_text("READY")
    (tpu.folder / "plan").write_text(" ".join(plan) + "\n")
    done = tpu.run("tpu.sh", "install")
    assert done.returncode == 0, done.err


def test_up_creates_or_reuses(tpu):
    flags = ["--spot", "--name=mine", "--project=p"]
    assert tpu.run("tpu.sh", "up", *flags).returncode == 0
    assert tpu.calls("create") == [
        [
            *("gcloud", "compute", "tpus", "tpu-vm", "create", "mine", "--zone=z1"),
            *("--project=p", "--quiet", "--accelerator-type=v5litepod-16"),
            *("--version=v2-alpha-tpuv5-lite", "--spot"),
        ]
    ]
    assert tpu.run("tpu.sh", "up", *flags).returncode == 0
    assert len(tpu.calls("create")) == 1


def test_up_makes_a_preempted_one_anew(tpu):
    (tpu.folder / "vm").write_text("PREEMPTED")
    assert tpu.run("tpu.sh", "up", "--version=v").returncode == 0
    verbs = [c[4] for c in tpu.calls() if c[3] == "tpu-vm" and c[4] != "describe"]
    assert verbs == ["delete", "create"]
    assert "--version=v" in tpu.calls("create")[0]


def test_up_waits_in_the_queue(tpu):
    done = tpu.run("tpu.sh", "up", "--queued", "--spot")
    assert done.returncode == 0
    (call,) = tpu.calls("create")
    assert call[3:6] == ["queued-resources", "create", "pd-jax"]
    assert {"--node-id=pd-jax", "--spot"} <= set(call)
    assert "WAITING_FOR_RESOURCES" in done.err
    assert done.err.rstrip().endswith("READY")
    # And what it made goes with its queue.
    assert tpu.run("tpu.sh", "down").returncode == 0
    assert tpu.calls("delete")[0][3:5] == ["queued-resources", "delete"]
    assert "--force" in tpu.calls("delete")[0]


def test_up_replaces_a_suspended_queue(tpu):
    (tpu.folder / "queue").write_text("SUSPENDED")
    assert tpu.run("tpu.sh", "up", "--queued").returncode == 0
    verbs = [c[4] for c in tpu.calls("queued-resources") if c[4] != "describe"]
    assert verbs == ["delete", "create"]


def test_up_says_what_gcloud_says(tpu):
    (tpu.folder / "vm").write_text("FORBIDDEN")
    done = tpu.run("tpu.sh", "up")
    assert done.returncode == 1
    assert "PERMISSION_DENIED" in done.err
    assert tpu.calls("create") == []


def test_install_is_for_all_workers(tpu):
    set_up(tpu)
    for i in range(2):
        home = tpu.folder / f"worker{i}"
        assert (home / "pd_jax/pd_jax/main.py").is_file()
        assert (home / "pd_jax/configs/digits.py").is_file()
        said = (tpu.folder / f"worker{i}.python3").read_text()
        assert f"jax[tpu] --editable {home}/pd_jax" in said
    for call in tpu.calls("scp") + tpu.calls("ssh"):
        assert "--worker=all" in call


def test_start_once_tail_stop(tpu):
    set_up(tpu, "wait")
    assert tpu.run("tpu.sh", "start", *RUN_ARGUMENTS).returncode == 0
    arguments = [tpu.folder / f"worker{i}/arguments" for i in range(2)]
    until(lambda: all(a.exists() for a in arguments), "started on both")
    for file in arguments:
        assert file.read_text().splitlines() == RUN_ARGUMENTS[1:]
    second = tpu.run("tpu.sh", "start", *RUN_ARGUMENTS)
    assert second.returncode == 3
    assert "a run is under way" in second.err
    assert tpu.calls("ssh")[-1][-1].endswith(" idle")  # none is started beside it
    assert tpu.run("tpu.sh", "install").returncode == 3
    tail = tpu.start("tpu.sh", "tail")
    assert tail.stdout.readline() == "so far: wait\n"
    kill_group(tail.pid)
    assert "--worker=0" in tpu.calls("ssh")[-1]
    assert tpu.run("tpu.sh", "stop", "--grace=5").returncode == 0
    assert (tpu.folder / "saved").exists()
    assert (tpu.folder / "worker0/pd_jax_run/exit").read_text() == "143\n"
    assert tpu.run("tpu.sh", "start", *RUN_ARGUMENTS).returncode == 0


def test_run_survives_a_preemption(tpu):
    (tpu.folder / "plan").write_text("preempted done\n")
    (tpu.folder / "ssh_fails").write_text("1")
    done = tpu.run("tpu.sh", "run", "--spot", "--down", *RUN_ARGUMENTS)
    assert done.returncode == 0, done.err
    verbs = [c[4] for c in tpu.calls("tpu-vm")]
    assert [v for v in verbs if v in ("create", "delete")] == [
        *("create", "delete", "create", "delete")
    ]
    assert "install failed, trying again" in done.err
    fetched = sorted(p.name for p in (tpu.folder / "runs/run").rglob("*"))
    assert fetched == ["a.png", "report.json", "samples"]
    (call,) = tpu.calls("rsync")
    assert "--exclude=^checkpoints/.*|^evaluation/.*" in call


@pytest.mark.slow
def test_run_makes_no_vm_for_a_run_that_is_done(tpu):
    (tpu.folder / "plan").write_text("late\n")
    done = tpu.run("tpu.sh", "run", "--to=here", *RUN_ARGUMENTS)
    assert done.returncode == 0, done.err
    assert len(tpu.calls("create")) == 1
    assert (tpu.folder / "here/report.json").is_file()


@pytest.mark.slow
def test_run_goes_on_after_a_crash_on_a_vm_that_is_well(tpu):
    (tpu.folder / "plan").write_text("134 done\n")
    done = tpu.run("tpu.sh", "run", *RUN_ARGUMENTS)
    assert done.returncode == 0, done.err
    assert len(tpu.calls("create")) == 1
    assert "still there, and paid for" in done.err


@pytest.mark.parametrize(("plan", "code"), [("2", 2), ("1", 1)])
def test_run_ends_where_the_run_is_wrong(tpu, plan, code):
    (tpu.folder / "plan").write_text(f"{plan}\n")
    done = tpu.run("tpu.sh", "run", *RUN_ARGUMENTS)
    assert done.returncode == code, done.err + done.out
    assert f"so far: {plan}" in done.out
    assert len(tpu.calls("create")) == 1


def test_run_watches_a_run_under_way_and_sees_it_stopped(tpu):
    set_up(tpu, "wait")
    assert tpu.run("tpu.sh", "start", *RUN_ARGUMENTS).returncode == 0
    watching = tpu.start("tpu.sh", "run", *RUN_ARGUMENTS)
    assert "under way already" in watching.stderr.readline() + (
        watching.stderr.readline()
    )
    assert tpu.run("tpu.sh", "stop").returncode == 0
    watching.communicate(timeout=60)
    assert watching.returncode == 143
    assert (tpu.folder / "saved").exists()


def test_run_warns_of_a_folder_that_a_preemption_takes(tpu):
    done = tpu.run("tpu.sh", "run", "--dry-run", "--", CONFIG)
    assert "a preemption loses" in done.err
    done = tpu.run("tpu.sh", "run", "--dry-run", *RUN_ARGUMENTS)
    assert "preemption" not in done.err


def test_fetch_from_a_workers_disk(tpu):
    set_up(tpu)
    run = tpu.folder / "worker0/pd_jax/runs/my run"
    for file in ("report.json", "samples/a.png", "checkpoints/1/big"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).touch()
    done = tpu.run("tpu.sh", "fetch", "--workdir=runs/my run", "--to=here")
    assert done.returncode == 0, done.err
    here = tpu.folder / "here"
    assert sorted(p.name for p in here.rglob("*")) == [
        "a.png",
        "report.json",
        "samples",
    ]
