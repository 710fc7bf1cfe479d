"""Is a folder finished, or is a job in SLURM's queue writing it?

Scripts ask before they import torch, so that a sweep passes each finished point in a fraction of a
second: standard library only, and YAML where a training's settings are in such a file.
"""

import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dejavu_utils.errors import InputError

# Flags that say where and how fast a script runs, not what it computes. The number of a training's
# processes is not among them: it makes the global batch.
_WITHOUT_EFFECT = re.compile(
    r"dist\.(?!world_size|ngpus|nodes).*|data\.num_workers|logging\.(folder|log_level)|config_file|(output|out)_dir"
    r"|local(_gpu)?|ngpus|nodes|world_size|timeout|partition|mem_gb|dependency|comment|port|(num_)?workers|class_names"
    r"|crop_cache"
)
_OTHER_WORK = ("training.eval_only", "training.train_probes_only")  # of a finished training
_SECONDS_TO_NAME = 60  # from the last byte of results to their final name, at most
Flags = dict[str, list[str]]


@dataclass(frozen=True)
class Results:
    """Where a script's results are.

    folder: the flag that names their folder. last: the file in it that is written last; {} stands
    for the value of `steps`, six digits. layers: the flag of layers, each of which has a folder of
    its own. steps: the flag of how long the script works, and what it counts.
    """

    folder: str
    last: str = "results.json"
    layers: str = ""
    steps: tuple[str, str] = ("", "")

    def path(self, flags: Flags) -> Path:
        """The file that is written last."""
        layer = value_of(flags, self.layers).split(",")[-1]
        name = self.last.format(value_of(flags, self.steps[0]).zfill(6))
        return Path(value_of(flags, self.folder), layer, name)

    def done(self, flags: Flags) -> str:
        """What a finished folder is said to hold."""
        flag, what = self.steps
        return f" ({value_of(flags, flag) or 'all'} {what} are done)" if flag else ""


RESULTS = {
    "train_SSL.py": Results(
        "logging.folder", "final_weights.pt", steps=("training.epochs", "epochs")
    ),
    "label_inference_attack.py": Results("output_dir", layers="layers"),
    "lin_probe.py": Results("output_dir"),
    "sslmem.py": Results("output_dir"),
    "train_RCDM.py": Results("out_dir", "samples{}.png", steps=("lr_anneal_steps", "steps")),
}


def leave_if_finished() -> None:
    """Ends this process if its results are complete, or if a job in the queue will write them; says
    so."""
    script = Path(sys.argv[0]).name
    if {"-h", "--help"} & {*sys.argv}:
        return
    try:
        said = finished_or_queued(script, typed_flags(sys.argv[1:]), True)
    except InputError as error:
        sys.stderr.write(f"{script}: error: {error}\n")
        sys.exit(2)
    if said:
        print(said)
        sys.exit(0)


def finished_or_queued(script: str, flags: Flags, refuses: bool = False) -> str:
    """Why a command has nothing to do, in words; "" if it has.

    refuses: a training that runs here and differs is left to its script, which compares more and
    refuses to resume.

    A flag that differs from those of the finished run is named. If a file that a flag names has
    changed since, it may be another one: there is something to do, and be it to compare contents.
    """
    results = RESULTS[script]
    folder = value_of(flags, results.folder)
    last = results.path(flags)
    if not folder or any(value_of(flags, name) not in ("", "0") for name in _OTHER_WORK):
        return ""
    if last.is_file() and not changed_input(flags, last):
        other = difference(flags, recorded_settings(last))
        if other and refuses and results.steps[0] and not submits(flags):
            return ""
        remedy = f", but made with {other}; remove {last} to make it again" if other else ""
        return f"{folder}: there already{results.done(flags)}{remedy}"
    number = queued_job(folder) if submits(flags) else ""
    return f"{folder}: in the queue as job {number}" if number else ""


def submits(flags: Flags) -> bool:
    """Does this command submit a job?"""
    on = ("1", "true")
    if "logging.folder" in flags:  # a training
        return value_of(flags, "dist.use_submitit").lower() in on
    return value_of(flags, "local").lower() not in on


def value_of(flags: Flags, name: str) -> str:
    """A flag's value as text; "" if it is not given."""
    return next(iter(flags.get(name, [])), "")


def typed_flags(words: Sequence[str]) -> Flags:
    """{flag: its values} of a command line; those of a YAML file after --config-file come before
    the typed ones."""
    flags: Flags = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            values = [value] if given else []
            flags[name.replace("-", "_")] = values
        else:
            values.append(word)
    path = flags.get("config_file")
    return {**_of_yaml(path[0]), **flags} if path else flags


