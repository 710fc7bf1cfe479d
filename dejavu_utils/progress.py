"""Progress of a long stage: a bar on a terminal, a plain line every few seconds in a job's log."""

import sys
import time
from typing import TextIO


class Progress:
    """`with Progress(total, "images") as progress: ... progress.update(count)`; writes to stderr.

    total: how many units of work there are. what: their name. seconds: between two lines of a log.
    """

    def __init__(self, total: int, what: str, seconds: float = 10.0, stream: TextIO | None = None) -> None:
        self.total, self.what, self.done = total, what, 0
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every = 0.2 if self.terminal else seconds

    def __enter__(self):
        self.started = self.shown = time.monotonic()
        return self

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= self.every:
            self.shown = now
            self._show(now)

    def _show(self, now, last=False):
        rate = self.done / max(now - self.started, 1e-9)
        text = f"{self.done}/{self.total} {self.what}, {rate:.0f}/s"
        if not last and rate > 0:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        if self.terminal:
            filled = int(24 * self.done / max(self.total, 1))
            self.stream.write(f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\033[K" + ("\n" if last else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def __exit__(self, *_):
        self._show(time.monotonic(), last=True)
