"""How far the host may run ahead of the device: a time, not a number of updates."""

import collections
import time

import jax

SECONDS = 0.5  # of work that may be waiting, so that the device is never idle
MAX_AHEAD = 32  # calls; JAX's own limit on CPU and GPU
RATE_SECONDS = 2.0  # over which the rate is measured


class Pace:
    """Keeps what a stop has to wait for short, whatever an update takes.

    At most `SECONDS` of work are in flight, but always a call beside the one that
    the device is at. Fast calls are never waited for one by one.

    Attributes:
      rate: calls that end a second; None until it was measured.
    """

    def __init__(self):
        self._flight: collections.deque = collections.deque()  # began, queue, result
        self._ahead = 1
        self.rate: float | None = None
        self._mark: float | None = None  # since when calls are counted for the rate
        self._counted = 0

    def add(self, results) -> int:
        """Notes a call just made; waits for earlier ones if too many are in flight.

        Args:
          results: of the call, arrays that are not donated.

        Returns:
          How many calls have ended.
        """
        before = len(self._flight)
        while self._flight and self._flight[0][-1].is_ready():
            self._end()
        result = jax.tree.leaves(results)[0]
        self._flight.append((time.monotonic(), len(self._flight) + 1, result))
        while len(self._flight) > self._ahead:
            self._end()
        return before + 1 - len(self._flight)

    def drain(self) -> int:
        """Waits for all calls in flight; returns how many those were."""
        count = len(self._flight)
        while self._flight:
            self._end()
        return count

    def _end(self) -> None:
        """Waits for the oldest call; what it took says how many may be in flight."""
        began, queue, result = self._flight.popleft()
        result.block_until_ready()
        now = time.monotonic()
        # All of the queue was worked off since, but for the part of its first call
        # that was done before: at least half of the truth. Noticed late, it is more
        # than the truth, and fewer calls are in flight for a moment.
        each = (now - began) / queue
        self._ahead = int(min(max(SECONDS / max(each, 1e-9), 1), MAX_AHEAD))
        if self._mark is None:  # the first may have waited for a compilation
            self._mark = now
            return
        self._counted += 1
        if now - self._mark >= RATE_SECONDS:
            self.rate = self._counted / (now - self._mark)
            self._mark, self._counted = now, 0
