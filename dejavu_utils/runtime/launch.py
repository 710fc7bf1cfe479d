"""Where a script's work runs: here, in several processes, or as a SLURM job through submitit
(imported only here)."""

import contextlib
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dejavu_utils.cli import from_flags
from dejavu_utils.errors import InputError
from dejavu_utils.finished import awaited_jobs, job_file
from dejavu_utils.runtime.locks import locked
from dejavu_utils.runtime.processes import (
    JOB_PROCESS,
    disconnect,
    init_distributed,
    rank_from_environment,
    start_here,
)

if TYPE_CHECKING:
    import submitit
LOCK_FILE = ".lock"  # in a run's folder while it is written
# What SLURM, submitit and torchrun tell the processes of a job, and what SLURM sets there for its
# GPUs.
_OF_A_JOB = re.compile(
    r"(SLURMD?|SRUN|PMIX?|TORCHELASTIC)_|SUBMITIT_(EXECUTOR|FOLDER)|MASTER_(ADDR|PORT)$|((LOCAL|GROUP|ROLE)_)?(RANK|WORLD_SIZE)$"
)
_GPUS_OF_A_JOB = (
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
    "ZE_AFFINITY_MASK",
)
_OF_ANY_CLIENT = ("SLURM_CONF", "SLURM_JWT")


