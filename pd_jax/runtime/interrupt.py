"""Stopping on request: the first signal asks, the second one insists."""

import os
import signal
import socket
import sys
import threading

import jax

from pd_jax.runtime import processes

PATIENCE_SECONDS = 20.0  # of 30 that clouds give: the rest is for saving
NOT_SAVED = "no safe place to stop at: what came after the last checkpoint is lost"


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

    A second signal has its usual effect at once; so has the first where no safe place
    comes within `PATIENCE_SECONDS`, as in a long compilation. What is on disk is whole
    at any moment. Where a run has several processes, a signal to any of them stops all
    of them at the same update, and JAX keeps a second SIGTERM to itself.

    Attributes:
      received: the signal, once it is known; None before.
    """

    _signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received: int | None = None
        self._heeded = False
        self._before = {}
        self._moment = 0

    def __enter__(self) -> "Interrupt":
        # JAX's own service hears SIGTERM where it must tell other processes.
        self._alone = jax.process_count() == 1
        caught = self._signals if self._alone else (signal.SIGINT,)
        handle = self._receive if self._alone else self._pass_on
        self._before = {s: signal.signal(s, handle) for s in caught}
        if self._alone:
            # Python runs its handlers between two lines of the main thread, which a
            # compilation keeps waiting: the numbers of signals come here too, at once.
            self._bell, heard = socket.socketpair()
            self._bell.setblocking(False)
            self._bell_before = signal.set_wakeup_fd(
                self._bell.fileno(), warn_on_full_buffer=False
            )
            threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self._restore()
        if self._alone:
            signal.set_wakeup_fd(self._bell_before)
            self._bell.close()

    def _listen(self, heard: socket.socket) -> None:
        """Ends the process where a signal must not wait for the main thread."""
        asked = None
        with heard:
            while True:
                try:
                    number = heard.recv(1)
                except TimeoutError:  # the patience is at its end
                    if not self._heeded:
                        print(NOT_SAVED, file=sys.stderr, flush=True)
                        self._end(asked)
                    heard.settimeout(None)
                    continue
                if not number:
                    return
                if number[0] not in self._signals:
                    continue
                if asked is not None:
                    self._end(number[0])
                asked = number[0]
                heard.settimeout(PATIENCE_SECONDS)

    def _end(self, signum: int) -> None:
        """What a signal would have done before, in place of the main thread."""
        before = self._before[signum]
        if before is signal.SIG_DFL:
            os._exit(128 + signum)
        # Python's own for Ctrl-C can but raise in the main thread.
        if callable(before) and before is not signal.default_int_handler:
            before(signum, None)

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
        if self.received is None and not self._alone:
            self._moment += 1
            if processes.stop_asked(self._moment):
                self.received = signal.SIGTERM
        self._heeded = self.received is not None
        return self._heeded

    def check(self) -> None:
        """Raises Interrupted where a signal has come."""
        if self.asked():
            raise Interrupted(self.received)
