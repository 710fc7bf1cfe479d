"""Where a script's work runs: here, in several processes, or as a SLURM job through submitit (imported only here)."""

import argparse
import contextlib
import importlib.util
import inspect
import io
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dejavu_utils.cli import run
from dejavu_utils.devices import choose_device
from dejavu_utils.distributed import any_process, wait_for_all
from dejavu_utils.errors import InputError
from dejavu_utils.locks import locked
from dejavu_utils.runlog import say

if TYPE_CHECKING:
    import submitit

LOCK_FILE = ".lock"  # in a run's folder while it is written
_IN_SUBMITIT = "SUBMITIT_EXECUTOR"


def connect(port: int = 0, gpu: int | None = 0, long_waits: bool = False, gpu_flag: str = "the GPU") -> torch.device:
    """Joins the processes of this job, if it has several, and returns this process's device.

    port: where the processes of a SLURM job meet; 0: one that submitit draws from the job's number. gpu: which to take
    where there is one process (gpu_flag: what says so, for an error); None: in all of them the CPU. long_waits: the
    processes exchange little but may wait for each other for hours: gloo, not NCCL, whatever the device. Reads what
    torchrun, `start_here` or submitit say in the environment.
    """
    if _IN_SUBMITIT in os.environ:  # whatever the submitting shell had set
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if port:
            os.environ["MASTER_PORT"] = str(port)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return choose_device(gpu, gpu_flag)
    local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpu is not None and 0 < gpus <= local:
        raise InputError(f"process {local + 1} of this machine has no GPU, there are {gpus}: start one process per GPU")
    device = choose_device(None if gpu is None else local)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" and not long_waits else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(days=7) if long_waits else None)
    return device