@dataclass
class ScriptJob:
    """A call of a script's function, which submitit and spawned processes can unpickle.

    A function of `__main__` cannot be unpickled elsewhere: it is pickled as its file and name, and
    the other process imports the script as a module. On a time-out or preemption submitit calls
    `checkpoint`: the same call is requeued, and the script resumes from what it has saved. lock: a
    lock file in the folder that the call writes into and the flag that names this folder
    (locks.locked), held by the first process meanwhile; or None. submitted: does submitit call it?
    """

    function: Callable
    arguments: object
    lock: tuple[Path, str] | None = None
    submitted: bool = False

    def __call__(self) -> None:
        if self.submitted:
            import submitit

            submitit.helpers.TorchDistributedEnvironment().export(
                set_cuda_visible_devices=False, overwrite=True
            )
            os.environ[JOB_PROCESS] = str(os.getpid())
        lock: AbstractContextManager[None] = contextlib.nullcontext()
        if self.lock and not rank_from_environment()[0]:
            restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
            lock = locked(*self.lock, os.environ.get("SLURM_JOB_ID"), restart)
        with lock, _named_node(self.submitted):
            self.function(self.arguments)
            disconnect()

    def __getstate__(self) -> dict[str, Any]:
        script = str(Path(inspect.getfile(self.function)).resolve())
        return {**vars(self), "function": (script, self.function.__name__)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        script, name = state["function"]
        sys.path.insert(0, os.path.dirname(script))
        module = importlib.import_module(Path(script).stem)
        vars(self).update(state, function=getattr(module, name))

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@contextlib.contextmanager
def _named_node(submitted: bool) -> Iterator[None]:
    """In a job, an InputError says on which node it was raised: that one may not see a folder which
    the others see."""
    try:
        yield
    except InputError as error:
        if not submitted:
            raise
        raise InputError(
            f"node {os.environ.get('SLURMD_NODENAME', socket.gethostname())}: {error}"
        ) from None


@dataclass
class Resources:
    """What a run computes on. local: here, in as many processes as there are GPUs, at most ngpus;
    else it is a job, and the rest is what it asks SLURM for. local_gpu: which GPU one process takes
    here. timeout: minutes. mem_gb: per node, 0: 60 per GPU. ngpus: GPUs and so processes per node;
    0: none, and world_size processes. cores: per process. dependency: SLURM's; where a job that it
    waits for has failed, the job leaves the queue instead of waiting for ever."""

    timeout: int
    mem_gb: int
    nodes: int
    ngpus: int
    world_size: int
    cores: int
    partition: str = ""
    dependency: str = ""
    comment: str = ""
    local: int = 0
    local_gpu: int = 0

    @classmethod
    def of(cls, flags: object, cores: int) -> "Resources":
        """From flags of the same names, as cli.add_launch_flags and a training's section dist have
        them.

        A job waits for those in the queue that write a file which another flag names.
        """
        resources = from_flags(cls, flags, cores=cores)
        jobs = [] if resources.local else awaited_jobs(vars(flags).values())
        if jobs:
            waited_for = [resources.dependency] if resources.dependency else []
            resources.dependency = ",".join([*waited_for, f"afterok:{':'.join(jobs)}"])
        return resources

    def parameters(self) -> dict:
        """For submitit's executor."""
        wait = {"dependency": self.dependency, "kill_on_invalid_dep": "yes"}
        parameters = {
            "timeout_min": self.timeout,
            "mem_gb": self.mem_gb or 60 * max(1, self.ngpus),
            "nodes": self.nodes,
            "tasks_per_node": self.ngpus or max(1, self.world_size),
            "gpus_per_node": self.ngpus or None,
            "cpus_per_task": max(1, self.cores),
            "slurm_partition": self.partition or None,
            "slurm_comment": self.comment or None,
            "slurm_additional_parameters": wait if self.dependency else None,
        }
        return {name: value for name, value in parameters.items() if value is not None}


def launch(
    function: Callable, given: object, resources: Resources, folder: tuple[str, str], logs: str = ""
) -> None:
    """Calls a script's function(given) here if the resources are local, else submits it and prints
    the job's id.

    The function is called in each of several processes if that is asked for, and finds the others
    with `init_from_args`. folder: (its path, the flag that names it); this run alone writes into
    it. logs: the folder below it for submitit's files.
    """
    path = Path(folder[0])
    flag = folder[1]
    job = ScriptJob(function, given, (path / LOCK_FILE, flag))
    if resources.local:
        gpus = min(resources.ngpus, torch.cuda.device_count())
        return start_here(job, gpus or max(1, resources.world_size))
    print(submit(job, path, resources, "--local 1", logs))


def init_from_args(resources: Resources, port: int = 0, long_waits: bool = False) -> torch.device:
    """`init_distributed` for a function that `launch` has called; this process's device."""
    gpu = None
    if resources.ngpus:
        gpu = resources.local_gpu if resources.local else 0
    return init_distributed(port, gpu, long_waits, "--local_gpu")


def submit(
    job: ScriptJob, folder: str | Path, resources: Resources, stay_here: str, logs: str = ""
) -> str:
    """Submits a ScriptJob to SLURM and returns the job's id, which FOLDER.job keeps for the next
    call.

    folder: of the run, which gives the job its name. logs: the folder below it for submitit's files
    and logs. stay_here: the flag that runs without SLURM, for the error. The job starts as from a
    login shell, also where this process is part of another one. InputError where there is no SLURM
    (submitit would quietly run in the background), for a folder that SLURM cannot name, and with
    SLURM's own words where it refuses the job.
    """
    if shutil.which("srun") is None:
        raise InputError(
            f"there is no SLURM here (srun is not on the path): run on this machine with {stay_here}"
        )
    folder = os.path.abspath(folder)
    if any(sign in folder for sign in "\n\r%\\"):
        raise InputError(
            f"{folder!r}: SLURM cannot write logs below a folder with %, \\ or a line break in its name"
        )
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ModuleNotFoundError:
        raise InputError(
            f"submitit, which submits jobs, is not installed: pip install submitit, or run here with {stay_here}"
        ) from None

    root = shlex.quote(str(Path(__file__).resolve().parents[2]))
    setup = [
        # the job unpickles what is of this package
        f"export PYTHONPATH={root}${{PYTHONPATH:+:$PYTHONPATH}}",
        # where nothing else binds the tasks
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        # since 22.05 srun does not take over what sbatch was told
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
    ]
    executor = submitit.AutoExecutor(
        folder=os.path.join(folder, logs), cluster="slurm", slurm_max_num_timeout=30
    )
    executor.update_parameters(
        name=os.path.basename(folder) or Path(inspect.getfile(job.function)).stem,
        slurm_signal_delay_s=120,
        slurm_setup=setup,
        slurm_srun_args=["--kill-on-bad-exit=1"],  # one process that died leaves the others waiting
        **resources.parameters(),
    )
    try:
        # submitit prints what it raises
        with contextlib.redirect_stderr(io.StringIO()), _as_from_a_login_shell():
            number = executor.submit(replace(job, submitted=True)).job_id
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(f"SLURM refuses the job: {' '.join(str(error).split())}") from None
    with contextlib.suppress(OSError):  # the job is there all the same
        job_file(folder).write_text(f"{number}\n", encoding="utf-8")
    return number


@contextlib.contextmanager
def _as_from_a_login_shell() -> Iterator[None]:
    """The environment without what another job has set: sbatch hands it on, and srun takes it for
    flags of its own."""
    gone = {name for name in os.environ if _OF_A_JOB.match(name)} - {*_OF_ANY_CLIENT}
    if "SLURM_JOB_ID" in os.environ:
        gone |= {*_GPUS_OF_A_JOB} & {*os.environ}
    removed = {name: os.environ.pop(name) for name in gone}
    try:
        yield
    finally:
        os.environ.update(removed)
