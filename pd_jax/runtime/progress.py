"""Progress of a whole run: one bar on a terminal, lines elsewhere."""

import sys
import time

from tqdm import tqdm

from pd_jax.runtime import console


class Progress:
    """One bar for a whole run on a terminal; elsewhere a line every few seconds.

    Work is counted in forward passes of one example, so that training and sampling
    share one measure and the time left is that of the run.
    """

    def __init__(self, total: int, done: int, seconds: float, shown: bool = True):
        """Of `total` work, of which `done`; not `shown`: nothing is printed."""
        self._total, self._initial, self._done = max(total, 1), done, done
        self._seconds = seconds
        self._began = self._printed = time.monotonic()
        self._text, self._shown = "", shown
        self._bar = None
        if shown and console.level > console.QUIET and sys.stderr.isatty():
            self._bar = console.bar = tqdm(
                total=self._total,
                initial=done,
                bar_format="{percentage:3.0f}%|{bar:10}| {elapsed}<{remaining} {desc}",
                dynamic_ncols=True,
                leave=False,
            )

    def advance(self, work: int, text: str | None = None) -> None:
        """Counts work; `text` says what is going on, the last one stays."""
        self._done += work
        self._text = self._text if text is None else text
        if self._bar is not None:
            self._bar.set_description_str(self._text, refresh=False)
            self._bar.update(work)
        elif self._shown and time.monotonic() - self._printed >= self._seconds:
            self._printed = time.monotonic()
            share = self._done / self._total
            done, left = self._done - self._initial, ""
            if done > 0.01 * self._total:  # before, it is mostly compiling
                each = (self._printed - self._began) / done
                left = tqdm.format_interval((self._total - self._done) * each)
                left = f", {left} left"
            console.say(f"{share:4.0%}{left}  {self._text}")

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
