"""Every part of every benchmark runs, at sizes that measure nothing."""

import importlib
import multiprocessing
import runpy
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import run_process

ROOT = Path(__file__).parents[2]
TINY = {
    "attack.py data": "data --images 16 --rounds 1 --resolution 32 --num_workers 0",
    "attack.py network": "network --images 16 --rounds 1 --arch test_resnet --resolution 32 --num_workers 0",
    "attack.py neighbors": "neighbors --queries 20 --public 300 --width 8 --rounds 1",
    "attack.py statistics": "statistics --examples 500 --rounds 1",
    "beton.py": "--images 10 --rounds 1",
    "loader.py": "--parts raw jpg-crops --images 8 --batch_size 4 --resolution 32 --rounds 1",
    "partition.py": "--classes 2 --images 120 --boxed 30 --rounds 1",
    "sslmem.py": "--images 8 --views 3 --arch test_resnet --resolution 32 --batch_size 6 --rounds 1 --num_workers 0",
    "train_step.py": "--batch_size 4 --arch test_resnet --resolution 32 --mlp 8-8 --steps 1 --rounds 1",
}


def run_benchmark(name, arguments, monkeypatch):
    script = ROOT / "benchmarks" / name
    monkeypatch.setattr(sys, "argv", [str(script), *arguments.split()])
    # Where a process of its own is for the peak memory alone, a thread saves its imports.
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=ThreadPool))
    monkeypatch.syspath_prepend(str(script.parent))
    for name in ("harness", "lin_probe"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("part", TINY)
def test_part_runs(part, monkeypatch, capsys):
    run_benchmark(part.split()[0], TINY[part], monkeypatch)
    assert "[" in capsys.readouterr().out  # a median with its range


@pytest.mark.slow
def test_probe_runs(monkeypatch, capsys):
    run_benchmark("lin_probe.py", "--images 20 --rounds 1 --resolution 32 --num_workers 0", monkeypatch)
    assert "top-1 of whole probes" in capsys.readouterr().out


@pytest.mark.slow
def test_parts_for_a_gpu_run(tmp_path):
    parts = ["search", "resnet101", "vit_small", "fp16", "attack", "probe"]  # compiling takes minutes on a CPU
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--out", tmp_path, "--parts"]
    result = run_process(*command, *parts)
    assert result.returncode == 0, result.stdout + "".join(path.read_text() for path in tmp_path.glob("*.txt"))
    assert [line.split(":")[0] for line in (tmp_path / "parts.txt").read_text().splitlines()] == parts
    for part in parts[:-1]:
        assert "[" in (tmp_path / f"{part}.txt").read_text()  # a median with its range


def test_a_part_that_takes_too_long_is_ended_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    gpu = importlib.import_module("gpu")
    parts = {
        "endless": gpu.Part("-c __import__('time').sleep(99)", "", "", 1),
        "failing": gpu.Part("-c 1/0", "", "", 60),
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("endless: limit after 1 s") and second.startswith("failing: exit status 1")
    assert "ZeroDivisionError" in (tmp_path / "out/failing.txt").read_text()