def _of_yaml(path: str) -> Flags:
    import yaml

    try:
        sections = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        flags = {}
        for section, names in sections.items():
            for name, value in names.items():
                flags[f"{section}.{name}"] = [str(value)]
        return flags
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError):
        return {}  # the script says what is wrong with it


def changed_input(flags: Flags, results: Path) -> str:
    """The first file among the values of the flags that was changed after the results were written;
    "" if there is none.

    A file may come with an older time of its own (cp -p, rsync): then the time at which it came
    tells, unless the results were copied, too.
    """
    made = results.stat()
    was_copied = made.st_ctime - made.st_mtime > _SECONDS_TO_NAME
    for name, values in flags.items():
        for path in () if _WITHOUT_EFFECT.fullmatch(name) else values:
            if os.path.isfile(path):
                found = os.stat(path)
                came_later = not was_copied and found.st_ctime_ns > made.st_ctime_ns
                if came_later or found.st_mtime_ns > made.st_mtime_ns:
                    return path
    return ""


def recorded_settings(results: Path) -> Mapping[str, object]:
    """The settings in results.json, or in params.json beside it; {} where there are none."""
    path = results if results.suffix == ".json" else results.with_name("params.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return dict(record["settings"] if path == results else record)
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def difference(flags: Flags, record: Mapping[str, object]) -> str:
    """The first flag whose value is not the recorded one, in words; "" if all agree."""
    for name, values in flags.items():
        if name not in record or _WITHOUT_EFFECT.fullmatch(name):
            continue
        recorded = record[name]
        if isinstance(recorded, list):
            before = list(map(str, recorded))
            now = ",".join(values).split(",")
        else:
            before = ["" if recorded is None else str(recorded)]
            now = values[:1] or ["1"]  # a switch
        if list(map(_plain, before)) != list(map(_plain, now)) or _other_files(before, now):
            return f"--{name} {' '.join(before) or 'none'}, not {' '.join(values) or 1}"
    return ""


def _plain(text: str) -> object:
    """A number where it is one; of a path the last two names, as whole trees move."""
    try:
        return float({"true": "1", "false": "0"}.get(text.lower(), text))
    except ValueError:
        return Path(text).parts[-2:] if "/" in text else text


def _other_files(before: Sequence[str], now: Sequence[str]) -> bool:
    """Are two of these paths files of other contents? Equal names below other folders may be."""
    for one, other in zip(before, now):
        if one != other and os.path.isfile(one) and os.path.isfile(other):
            if not filecmp.cmp(one, other, shallow=False):
                return True
    return False


def job_file(folder: str | Path) -> Path:
    """FOLDER.job, which holds the number of the job that was submitted last to write into the
    folder."""
    return Path(f"{os.path.abspath(folder)}.job")


def queued_job(folder: str | Path) -> str:
    """The number of the job in SLURM's queue that writes into this folder; "" if there is none.

    InputError where squeue does not answer: the job may be there.
    """
    path = job_file(folder)
    squeue = shutil.which("squeue")
    if not path.is_file() or not squeue:
        return ""
    number = path.read_text(encoding="utf-8").strip()
    command = [squeue, "-h", "-u", str(os.getuid()), "-o", "%i"]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise InputError(f"{path}: squeue does not answer ({answer.stderr.strip()}): try again")
    return number if number in answer.stdout.split() else ""


def awaited_jobs(paths: Iterable[object]) -> list[str]:
    """The numbers of the jobs in the queue that write files which are still missing."""
    numbers = set()
    for path in paths:
        if isinstance(path, str) and path and not os.path.exists(path):
            numbers.add(queued_job(Path(path).parent))
    return sorted(numbers - {""}, key=int)


def missing_snapshot(path: str | Path) -> str:
    """Why a training will not write this snapshot, model_ep{E}.pth, in words; "" if it may."""
    path = Path(path)
    name = re.fullmatch(r"model_ep(\d+)\.pth", path.name)
    settings = recorded_settings(path)
    epochs, every = (settings.get(key) for key in ("training.epochs", "logging.snapshot_freq"))
    if not name or not isinstance(epochs, int) or not isinstance(every, int):
        return ""
    epoch = int(name[1])
    if epoch == epochs or (epoch < epochs and epoch % every == 0):
        return ""
    return f"the training has {epochs} epochs and a snapshot every {every}: name one of these"
