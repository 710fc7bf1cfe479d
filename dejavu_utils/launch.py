"""Where a script's work runs: here, in several processes, or as a SLURM job through submitit (imported only here)."""

import argparse
import contextlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.distributed.rendezvous import rendezvous

from dejavu_utils.cli import run
from dejavu_utils.devices import choose_device, gpu_problem
from dejavu_utils.distributed import any_process, wait_for_all, world_size
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.locks import locked
from dejavu_utils.runlog import say

if TYPE_CHECKING:
    import submitit

LOCK_FILE = ".lock"  # in a run's folder while it is written
_JOB_PROCESS = "DEJAVU_JOB_PROCESS"  # number of the process that submitit started: its children inherit only the name
_MEETING = timedelta(minutes=15)  # from the first process's start to the last one's
# No validation, save or look at the images takes longer; a process that dies ends the others long before.
_LONGEST_WAIT = timedelta(days=7)
# What SLURM, submitit and torchrun tell the processes of a job, and what SLURM sets there for its GPUs.
_OF_A_JOB = re.compile(
    r"(SLURMD?|SRUN|PMIX?|TORCHELASTIC)_|SUBMITIT_(EXECUTOR|FOLDER)|MASTER_(ADDR|PORT)$|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)$"
)
_GPUS_OF_A_JOB = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
_OF_ANY_CLIENT = ("SLURM_CONF", "SLURM_JWT")


def connect(port: int = 0, gpu: int | None = 0, long_waits: bool = False, gpu_flag: str = "the GPU") -> torch.device:
    """Joins the processes of this job, if it has several, and returns this process's device.

    port: where the processes of a SLURM job meet; 0: one that submitit draws from the job's number. gpu: which to take
    where there is one process (gpu_flag: what says so, for an error); None: in all of them the CPU. long_waits: the
    processes exchange little but may wait for each other for hours: gloo, not NCCL, whatever the device. Reads what
    torchrun, `start_here` or the start of a job say in the environment. InputError if that does not go together, if the
    processes do not find each other, or if a job that asked for GPUs can use none; elsewhere the CPU takes their place.
    """
    rank, processes, local = _place()
    problem = gpu_problem() if gpu is not None else ""
    if problem and _in_job():
        raise InputError(f"this job asked for GPUs, and {socket.gethostname()} has none for it: {problem}")
    if processes == 1:
        device = choose_device(gpu, gpu_flag)
    else:
        # A process that sees one GPU has its own: SLURM bound it. (NCCL refuses two processes on the same one.)
        gpus = torch.cuda.device_count() if gpu is not None and not problem else 0
        if gpus > 1 and local >= gpus:
            raise InputError(f"process {local + 1} of this machine has no GPU, there are {gpus}: start one per GPU")
        device = choose_device(None if not gpus else 0 if gpus == 1 else local)
        if not torch.distributed.is_initialized():
            if port and _in_job():
                os.environ["MASTER_PORT"] = str(port)
            _meet(rank, processes, device if device.type == "cuda" and not long_waits else None)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")  # who hid the GPUs knows
    if problem and not hidden and any(Path("/dev").glob("nvidia[0-9]*")):
        say(f"note: computes on the CPU, although there is a GPU: {problem}")
    return device