def disconnect() -> None:
    """Leaves the processes that `connect` joined, at the end of the work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start_here(job: "ScriptJob", processes: int) -> None:
    """Calls a ScriptJob in `processes` processes of this machine: its GPUs if there are several, one if 0 and a CPU.

    Under torchrun this process is one of them. Signals are passed on to the processes; the first that fails ends all.
    """
    processes = processes or max(1, torch.cuda.device_count())
    if "RANK" in os.environ or processes == 1:
        return job()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.spawn(_spawned, args=(job, processes, port), nprocs=processes, join=False)

    def pass_on(signum, _):
        # Ctrl-C reaches the processes by itself; a second SIGINT would tell them not to save.
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM if signum == signal.SIGINT else signum)

    for signum in StopSignal.SIGNALS:
        signal.signal(signum, pass_on)
    try:
        while not context.join():
            pass
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # the process has said why


def _spawned(rank, job, processes, port):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR="localhost", MASTER_PORT=str(port)
    )
    run(job)


class StopSignal:
    """Notes that this process was asked to stop, so that the work can end where it is safe.

    `received`: has it? SIGUSR2 is what submitit's jobs get before their time limit and when they are preempted; there
    SIGTERM comes along and is left to submitit.
    """

    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received, self._previous = None, {}
        for signum in self.SIGNALS:
            if signum == signal.SIGTERM and _IN_SUBMITIT in os.environ:
                continue
            self._previous[signum] = signal.signal(signum, self._note)

    def _note(self, signum, _):
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: do not wait for the step to end
        self.received = signum

    def asked(self, device: torch.device) -> bool:
        """Was any process asked to stop? All processes must call this, at the same place."""
        return any_process([self.received is not None], device)[0]

    def leave(self, text: str) -> None:
        """Says why and ends all processes, once everything is saved: as submitit wants it in its jobs, else with 128 +
        signal. All processes must call this."""
        say(text)
        wait_for_all()
        # A process that got no signal itself ends like the one that did.
        signum = self.received or (signal.SIGUSR2 if _IN_SUBMITIT in os.environ else signal.SIGTERM)
        previous = self._previous.get(signum)
        if _IN_SUBMITIT in os.environ and callable(previous):
            previous(signum, None)  # requeues the job and exits; returns in all processes but the first
            time.sleep(120)
        sys.exit(128 + signum)


class ScriptJob:
    """A call of a script's function, which submitit and spawned processes can unpickle.

    A function of `__main__` cannot be unpickled elsewhere: it is pickled as its file and name, and the other process
    imports the script as a module. On a time-out or preemption submitit calls `checkpoint`: the same call is requeued,
    and the script resumes from what it has saved. lock: a lock file in the folder that the call writes into and the
    flag that names this folder (locks.locked), held by the first process meanwhile; or None.
    """

    def __init__(self, function: Callable, arguments: object, lock: tuple[Path, str] | None = None) -> None:
        self.function, self.arguments, self.lock = function, arguments, lock

    def __call__(self):
        with self._locked():
            return self.function(self.arguments)

    def __getstate__(self):
        script = str(Path(inspect.getfile(self.function)).resolve())
        return {**vars(self), "function": (script, self.function.__name__)}

    def __setstate__(self, state):
        script, name = state["function"]
        vars(self).update(state, function=getattr(_module(script), name))

    def _locked(self):
        rank = os.environ.get("SLURM_PROCID" if _IN_SUBMITIT in os.environ else "RANK", "0")
        if not self.lock or rank != "0":
            return contextlib.nullcontext()
        return locked(
            *self.lock, os.environ.get("SLURM_JOB_ID"), restart=int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        )

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _module(script):
    """The module of a script's file: the one that this process has imported from there, or a new one."""
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) and str(Path(module.__file__).resolve()) == script:
            return module
    spec = importlib.util.spec_from_file_location(Path(script).stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Resources:
    """What a job asks SLURM for. timeout: minutes. mem_gb: per node, 0: 60 per GPU. ngpus: GPUs and so processes per
    node; 0: none, and world_size processes. cores: per process. dependency: SLURM's; where a job that it waits for has
    failed, the job leaves the queue instead of waiting for ever."""

    timeout: int
    mem_gb: int
    nodes: int
    ngpus: int
    world_size: int
    cores: int
    partition: str = ""
    dependency: str = ""
    comment: str = ""

    @classmethod
    def of(cls, settings: object, cores: int) -> "Resources":
        """From an object with the attributes of the same names; those of partition, ... may be missing."""
        names = ("timeout", "mem_gb", "nodes", "ngpus", "world_size")
        words: dict = {name: getattr(settings, name, "") for name in ("partition", "dependency", "comment")}
        return cls(**{name: getattr(settings, name) for name in names}, cores=cores, **words)

    def parameters(self) -> dict:
        """For submitit's executor."""
        wait = {"dependency": self.dependency, "kill_on_invalid_dep": "yes"} if self.dependency else None
        found = {
            "timeout_min": self.timeout,
            "mem_gb": self.mem_gb or 60 * max(1, self.ngpus),
            "nodes": self.nodes,
            "tasks_per_node": self.ngpus or max(1, self.world_size),
            "gpus_per_node": self.ngpus or None,
            "cpus_per_task": max(1, self.cores),
            "slurm_partition": self.partition or None,
            "slurm_comment": self.comment or None,
            "slurm_additional_parameters": wait,
        }
        return {name: value for name, value in found.items() if value is not None}


def here_or_submitted(
    function: Callable, args: argparse.Namespace, folder: tuple[str, str], cores: int, logs: str = ""
) -> None:
    """Calls a script's function(args) here with --local 1, else submits it as a job and prints the job's id.

    The function is called in each of several processes if that is asked for, and finds the others with `join`. args:
    the Namespace of a parser with cli.add_launch_flags. folder: (its path, the flag that names it); this run alone
    writes into it. cores: per process. logs: the folder below it for submitit's files.
    """
    path, flag = Path(folder[0]), folder[1]
    job = ScriptJob(function, args, (path / LOCK_FILE, flag))
    if args.local:
        return start_here(job, min(args.ngpus, torch.cuda.device_count()) or max(1, args.world_size))
    print(submit(job, path / logs, path.name, Resources.of(args, cores), "--local 1"))


def join(args: argparse.Namespace, port: int = 0, long_waits: bool = False) -> torch.device:
    """`connect` for a function that was called with cli.add_launch_flags' args; this process's device."""
    gpu = None if not args.ngpus else args.local_gpu if args.local else 0
    return connect(port, gpu, long_waits, "--local_gpu")


def submit(job: ScriptJob, folder: str | Path, name: str, resources: Resources, stay_here: str) -> str:
    """Submits a ScriptJob to SLURM and returns the job's id.

    folder: where submitit keeps its files and logs. name: of the job. stay_here: the flag that runs without SLURM, for
    the error. InputError where there is no SLURM (submitit would quietly run in the background), for a folder that
    SLURM cannot name, and with SLURM's own words where it refuses the job.
    """
    if shutil.which("srun") is None:
        raise InputError(f"there is no SLURM here (srun is not on the path): run on this machine with {stay_here}")
    folder = str(Path(folder).absolute())
    if any(sign in folder for sign in "\n\r%\\"):
        raise InputError(f"{folder!r}: SLURM cannot write logs below a folder with %, \\ or a line break in its name")
    import submitit
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    root = shlex.quote(str(Path(__file__).resolve().parents[1]))
    setup = [
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",  # the job unpickles what is of this package
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",  # where nothing else binds the tasks
    ]
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=30)
    executor.update_parameters(
        name=name,
        slurm_signal_delay_s=120,
        slurm_setup=setup,
        slurm_srun_args=["--kill-on-bad-exit=1"],  # one process that died leaves the others waiting
        **resources.parameters(),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            return executor.submit(job).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None
