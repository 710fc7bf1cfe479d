"""A run's log (one JSON object per line), what its first process prints, and the progress of a long
stage."""

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file


@dataclass
class Progress:
    """`with Progress(total, "images") as progress: ... progress.update(count)`; writes to stderr.

    total: how many units of work there are. what: their name. quiet: write nothing. A bar on a
    terminal, else a line every ten seconds.
    """

    total: int
    what: str
    done: int = 0
    quiet: bool = False

    def __enter__(self) -> "Progress":
        self.terminal = sys.stderr.isatty()
        self.started = self.shown = time.monotonic()
        return self

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= (0.2 if self.terminal else 10):
            self.shown = now
            self._show(now)

    def _show(self, now: float, last: bool = False) -> None:
        if self.quiet:
            return
        rate = self.done / max(now - self.started, 1e-9)
        text = f"{self.done}/{self.total} {self.what}, {rate:.0f}/s"
        if not last and rate > 0:
            text += f", {(self.total - self.done) / rate:.0f} s left"
        if self.terminal:
            bar = "#" * int(24 * self.done / max(self.total, 1))
            text = f"\r[{bar:.<24}] {text}\033[K"
        if last or not self.terminal:
            text += "\n"
        sys.stderr.write(text)
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        self._show(time.monotonic(), last=True)


@dataclass
class RunLog:
    """The log file `path`; `key` names the entry of its records that grows from line to line, epoch
    or step."""

    path: Path
    key: str

    def trim(self, last: int) -> None:
        """Drops the records after `last`, which will be written again, and a line that a crash has
        cut off."""
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if self._position(line) <= last]
            with complete_file(self.path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def append(self, record: dict) -> None:
        """Writes a record through to the disk. InputError if it cannot be written."""
        try:
            with open(self.path, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(record) + "\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror or error}); is there room?"
            ) from None

    def _position(self, line: str) -> float:
        try:
            return json.loads(line)[self.key]
        except (ValueError, KeyError, TypeError):
            return math.inf


def _rank() -> int:
    """This process's rank; stages that run without torch do not import it here."""
    distributed = sys.modules.get("torch.distributed")
    return distributed.get_rank() if distributed and distributed.is_initialized() else 0


def say(text: str) -> None:
    """Prints a line; of several processes the first alone does."""
    if _rank() == 0:
        print(text, flush=True)


def print_table(lines: list[tuple[str, ...]]) -> None:
    """Prints rows of cells, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths)]
        print("  ".join(cells).rstrip())
