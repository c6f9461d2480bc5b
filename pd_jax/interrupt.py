"""Stopping on request: the first signal asks, the second one insists."""

import os
import signal

import jax

from pd_jax import processes


class Interrupted(Exception):
    """A run stopped on request, with its state saved.

    Attributes:
      exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Interrupt:
    """Catches SIGINT and SIGTERM within its context; `check()` raises at a safe place.

    A second signal has its usual effect at once. Where a run has several processes, a
    signal to any of them stops all of them at the same update.

    Attributes:
      received: the signal, once it is known; None before.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: int | None = None
        self._before = {}
        self._moment = 0

    def __enter__(self) -> "Interrupt":
        # JAX's own service hears SIGTERM where it must tell other processes.
        alone = jax.process_count() == 1
        caught = self._signals if alone else (signal.SIGINT,)
        handle = self._receive if alone else self._pass_on
        self._before = {s: signal.signal(s, handle) for s in caught}
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def _receive(self, signum, frame) -> None:
        self.received = signum
        self._restore()

    def _pass_on(self, signum, frame) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def asked(self) -> bool:
        """Whether to stop here; all processes must ask equally often."""
        if self.received is None and jax.process_count() > 1:
            self._moment += 1
            if processes.stop_asked(self._moment):
                self.received = signal.SIGTERM
        return self.received is not None

    def check(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.asked():
            raise Interrupted(self.received)
