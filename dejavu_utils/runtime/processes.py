"""The processes of a run: starting them, how they find each other, and how they stop where it is
safe."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.rendezvous import rendezvous

from dejavu_utils.cli import run
from dejavu_utils.errors import InputError, one_line
from dejavu_utils.log import say
from dejavu_utils.runtime.devices import choose_device, gpu_problem
from dejavu_utils.runtime.distributed import LateSums, any_process, wait_for_all, world_size

# number of the process that submitit started: its children inherit only the name
JOB_PROCESS = "DEJAVU_JOB_PROCESS"
_NAME_PATIENCE = 20  # seconds for the first process's host name to resolve
_MEETING = timedelta(minutes=15)  # from the first process's start to the last one's
# No validation, save or look at the images takes longer; a process that dies ends the others long
# before.
_LONGEST_WAIT = timedelta(days=7)


def init_distributed(
    port: int = 0, gpu: int | None = 0, long_waits: bool = False, gpu_flag: str = "the GPU"
) -> torch.device:
    """Joins the processes of this job, if it has several, and returns this process's device.

    port: where the processes of a SLURM job meet; 0: one that submitit draws from the job's number.
    gpu: which to take where there is one process (gpu_flag: what says so, for an error); None: in
    all of them the CPU. long_waits: the processes exchange little but may wait for each other for
    hours: gloo, not NCCL, whatever the device. Reads what torchrun, `start_here` or the start of a
    job say in the environment. InputError if that does not go together, if the processes do not
    find each other, or if a job that asked for GPUs can use none; elsewhere the CPU takes their
    place.
    """
    rank, processes, local = rank_from_environment()
    problem = gpu_problem() if gpu is not None else ""
    if problem and in_submitit_job():
        raise InputError(
            f"this job asked for GPUs, and {socket.gethostname()} has none for it: {problem}"
        )
    if processes == 1:
        device = choose_device(gpu, gpu_flag)
    else:
        # A process that sees one GPU has its own: SLURM bound it. (NCCL refuses two processes on
        # the same one.)
        gpus = torch.cuda.device_count() if gpu is not None and not problem else 0
        if gpus > 1 and local >= gpus:
            raise InputError(
                f"process {local + 1} of this machine has no GPU, there are {gpus}: start one per GPU"
            )
        own_gpu = 0 if gpus == 1 else local
        device = choose_device(own_gpu if gpus else None)
        if not torch.distributed.is_initialized():
            if port and in_submitit_job():
                os.environ["MASTER_PORT"] = str(port)
            _meet(rank, processes, device if device.type == "cuda" and not long_waits else None)
    # no note if the user hid the GPUs
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if problem and not hidden and any(Path("/dev").glob("nvidia[0-9]*")):
        say(f"note: computes on the CPU, although there is a GPU: {problem}")
    return device


def rank_from_environment() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) from the environment, else (0, 1, 0).

    InputError names the variable that is missing or wrong: a shell may have kept some of another
    program.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if "RANK" not in given and given.get("WORLD_SIZE", "1") == "1":
        return 0, 1, 0

    def checked(name: str, numbers: range | None = None) -> int:
        """One of `numbers`, if given; else only that it is set."""
        text = given.get(name)
        if text and (not numbers or (text.isdecimal() and int(text) in numbers)):
            return int(text) if numbers else 0
        wrong = "is not set"
        if text and numbers:
            wrong = f"is {text}, not a number from {numbers[0]} to {numbers[-1]}"
        others = ", ".join(f"{other} is {value}" for other, value in given.items() if other != name)
        raise InputError(
            f"{name} {wrong}, and in the environment {others}: unset RANK and WORLD_SIZE to run one process, or "
            "start all of them with torchrun"
        )

    processes = checked("WORLD_SIZE", range(1, 10**6 + 1))
    rank = checked("RANK", range(processes))
    local = 0
    if "LOCAL_RANK" in given:
        local = checked("LOCAL_RANK", range(processes))
    if processes > 1:
        checked("MASTER_ADDR")
        checked("MASTER_PORT", range(1, 65536))
    return rank, processes, local


def _meet(rank: int, processes: int, gpu: torch.device | None) -> None:
    """Joins the processes: by NCCL if they have GPUs and exchange much, by gloo where gpu is
    None."""
    host = os.environ["MASTER_ADDR"]
    port = os.environ["MASTER_PORT"]
    _check_name(host, port)
    try:
        store, _, _ = next(rendezvous("env://", timeout=_MEETING))
        torch.distributed.init_process_group(
            "nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=processes,
            timeout=_LONGEST_WAIT,
            device_id=gpu,
        )
    except (RuntimeError, ValueError, OSError) as error:
        if "EADDRINUSE" in str(error):
            raise InputError(f"MASTER_PORT {port} is in use here: give another") from None
        reason = one_line(str(error).strip().splitlines()[-1])
        raise InputError(
            f"process {rank} of {processes} does not find the others at {host}:{port} (MASTER_ADDR, MASTER_PORT): "
            f"{reason}; are all started? Where host names do not route, name the network: GLOO_SOCKET_IFNAME, "
            "NCCL_SOCKET_IFNAME"
        ) from None


def _check_name(host: str, port: str) -> None:
    """InputError unless the first process's host name resolves here within some seconds; PyTorch
    tries for minutes."""
    deadline = time.monotonic() + _NAME_PATIENCE
    while True:
        try:
            socket.getaddrinfo(host, int(port))
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > deadline:
            raise InputError(
                f"the host name {host} of the first process (port {port}) does not resolve on {socket.gethostname()} "
                f"({reason}): enter it into DNS or /etc/hosts of every node, or give MASTER_ADDR as an address"
            )
        time.sleep(1)


def in_submitit_job() -> bool:
    """Is this the process that submitit started for a job? (Not a shell or a notebook that runs
    within one.)"""
    return os.environ.get(JOB_PROCESS) == str(os.getpid())


def disconnect() -> None:
    """Leaves the processes that `init_distributed` joined, at the end of the work."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def processes_here() -> int:
    """How many processes of this run share this machine; where nothing says it, all of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or world_size())


def start_here(job: Callable[[], None], processes: int) -> None:
    """Calls a launch.ScriptJob in `processes` processes of this machine.

    Under torchrun this process is one of them. Signals are passed on to the processes; the first
    that fails ends all.
    """
    rank_from_environment()
    if "RANK" in os.environ or processes == 1:
        return job()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.spawn(
        _spawned, args=(job, processes, port), nprocs=processes, join=False
    )

    def pass_on(signum: int, _: object) -> None:
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


def _spawned(rank: int, job: Callable[[], None], processes: int, port: int) -> None:
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    os.environ["MASTER_ADDR"] = "localhost"
    os.environ["MASTER_PORT"] = str(port)
    run(job)


class StopSignal:
    """Notes that this process was asked to stop, so that the work can end where it is safe.

    `received`: the signal, or None. SIGUSR2 is what submitit's jobs get before their time limit and
    when they are preempted; the SIGTERM beside it is left to submitit.
    """

    SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        for signum in self.SIGNALS:
            if signum == signal.SIGTERM and in_submitit_job():
                continue
            self._previous[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, _: object) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: do not wait for the step to end
        self.received = signum

    def asked(self, device: torch.device) -> bool:
        """Was any process asked to stop? All processes must call this, at the same place."""
        return any_process(self.received is not None, device)

    def leave(self, text: str) -> NoReturn:
        """Says why and ends all processes, once everything is saved: as submitit wants it in its
        jobs, else with 128 + signal. All processes must call this."""
        say(text)
        wait_for_all()
        disconnect()
        # A process that got no signal itself ends like the one that did.
        signum = self.received or (signal.SIGUSR2 if in_submitit_job() else signal.SIGTERM)
        previous = self._previous.get(signum)
        if in_submitit_job() and callable(previous):
            try:
                # requeues the job and exits; returns in all processes but the first
                previous(signum, None)
            except subprocess.CalledProcessError as error:
                if error.returncode >= 0:
                    raise
                # A job that is queued again is ended, and with it, at times, the process that asked
                # for that.
            time.sleep(120)
        sys.exit(128 + signum)


@dataclass
class StepWatch:
    """Watches the steps of a training in all its processes: is the loss finite, and was any of them
    asked to stop?

    The loop calls `step` after each step, and `finish` before it saves. Both return the sums over
    the processes that have arrived, [] for none; on a GPU those of a step arrive with the next one
    (LateSums). `asked` turns True at the same step in all processes: they then save and leave.
    remedy: what to try where the loss is not finite.
    """

    stop: StopSignal
    device: torch.device
    remedy: str
    asked: bool = False

    def __post_init__(self) -> None:
        self._sums = LateSums(self.device)

    def step(self, place: str, loss: float | torch.Tensor, *values: torch.Tensor) -> list[float]:
        """values: further numbers to sum. InputError for a loss that is not finite; place: words
        for where that is."""
        return self._arrived(place, self._sums(loss, *values, self.stop.received is not None))

    def finish(self, place: str) -> list[float]:
        """Waits for the last step's sums, so that a loss that is not finite is never saved."""
        return self._arrived(place, self._sums.last())

    def _arrived(self, place: str, sums: list[float] | None) -> list[float]:
        if sums is None:
            return []
        *values, asked = sums
        if not math.isfinite(values[0]):
            raise InputError(
                f"the loss is {values[0]} {place}; the last good checkpoint is kept: try {self.remedy}"
            )
        self.asked = self.asked or asked > 0
        return values

    def leave(self, place: str) -> NoReturn:
        """Ends all processes; everything must be saved."""
        self.stop.leave(f"stopped after {place}; rerun the same command to resume there")
