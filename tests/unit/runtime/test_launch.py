"""Where work runs: what processes take from their environment, which device each gets, and what a job is given."""

import os
import signal
import socket
import sys
from datetime import timedelta

import pytest
import torch
from helpers import debug_cluster, options, refused, rows_of

from dejavu_utils.errors import InputError
from dejavu_utils.runtime import processes
from dejavu_utils.runtime.devices import gpu_problem
from dejavu_utils.runtime.launch import Resources, ScriptJob, submit
from dejavu_utils.runtime.locks import locked
from dejavu_utils.runtime.processes import StopSignal, init_distributed, start_here

CPU = torch.device("cpu")
MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
RESOURCES = Resources(timeout=10, mem_gb=1, nodes=1, ngpus=0, world_size=1, cores=2)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No variable of another launcher is set."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def note_device(found):
    found.append(init_distributed(gpu=None))


def as_a_job(monkeypatch):
    """This process takes itself for the one that submitit started."""
    monkeypatch.setenv(processes.JOB_PROCESS, str(os.getpid()))


@rows_of(
    "variables, names",
    """
    WORLD_SIZE=2                                           -> RANK is not set ;; WORLD_SIZE is 2
    RANK=1                                                 -> WORLD_SIZE is not set ;; RANK is 1
    RANK=2 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=29500    -> RANK is 2, not a number from 0 to 1
    RANK=-1 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=29500   -> RANK is -1, not a number
    RANK=one WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=29500  -> RANK is one, not a number
    RANK=0 WORLD_SIZE=0                                    -> WORLD_SIZE is 0, not a number from 1
    RANK=0 WORLD_SIZE=2.0                                  -> WORLD_SIZE is 2.0, not a number
    RANK=0 WORLD_SIZE=2 LOCAL_RANK=x MASTER_ADDR=h MASTER_PORT=29500 -> LOCAL_RANK is x
    RANK=0 WORLD_SIZE=2                                    -> MASTER_ADDR is not set
    RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost              -> MASTER_PORT is not set
    RANK=0 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=99999    -> MASTER_PORT is 99999
""",
)
@pytest.mark.parametrize("processes", [1, 3])
def test_half_set_environments_are_named(monkeypatch, variables, names, processes):
    set_all(monkeypatch, variables)
    with refused() as error:
        start_here(ScriptJob(note_device, []), processes)
    for name in (*names, "unset RANK and WORLD_SIZE"):
        assert name in str(error.value)


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}])
def test_one_process_needs_no_variable(monkeypatch, variables):
    set_all(monkeypatch, variables)
    found = []
    start_here(ScriptJob(note_device, found), 1)
    assert found == [CPU] and not torch.distributed.is_initialized()


