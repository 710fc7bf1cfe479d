"""Files that appear complete or not at all."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np


@contextmanager
def complete_file(path):
    """Yields a temporary path beside `path`; it takes the final name when the block ends, and is removed if it fails.

    Missing parent folders are made. The temporary name ends like the final one, so that writers which look at the
    suffix (NumPy, matplotlib) behave the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_npy(path, array):
    with complete_file(path) as temporary:
        np.save(temporary, array)


def save_json(path, data):
    with complete_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def save_csv(path, frame):
    """Writes a pandas DataFrame, unrounded (17 significant digits read back to the same float)."""
    with complete_file(path) as temporary:
        frame.to_csv(temporary, index=False)