def _place():
    """(number of this process, how many there are, its number on this machine) from the environment, else (0, 1, 0).

    InputError names the variable that is missing or wrong: a shell may have kept some of another program.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "RANK" not in given and given.get("WORLD_SIZE", "1") == "1":
        return 0, 1, 0

    def checked(name, numbers=None):
        text = given.get(name)
        if text is None or numbers and not (text.isdecimal() and int(text) in numbers):
            wrong = f"is {text}, not a number from {numbers[0]} to {numbers[-1]}" if text else "is not set"
            others = ", ".join(f"{other} is {value}" for other, value in given.items() if other != name)
            raise InputError(
                f"{name} {wrong}, and in the environment {others}: unset RANK and WORLD_SIZE to run one process, or "
                "start all of them with torchrun"
            )
        return int(text) if numbers else text

    processes = checked("WORLD_SIZE", range(1, 10**6 + 1))
    rank, local = checked("RANK", range(processes)), 0
    if "LOCAL_RANK" in given:
        local = checked("LOCAL_RANK", range(processes))
    if processes > 1:
        checked("MASTER_ADDR")
        checked("MASTER_PORT", range(1, 65536))
    return rank, processes, local


def _meet(rank, processes, gpu):
    """Joins the processes: by NCCL if they have GPUs and exchange much, by gloo where gpu is None."""
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=_MEETING))
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo",
            **{"store": store, "rank": rank, "world_size": processes, "timeout": _LONGEST_WAIT, "device_id": gpu},
        )
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error):
            raise InputError(f"MASTER_PORT {os.environ['MASTER_PORT']} is in use here: give another") from None
        reason = one_line(str(error).strip().splitlines()[-1])
        raise InputError(
            f"process {rank} of {processes} does not find the others at {where} (MASTER_ADDR, MASTER_PORT): {reason}; "
            "are all started? Where host names do not route, name the network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME"
        ) from None


def _in_job():
    """Is this the process that submitit started for a job? (Not a shell or a notebook that runs within one.)"""
    return os.environ.get(_JOB_PROCESS) == str(os.getpid())


def disconnect() -> None:
    """Leaves the processes that `connect` joined, at the end of the work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def processes_here() -> int:
    """How many processes of this run share this machine; where nothing says it, all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())


def start_here(job: "ScriptJob", processes: int) -> None:
    """Calls a ScriptJob in `processes` processes of this machine.

    Under torchrun this process is one of them. Signals are passed on to the processes; the first that fails ends all.
    """
    _place()
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
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    os.environ.update({name: str(number) for name, number in {**numbers, "MASTER_PORT": port}.items()})
    os.environ["MASTER_ADDR"] = "localhost"
    run(job)


class StopSignal:
    """Notes that this process was asked to stop, so that the work can end where it is safe.

    `received`: has it? SIGUSR2 is what submitit's jobs get before their time limit and when they are preempted; there
    SIGTERM comes along and is left to submitit.
    """

    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received, self._previous = None, {}
        for signum in self.SIGNALS:
            if signum == signal.SIGTERM and _in_job():
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
        disconnect()
        # A process that got no signal itself ends like the one that did.
        signum = self.received or (signal.SIGUSR2 if _in_job() else signal.SIGTERM)
        previous = self._previous.get(signum)
        if _in_job() and callable(previous):
            try:
                previous(signum, None)  # requeues the job and exits; returns in all processes but the first
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise
                # A job that is queued again is ended, and with it, at times, the process that asked for that.
            time.sleep(120)
        sys.exit(128 + signum)


class ScriptJob:
    """A call of a script's function, which submitit and spawned processes can unpickle.

    A function of `__main__` cannot be unpickled elsewhere: it is pickled as its file and name, and the other process
    imports the script as a module. On a time-out or preemption submitit calls `checkpoint`: the same call is requeued,
    and the script resumes from what it has saved. lock: a lock file in the folder that the call writes into and the
    flag that names this folder (locks.locked), held by the first process meanwhile; or None. submitted: does submitit
    call it?
    """

    def __init__(
        self, function: Callable, arguments: object, lock: tuple[Path, str] | None = None, submitted: bool = False
    ) -> None:
        self.function, self.arguments, self.lock, self.submitted = function, arguments, lock, submitted

    def __call__(self):
        if self.submitted:
            import submitit

            submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
            os.environ[_JOB_PROCESS] = str(os.getpid())
        with self._locked():
            self.function(self.arguments)
            disconnect()

    def __getstate__(self):
        script = str(Path(inspect.getfile(self.function)).resolve())
        return {**vars(self), "function": (script, self.function.__name__)}

    def __setstate__(self, state):
        script, name = state["function"]
        vars(self).update(state, function=getattr(_module(script), name))

    def _locked(self):
        if not self.lock or _place()[0]:
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
    print(submit(job, path, Resources.of(args, cores), "--local 1", logs))


def join(args: argparse.Namespace, port: int = 0, long_waits: bool = False) -> torch.device:
    """`connect` for a function that was called with cli.add_launch_flags' args; this process's device."""
    gpu = None if not args.ngpus else args.local_gpu if args.local else 0
    return connect(port, gpu, long_waits, "--local_gpu")


def submit(job: ScriptJob, folder: str | Path, resources: Resources, stay_here: str, logs: str = "") -> str:
    """Submits a ScriptJob to SLURM and returns the job's id.

    folder: of the run, which gives the job its name. logs: the folder below it for submitit's files and logs.
    stay_here: the flag that runs without SLURM, for the error. The job starts as from a login shell, also where this
    process is part of another one. InputError where there is no SLURM (submitit would quietly run in the background),
    for a folder that SLURM cannot name, and with SLURM's own words where it refuses the job.
    """
    if shutil.which("srun") is None:
        raise InputError(f"there is no SLURM here (srun is not on the path): run on this machine with {stay_here}")
    folder = os.path.abspath(folder)
    if any(sign in folder for sign in "\n\r%\\"):
        raise InputError(f"{folder!r}: SLURM cannot write logs below a folder with %, \\ or a line break in its name")
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ModuleNotFoundError:
        raise InputError(
            f"submitit, which submits jobs, is not installed: pip install submitit, or run here with {stay_here}"
        ) from None

    root = shlex.quote(str(Path(__file__).resolve().parents[1]))
    setup = [
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",  # the job unpickles what is of this package
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",  # where nothing else binds the tasks
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # since 22.05 srun does not take over what sbatch was told
    ]
    executor = submitit.AutoExecutor(folder=os.path.join(folder, logs), cluster="slurm", slurm_max_num_timeout=30)
    executor.update_parameters(
        name=os.path.basename(folder) or Path(inspect.getfile(job.function)).stem,
        slurm_signal_delay_s=120,
        slurm_setup=setup,
        slurm_srun_args=["--kill-on-bad-exit=1"],  # one process that died leaves the others waiting
        **resources.parameters(),
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), _as_from_a_login_shell():  # submitit prints what it raises
            return executor.submit(ScriptJob(job.function, job.arguments, job.lock, submitted=True)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def _as_from_a_login_shell():
    """The environment without what another job has set: sbatch hands it on, and srun takes it for flags of its own."""
    gone = {name for name in os.environ if _OF_A_JOB.match(name)} - {*_OF_ANY_CLIENT}
    if "SLURM_JOB_ID" in os.environ:
        gone |= {*_GPUS_OF_A_JOB} & {*os.environ}
    removed = {name: os.environ.pop(name) for name in gone}
    try:
        yield
    finally:
        os.environ.update(removed)
