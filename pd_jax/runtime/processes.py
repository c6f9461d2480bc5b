"""One run over several processes: joining them, and what they agree on.

Every process runs the same program on its own devices. What depends on files is decided
by process 0 and told to the others, so that all of them take the same way.
"""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from pd_jax.runtime import registry
from pd_jax.runtime.errors import Refused

WAYS = ("auto", "on", "off")
MOST_TOLD = 300  # bytes
HEARTBEAT_SECONDS = 60  # without a sign of life from one, all others end


def join(way: str = "auto") -> None:
    """Joins the run's other processes; comes before any other use of JAX.

    Args:
      way: "off" for a process of its own; "on" for JAX's own detection of the cluster;
        "auto" for the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
        JAX_PROCESS_ID where they are set, and else detection on Cloud TPU, SLURM and
        Open MPI.

    Raises:
      Refused: for an unknown way, only some of the variables, or a cluster that JAX
        does not find.
      ConnectionError: where what knows the cluster does not answer.
    """
    registry.check(way, WAYS, "--distributed")
    if way == "off":
        return
    keys = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {key: os.environ[key] for key in keys if os.environ.get(key)}
    arguments = ()
    if len(given) > 1:
        if len(given) < len(keys) or not (given[keys[1]] + given[keys[2]]).isdigit():
            raise Refused(
                f"{given}: set all of {', '.join(keys)}, the last two to whole "
                "numbers, or none of them"
            )
        address, count, index = (given[key] for key in keys)
        arguments = address, int(count), int(index)
    elif way == "auto" and not _in_cluster():
        return
    try:
        jax.distributed.initialize(
            *arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except Exception as error:  # JAX's, or of the requests that it makes
        check_devices()  # JAX may look for a TPU's processes where there is no TPU
        kind = Refused if isinstance(error, ValueError) else ConnectionError
        raise kind(
            f"the run's other processes were not found ({str(error)[:200]}): "
            f"--distributed=off starts a process of its own, {', '.join(keys)} say "
            "where the others are"
        ) from error


def _in_cluster() -> bool:
    """Whether this process was started as one of several, or on a Cloud TPU VM."""
    # Of the job's step: in a batch script SLURM_NTASKS is that of steps to come.
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(os.environ.get(size) or 1) > 1 for size in sizes):
        return True
    # JAX prefers the TPU by itself where it sees libtpu and chips, unless told not to.
    return "tpu" in (jax.config.jax_platforms or "")


def check_devices() -> None:
    """Refused where JAX cannot start: JAX_PLATFORMS names devices that are not here."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition(" (set JAX_PLATFORMS")[0]
        raise Refused(
            f"JAX_PLATFORMS={jax.config.jax_platforms}: JAX finds no such device"
            f"{why and f' ({why})'}. Unset it to use the devices that are here, or "
            "install JAX for it: pip install 'jax[cuda12]' or 'jax[tpu]'"
        ) from error


def leave() -> None:
    """Waits for the others to end too: process 0 serves them all until then."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is process 0, which writes logs and reports."""
    return jax.process_index() == 0


def devices() -> str:
    """How many devices all processes have, and of which kind, such as "4 x cpu"."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def part() -> tuple[int, int]:
    """(i, n): this process is number i of n."""
    return jax.process_index(), jax.process_count()


def on_first_process(decide: Callable[[], Any]) -> Any:
    """Calls `decide` in process 0; returns its value (of JSON) in all processes.

    A ValueError or OSError that it raises there is raised in all of them.
    """
    if jax.process_count() == 1:
        return decide()
    answer = {}
    if is_first():
        try:
            answer = {"value": decide()}
        except (ValueError, OSError) as error:
            kind = "ValueError" if isinstance(error, ValueError) else "OSError"
            answer = {kind: str(error)}
    text = np.frombuffer(json.dumps(answer).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    mine = text if is_first() else np.zeros(size, np.uint8)
    shared = json.loads(bytes(multihost_utils.broadcast_one_to_all(mine)).decode())
    if "ValueError" in shared:
        raise Refused(shared["ValueError"])
    if "OSError" in shared:
        raise OSError(shared["OSError"])
    return shared["value"]


def tell(text: str | None) -> str | None:
    """The first process's text that has one, in all processes; None where none has."""
    if jax.process_count() == 1:
        return text
    mine = np.zeros(MOST_TOLD, np.uint8)
    content = np.frombuffer((text or "").encode()[:MOST_TOLD], np.uint8)
    mine[: content.size] = content
    gathered = multihost_utils.process_allgather(mine)
    texts = [bytes(row).rstrip(b"\0") for row in gathered]
    return next((text.decode(errors="replace") for text in texts if text), None)


def stop_asked(moment: int) -> bool:
    """Whether any process was sent SIGTERM; true at one `moment` in all of them.

    Args:
      moment: a count that grows alike in all processes, one a call.
    """
    return multihost_utils.reached_preemption_sync_point(moment)
