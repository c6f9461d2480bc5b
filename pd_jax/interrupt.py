"""Stopping on request: the first signal asks, the second one insists."""

import signal


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

    A second signal has its usual effect at once.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> "Interrupt":
        self._before = {s: signal.signal(s, self._receive) for s in self._signals}
        return self

    def __exit__(self, *error) -> None:
        self._restore()

    def _receive(self, signum, frame) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def check(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)
