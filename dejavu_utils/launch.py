"""Where a script's work runs: in this process, or as a SLURM job through submitit (imported here and nowhere else)."""

import importlib.util
import random
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from dejavu_utils.options import InputError


def choose_device(index=0):
    """The GPU with this index if there is one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise InputError(f"--local_gpu {index}: this machine has {torch.cuda.device_count()} GPUs, counted from 0")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def seed_everything(seed):
    """Seeds Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class ScriptJob:
    """A call of one function of a root script, as submitit pickles it: the job imports the script as a module.

    A function of `__main__` cannot be unpickled elsewhere. On a time-out or preemption submitit calls `checkpoint`; the
    same call is queued again, and the script goes on from what it has saved.
    """

    def __init__(self, script, function, arguments):
        self.script, self.function, self.arguments = str(Path(script).resolve()), function, arguments

    def __call__(self):
        root = str(Path(self.script).parent)
        if root not in sys.path:
            sys.path.insert(0, root)
        spec = importlib.util.spec_from_file_location(Path(self.script).stem, self.script)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return getattr(module, self.function)(self.arguments)

    def checkpoint(self):
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def autocast(device, precision):
    """The context in which a network runs in `precision`: fp32, bf16 or fp16."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def here_or_submitted(script, function, args):
    """Calls a root script's function(args) here with --local 1, else submits it as a job and prints the job's id.

    args: the Namespace of a parser with options.add_launch_flags, with output_dir and num_workers.
    """
    job = ScriptJob(script, function, args)
    if args.local:
        return job()
    job_id = submit(
        job,
        args.output_dir,
        "--local 1",
        timeout_min=args.timeout,
        slurm_partition=args.partition or None,
        slurm_additional_parameters={"dependency": args.dependency} if args.dependency else None,
        slurm_signal_delay_s=120,
        mem_gb=args.mem_gb,
        gpus_per_node=1,
        cpus_per_task=max(1, args.num_workers),
        name=Path(args.output_dir).name,
    )
    print(job_id)


def submit(job, folder, stay_here, **parameters):
    """Submits a ScriptJob to SLURM and returns the job's id.

    folder: where submitit keeps its files and logs. stay_here: the flag that runs without SLURM, for the error.
    parameters: submitit's (timeout_min, slurm_partition, ...); those that are None are left to the cluster.
    InputError where there is no SLURM: submitit would quietly run in the background.
    """
    if shutil.which("srun") is None:
        raise InputError(f"there is no SLURM here (srun is not on the path): run on this machine with {stay_here}")
    import submitit

    executor = submitit.AutoExecutor(folder=str(folder), cluster="slurm", slurm_max_num_timeout=30)
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    return executor.submit(job).job_id
