"""Each command dies at a random instant; nothing half-written has its final name, and the same command finishes."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from helpers import load, options, read_json
from PIL import Image
from stages import SCRIPTS, call, settings

from dejavu_utils.data.beton import Beton

KILLS = 20
OFTEN = options("--training.epochs 4 --training.eval_freq 2 --logging.snapshot_freq 2 --logging.checkpoint_freq 1")


def call_and_leave(command, values):
    result = call(command, values)
    os.write(2, result.stderr.encode())
    os._exit(result.returncode)


@pytest.fixture(scope="module")
def fork():
    """fork(command, values): starts the command in a process that need not import anything first."""
    context = multiprocessing.get_context("forkserver")
    preloaded = "helpers torchvision pandas cv2 submitit dejavu_utils.data.beton_loader diffusers"
    context.set_forkserver_preload(preloaded.split())

    def start(command, values):
        process = context.Process(target=call_and_leave, args=(command, values))
        process.start()
        return process

    warm = start("partition", {"help": ""})
    warm.join()
    assert warm.exitcode == 0
    return start


def comparable(value):
    """Without what differs from run to run: times and folders."""
    names = {"settings", "timestamp", "relative_time", "time", "images_per_second"}
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in names}
    if isinstance(value, (list, tuple)):
        return [comparable(item) for item in value]
    if torch.is_tensor(value):
        return str(value.dtype), value.shape, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    return value


def read(path):
    """What a complete file says; an error for a half one."""
    if path.suffix in (".pth", ".pt"):
        return comparable(load(path))
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return np.asarray(picture).tolist()
    if path.suffix == ".npy":
        return np.load(path).tolist()
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name].tolist() for name in archive.files}
    if path.suffix == ".beton":
        return len(Beton(path)), path.read_bytes()
    if path.name == "params.json":
        return sorted(read_json(path))
    if path.suffix == ".json":
        return comparable(read_json(path))
    return path.read_text()


def finished(folder):
    """{name: what it says} of everything below a folder, hidden files too; a log line by line."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    logs = {
        name: [comparable(json.loads(line)) for line in found.pop(name).open()] for name in ("log",) if name in found
    }
    return {**{name: read(path) for name, path in found.items()}, **logs}


@pytest.fixture(scope="module")
def undisturbed(tiny, fork, tmp_path_factory):
    """undisturbed(command): (seconds, what it writes), each command run once."""
    known = {}

    def run(command):
        if command not in known:
            out = tmp_path_factory.mktemp("undisturbed") / command
            start, process = time.monotonic(), fork(command, in_full(command, tiny, out))
            process.join()
            assert process.exitcode == 0
            known[command] = time.monotonic() - start, finished(out)
        return known[command]

    return run


def in_full(command, tiny, out):
    return {**settings(command, tiny / "data", tiny / "made", out), **(OFTEN if command == "training" else {})}


@pytest.mark.kills
@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_a_random_instant(tiny, fork, undisturbed, tmp_path, seed):
    command = list(SCRIPTS)[seed % len(SCRIPTS)]
    seconds, expected = undisturbed(command)
    values = in_full(command, tiny, tmp_path / "out")
    rng, died = np.random.default_rng(seed), []
    while not died or rng.random() < 0.3:  # some die more than once
        process, wait = fork(command, values), rng.uniform(0, seconds)
        process.join(wait)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:  # it was faster this time: from the start
            assert process.exitcode == 0
            shutil.rmtree(tmp_path / "out")
            seconds /= 2
            continue
        died.append(f"{wait:.3f} s")
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file() and ".tmp." not in path.name and path.name != "log" and path.suffix:
                read(path)
    print(f"seed {seed}: {command} killed after {', '.join(died)} of {undisturbed(command)[0]:.3f} s")
    process = fork(command, values)
    process.join()
    assert process.exitcode == 0
    assert finished(tmp_path / "out") == expected
