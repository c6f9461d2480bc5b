"""Who is told what a run does, while it does it.

A callback is any object with some of these methods, which are called in the first
process of a run; or a function, in place of `on_metrics`.

    on_done(report)              a run that is complete was asked for again: its report
    on_begin(setup, present)     a run begins: its `pd_jax.config.setup.Setup`, and what
                                 its folder holds already, in words
    on_start(stage, update)      a stage begins, or goes on after so many updates; what
                                 was told of it beyond them is void and told again
    on_metrics(entry)            a line of metrics.jsonl: {"stage", "update", "loss",
                                 "grad_norm", "learning_rate", "skipped", ...}, means
                                 over the updates since the line before
    on_student(student)          a `pd_jax.students.student.Student` is trained
    on_row(entry, samples)       a row of the report was measured: {"model",
                                 "num_steps", "sampler", "metrics", ...}; and its first
                                 samples, [n, ...]
    on_checkpoint(stage, update) a stage's state is being saved
    on_stop(stage, update)       a stage is done, or stopped on request, and saved
    on_report(report, evaluation) all is measured: the report as in report.json, which
                                 is written next
    on_end(report)               everything of the run is written
    flush()                      a checkpoint is due: what was told must be kept
    close()                      the run ends, done or not

What a callback raises ends the run; checkpoints stay.
"""

from collections.abc import Callable, Iterable

from pd_jax.runtime import processes, registry
from pd_jax.runtime.errors import Refused

EVENTS = (
    *("on_done", "on_begin", "on_start", "on_metrics", "on_checkpoint", "on_stop"),
    *("on_student", "on_row", "on_report", "on_end", "flush", "close"),
)


class Callbacks:
    """Several callbacks as one: its method of an event's name tells all, in order."""

    def __init__(self, callbacks: Iterable[object]):
        """Refused for what is no callback."""
        self._heard = {event: [] for event in EVENTS}
        for callback in callbacks:
            for event, method in _methods(callback).items():
                self._heard[event].append(method)

    def hear(self, event: str) -> bool:
        """Whether any of them has the method of an event."""
        return bool(self._heard[event])

    def __getattr__(self, event: str) -> Callable[..., None]:
        if event not in EVENTS:
            raise AttributeError(event)

        def tell(*what):
            for method in self._heard[event] if processes.is_first() else ():
                method(*what)

        return tell


def _methods(callback: object) -> dict[str, Callable]:
    """A callback's methods by event."""
    methods = {e: getattr(callback, e) for e in EVENTS if hasattr(callback, e)}
    for name in dir(callback):
        if name.startswith("on_") and name not in EVENTS:
            hint = registry.suggest(name, EVENTS)
            raise Refused(f"callback {callback!r}: there is no event {name}.{hint}")
    if not methods and callable(callback) and not isinstance(callback, type):
        methods = {"on_metrics": callback}
    if not methods:
        raise Refused(
            f"callback {callback!r}: give a function of a metrics entry, or an object "
            f"with some of the methods {', '.join(EVENTS)}"
        )
    return methods
