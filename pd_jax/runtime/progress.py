"""Progress of a run and the time left of it: a bar on a terminal, lines elsewhere."""

import dataclasses
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

from pd_jax.runtime import compilation, console

PRIOR_SECONDS = 3.0  # of a part's own work that weigh as much as the other parts' pace
TELLING_SECONDS = 5.0  # of work after which the time left is said
BAR_SECONDS = 0.2  # between two states of a bar


@dataclasses.dataclass
class _Part:
    """One kind of work, which has a pace of its own.

    Attributes:
      left: work to do.
      work, seconds: what was done since its first result, and how long that took,
        without compiling.
      compiling: seconds of that, from the start on.
      begun: whether there was a result. What comes before it, as of files and programs
        that are loaded, says little of the pace.
    """

    left: float
    work: float = 0.0
    seconds: float = 0.0
    compiling: float = 0.0
    begun: bool = False


class Progress:
    """One bar on a terminal; elsewhere a line every few seconds.

    Work is counted in forward passes of one example, so that training and sampling have
    one measure. Each part's pace is measured, and that of a part still to come taken to
    be the mean of those before; so is the time for compiling it.
    """

    def __init__(
        self,
        name: str,
        work: Mapping[str, tuple[int, int]],
        seconds: float,
        shown: bool = True,
    ):
        """Begins.

        Args:
          name: what it is the progress of, as in "left of the run".
          work: of each part by name, (done before, in all).
          seconds: between two lines, where there is no terminal.
          shown: whether anything is printed.
        """
        self._name, self._shown = name, shown
        self._parts = {part: _Part(all - done) for part, (done, all) in work.items()}
        self._done = sum(done for done, _ in work.values())
        self._printed = self._clock = time.monotonic()
        self._compiled = compilation.seconds()
        self._seconds = seconds
        self._bar = None
        if shown and console.level > console.QUIET and sys.stderr.isatty():
            self._bar = console.bar = tqdm(
                total=1.0,
                bar_format="{percentage:3.0f}%|{bar:10}| {elapsed}{desc}",
                dynamic_ncols=True,
                leave=False,
            )
            self._seconds = BAR_SECONDS

    def advance(self, part: str, work: int, text: str) -> None:
        """Counts work of a part; `text` says what is going on."""
        now, compiled, it = time.monotonic(), compilation.seconds(), self._parts[part]
        elapsed, compiling = now - self._clock, compiled - self._compiled
        self._clock, self._compiled = now, compiled
        it.compiling += compiling
        if it.begun:
            it.seconds += max(elapsed - compiling, 0.0)
            it.work += work
        it.begun |= work > 0
        it.left -= work
        self._done += work
        if now - self._printed >= self._seconds:
            self.show(text)

    def show(self, text: str) -> None:
        """Says at once what is going on."""
        self._printed, left = time.monotonic(), self.seconds_left
        if left is not None:
            left = f", {tqdm.format_interval(round(left))} left of the {self._name}"
        words = f"{left or ''}  {text}"
        if self._bar is not None:
            self._bar.n = self._share
            self._bar.set_description_str(words)
        elif self._shown:
            console.say(f"{self._share:4.0%}{words}")

    def drop(self, part: str, work: int) -> None:
        """Takes work off a part: it need not be done."""
        self._parts[part].left -= work

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the time left; None as long as there is no telling."""
        parts = self._parts.values()
        work, seconds = (sum(getattr(p, n) for p in parts) for n in ("work", "seconds"))
        if seconds < TELLING_SECONDS or not work:
            return None
        pace = seconds / work
        left = sum(
            max(p.left, 0.0)
            * (p.seconds + PRIOR_SECONDS)
            / (p.work + PRIOR_SECONDS / pace)
            for p in parts
        )
        begun = [p.compiling for p in parts if p.begun]
        to_come = sum(p.left > 0 for p in parts if not p.begun)
        return left + to_come * sum(begun) / len(begun)

    @property
    def _share(self) -> float:
        left = sum(max(p.left, 0.0) for p in self._parts.values())
        return self._done / max(self._done + left, 1)

    def say(self, line: str) -> None:
        """Prints a line of its own, above the bar."""
        if self._shown:
            console.say(line)

    def warn(self, line: str) -> None:
        """Prints one that should not be overlooked."""
        if self._shown:
            console.warn(line)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            console.bar = None
