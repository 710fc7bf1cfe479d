"""A run's log, one JSON object per line, and what its first process prints."""

import json
import math
import os
from pathlib import Path

from dejavu_utils.distributed import rank
from dejavu_utils.errors import InputError
from dejavu_utils.files import complete_file


class RunLog:
    """The log file `path`; `key` names the entry of its records that grows from line to line, epoch or step."""

    def __init__(self, path: str | Path, key: str) -> None:
        self.path, self.key = Path(path), key

    def trim(self, last: int) -> None:
        """Drops the records after `last`, which will be written again, and a line that a crash has cut off."""
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
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); is there room?") from None

    def _position(self, line):
        try:
            return json.loads(line)[self.key]
        except (ValueError, KeyError, TypeError):
            return math.inf


def say(text: str) -> None:
    """Prints a line; of several processes the first alone does."""
    if rank() == 0:
        print(text, flush=True)
