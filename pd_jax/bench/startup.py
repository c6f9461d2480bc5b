"""A config's first step in a process of its own: how long it takes, in what memory.

`first_step` starts this file as a program, which reads a config as JSON and prints what
it found as JSON. What a device once held shows in no later process.
"""

import json
import os
import subprocess
import sys
import time

from ml_collections import ConfigDict

from pd_jax.runtime.errors import Refused

EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


def first_step(
    config: ConfigDict, training: str, cache: str, compiler: bool = False
) -> dict:
    """Runs a config's first step in a fresh process.

    Args:
      config: the config.
      training: "teacher" or "ladder".
      cache: folder of JAX's persistent compilation cache.
      compiler: where a device does not tell its memory, asks the compiler.

    Returns:
      {"failed": why}, or {"seconds": {...}, "memory": {...}}: seconds of the first call
      ("call", and of it "trace", "lower" and "compile", which with a filled cache is
      reading) and from the process's start to the first step's end ("start"); bytes
      ("peak" and "limit" of a device, or "compiler").

    Raises:
      Refused: for what cannot work, naming the config key.
    """
    given = {"config": config.to_dict(), "training": training, "compiler": compiler}
    done = subprocess.run(
        [sys.executable, "-m", "pd_jax.bench.startup"],
        input=json.dumps(given | {"began": time.time()}),
        capture_output=True,
        text=True,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": cache,
            # As `compilation.keep` has it.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        },
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # The system kills whom it has no memory for.
        return {"failed": "killed" if done.returncode < 0 else lines[-1]}
    answer = json.loads(done.stdout.splitlines()[-1])
    if "refused" in answer:
        raise Refused(answer["refused"])
    return answer


def _measure(
    config: ConfigDict, name: str, began: float, compiler: bool
) -> dict[str, dict]:
    import jax

    from pd_jax.bench.subject import first_state, one_call
    from pd_jax.bench.timing import find_data, training_of
    from pd_jax.config.setup import build, sketch
    from pd_jax.costs import count

    setup = build(config, find_data(config)[0])
    training = training_of(setup.trainings, name)
    step = training.step
    batch = one_call(setup, training)
    state = first_state(training, setup.first_weights(), training.stages[-1])
    longest = dict.fromkeys(EVENTS.values(), 0.0)

    def listen(event, seconds, **kw):
        if event in EVENTS:  # those of inner functions are part of the longest
            longest[EVENTS[event]] = max(longest[EVENTS[event]], seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    called = time.perf_counter()
    state, _ = jax.block_until_ready(step(state, batch, training.key))
    seconds = {"call": time.perf_counter() - called, "start": time.time() - began}
    jax.monitoring.unregister_event_duration_listener(listen)
    for _ in range(2):
        state, _ = jax.block_until_ready(step(state, batch, training.key))
    used = [device.memory_stats() or {} for device in step.devices]
    memory = {}
    if all("peak_bytes_in_use" in stats for stats in used):
        fullest = max(used, key=lambda stats: stats["peak_bytes_in_use"])
        memory = {"peak": fullest["peak_bytes_in_use"]}
        memory["limit"] = fullest.get("bytes_limit", 0)
    elif compiler:
        config.precision = setup.model.dtype.name  # "auto" is another one elsewhere
        shapes = sketch(config, len(step.devices))
        training = training_of(shapes.trainings, name)
        parts = count.compiler_memory(shapes, training, len(step.devices))
        memory = {"compiler": sum(parts)}
    return {"seconds": longest | seconds, "memory": memory}


def main() -> int:
    """Reads what to do, and prints what was found."""
    from pd_jax.bench.timing import OUT_OF_MEMORY, reason
    from pd_jax.runtime import numerics

    given = json.load(sys.stdin)
    config = ConfigDict(given["config"])
    asked = given["training"], given["began"], given["compiler"]
    try:
        with numerics.pinned():
            answer = _measure(config, *asked)
    except Refused as error:
        answer = {"refused": str(error)}
    except Exception as error:
        answer = {"failed": reason(error)}
        if answer["failed"] != OUT_OF_MEMORY:
            raise
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
