"""A run's log (one JSON object per line), what its first process prints, and the progress of a long
stage."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file


class Progress:
    """`with Progress(total, "images") as progress: ... progress.update(count)`; writes to stderr.

    total: how many units of work there are. what: their name. seconds: between two lines of a log.
    quiet: write nothing.
    """

    def __init__(
        self,
        total: int,
        what: str,
        seconds: float = 10.0,
        stream: TextIO | None = None,
        quiet: bool = False,
    ) -> None:
        self.total, self.what, self.done, self.quiet = total, what, 0, quiet
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every = 0.2 if self.terminal else seconds

    def __enter__(self) -> "Progress":
        self.started = self.shown = time.monotonic()
        return self

    def update(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.shown >= self.every:
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
            filled = int(24 * self.done / max(self.total, 1))
            self.stream.write(
                f"\r[{'#' * filled}{'.' * (24 - filled)}] {text}\033[K" + ("\n" if last else "")
            )
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def __exit__(self, *_: object) -> None:
        self._show(time.monotonic(), last=True)


class RunLog:
    """The log file `path`; `key` names the entry of its records that grows from line to line, epoch
    or step."""

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self.key = Path(path), key

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