def test_a_port_in_use_and_processes_that_never_come_are_named(monkeypatch):
    set_all(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", **MEETING})
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with refused(r"MASTER_PORT \d+ is in use"):
            init_distributed(gpu=None)
    monkeypatch.setattr(processes, "_MEETING", timedelta(seconds=1))
    with refused("process 0 of 2 does not find the others at localhost:.*GLOO_SOCKET_IFNAME"):
        init_distributed(gpu=None)


def test_a_shell_of_a_job_is_not_that_job(monkeypatch, tmp_path):
    of_the_job = options("SUBMITIT_EXECUTOR=slurm SUBMITIT_FOLDER=x SLURM_JOB_ID=5 SLURM_PROCID=1 SLURM_NTASKS=2")
    set_all(monkeypatch, {**of_the_job, processes.JOB_PROCESS: str(os.getpid() + 1)})
    handlers = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    found = []

    def look(_):
        stop = StopSignal()
        found.append(
            ((tmp_path / ".lock").exists(), init_distributed(gpu=0), signal.getsignal(signal.SIGTERM) == stop._note)
        )

    try:
        start_here(ScriptJob(look, None, (tmp_path / ".lock", "--output_dir")), 1)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert found[0][0] and found[0][2]


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): as if there were n GPUs, and a group that is only noted; the arguments of its start."""
    started = {}

    def pretend(n):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(processes, "rendezvous", lambda *_, **__: iter([(None, 0, 0)]))
        monkeypatch.setattr(
            torch.distributed, "init_process_group", lambda backend, **rest: started.update(rest, backend=backend)
        )
        return started

    return pretend


@pytest.mark.parametrize("there, local, index", [(1, 0, 0), (1, 1, 0), (4, 1, 1), (4, 3, 3)])
def test_a_process_takes_its_own_gpu(monkeypatch, gpus, there, local, index):
    set_all(monkeypatch, {"RANK": str(local), "LOCAL_RANK": str(local), "WORLD_SIZE": "4", **MEETING})
    started = gpus(there)
    device = init_distributed()
    assert device == torch.device("cuda", index)
    assert started["backend"] == "nccl" and started["device_id"] == device
    assert started["timeout"] >= timedelta(days=1)  # the readability check of millions of images fits in
    assert init_distributed(long_waits=True) == device and started["backend"] == "gloo" and started["device_id"] is None
    assert init_distributed(gpu=None) == CPU and started["backend"] == "gloo"


def test_a_process_without_a_gpu_is_named(monkeypatch, gpus):
    set_all(monkeypatch, {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4", **MEETING})
    gpus(2)
    with refused("process 3 of this machine has no GPU, there are 2"):
        init_distributed()


def test_a_job_without_its_gpus_ends_elsewhere_a_cpu_is_used(monkeypatch, gpus):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040). Please update your GPU")

    monkeypatch.setattr(torch.cuda, "init", too_old)
    assert init_distributed() == CPU
    as_a_job(monkeypatch)
    with refused(r"asked for GPUs.*CUDA 13.0: The NVIDIA driver .* too old \(found version"):
        init_distributed()
    assert init_distributed(gpu=None) == CPU
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CPUs" in gpu_problem()


@pytest.mark.parametrize("visible, said", [(None, True), ("0", True), ("", False), ("-1", False)])
def test_nothing_is_said_of_a_gpu_that_the_user_has_hidden(monkeypatch, capsys, gpus, visible, said):
    gpus(0)
    monkeypatch.setattr(processes, "gpu_problem", lambda: "it sees none")
    monkeypatch.setattr(processes.Path, "glob", lambda folder, pattern: iter([folder / "nvidia0"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert init_distributed() == CPU
    assert ("although there is a GPU: it sees none" in capsys.readouterr().out) == said
    as_a_job(monkeypatch)
    with refused("asked for GPUs.*it sees none"):
        init_distributed()


@pytest.mark.parametrize("folder, name", [
    (".", "work"), ("./", "work"), ("run/", "run"), ("run/../other//", "other"), ("..", None), ("/", "test_launch"),
])  # fmt: skip
def test_every_folder_gives_a_job_a_name(monkeypatch, tmp_path, folder, name):
    submitted = debug_cluster(monkeypatch, tmp_path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    submit(ScriptJob(note_device, []), folder, RESOURCES, "--local 1", "logs")
    assert submitted["parameters"]["name"] == (name or tmp_path.name)


def test_without_submitit_a_line_says_so(monkeypatch, tmp_path):
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with refused("submitit, which submits jobs, is not installed.* --local 1"):
        submit(ScriptJob(note_device, []), tmp_path / "run", RESOURCES, "--local 1", "logs")


def test_sbatch_sees_nothing_of_another_job(monkeypatch, tmp_path):
    """With the real submitit; sbatch and srun are stand-ins."""
    pytest.importorskip("submitit")
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\nenv >{tmp_path}/seen\necho Submitted batch job 17\n")
    for program in ("sbatch", "srun"):
        (tmp_path / program).touch()
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    of_the_other = options("""SLURM_JOB_ID=5 SLURM_MEM_PER_CPU=100 SLURM_CPU_BIND=quiet SLURM_NTASKS=3 SRUN_DEBUG=3
        SLURMD_NODENAME=n SUBMITIT_EXECUTOR=slurm RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 MASTER_PORT=29500
        CUDA_VISIBLE_DEVICES=3 TORCHELASTIC_USE_AGENT_STORE=True""")
    kept = options("SLURM_CONF=/etc/slurm.conf SBATCH_ACCOUNT=lab SUBMITIT_PREEMPT_SIGNAL=USR2 RANKING=1")
    set_all(monkeypatch, {**of_the_other, **kept})
    before = dict(os.environ)
    assert submit(ScriptJob(note_device, []), tmp_path / "run", RESOURCES, "--local 1") == "17"
    assert dict(os.environ) == before
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert not of_the_other.keys() & seen.keys() and kept.items() <= seen.items()
    monkeypatch.delenv("SLURM_JOB_ID")  # no job: that choice is the user's
    submit(ScriptJob(note_device, []), tmp_path / "run", RESOURCES, "--local 1")
    assert "CUDA_VISIBLE_DEVICES=3" in (tmp_path / "seen").read_text()
    script = next((tmp_path / "run").glob("*submission*.sh")).read_text()
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in script and sys.executable in script


def test_a_host_name_that_does_not_resolve_is_named_at_once(monkeypatch):
    """PyTorch would print a warning for a quarter of an hour."""
    set_all(monkeypatch, {"MASTER_ADDR": "n1.invalid", "MASTER_PORT": "29512"})
    monkeypatch.setattr(processes, "_NAME_PATIENCE", 0)
    with refused(r"host name n1\.invalid of the first process \(port 29512\).*/etc/hosts"):
        processes._meet(1, 2, None)


@pytest.mark.parametrize("error, said", [
    (ZeroDivisionError, "--output_dir {}: keeps what was saved; the same command resumes from it\n"),
    (InputError, ""),
    (FileNotFoundError, ""),
])  # fmt: skip
def test_an_exception_says_where_the_finished_pieces_are(tmp_path, capsys, error, said):
    with pytest.raises(error), locked(tmp_path / ".lock", "--output_dir"):
        raise error
    assert capsys.readouterr().err == said.format(tmp_path)
    assert not (tmp_path / ".lock").exists()
