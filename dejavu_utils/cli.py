"""Command lines: one-line errors, types and groups of flags that several scripts have.

Habit: a script's `main` runs under `run`, bad input is an `InputError` that names the file or flag
and the remedy.
"""

import argparse
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dejavu_utils.crops import RULES
from dejavu_utils.errors import InputError
from dejavu_utils.finished import missing_snapshot, queued_job

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """ArgumentParser with one-line errors, without abbreviated flags, whose help shows the
    defaults."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        empty = action.default in (None, "", argparse.SUPPRESS) or isinstance(
            action, argparse._StoreTrueAction
        )
        return action.help if empty else super()._get_help_string(action)


def run(main: Callable[[], object]) -> None:
    """Calls main(); bad input and failing files end in one line on stderr and exit code 2, Ctrl-C
    in exit code 130.

    SIGTERM ends the process like an error, so that half-written temporary files are removed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if hasattr(sys.stdout, "reconfigure"):
        # names of files that the terminal's encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        _fail(f"{file}{error.strerror or error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> NoReturn:
    if threading.current_thread() is threading.main_thread():
        # the exit code stays 2 while libraries shut down
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(message.split())}\n")
    sys.exit(2)


def zero_or_one(text: str) -> int:
    """argparse type of the 0/1 flags: 0, 1, true or false -> int."""
    values = {"0": 0, "1": 1, "false": 0, "true": 1}
    if str(text).lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or 1")
    return values[str(text).lower()]


def expanded(text: str) -> str:
    """argparse type of paths: ~ and $VARIABLES are filled in as a shell does (quotes, YAML and
    --flag=~/x hide them).

    A path that exists literally is returned unchanged. A variable that is not set is refused,
    instead of making a folder of that name.
    """
    before, dollar, after = text.rpartition("$")
    with_dollar = before + dollar + after.partition("/")[0] if dollar else text
    if os.path.lexists(with_dollar):
        return text
    path = os.path.expanduser(os.path.expandvars(text))
    left = re.search(r"\$\w+|\$\{\w+\}", path)
    if left and left[0] in text:  # what a variable's value holds is left alone
        raise argparse.ArgumentTypeError(f"{text!r}: the variable {left[0]} is not set")
    if path.startswith("~"):
        raise argparse.ArgumentTypeError(
            f"{text!r}: there is no user {path.partition('/')[0][1:]!r}"
        )
    return path


def positive_int(text: str) -> int:
    """argparse type of numbers from 1 on."""
    return _whole_number(text, 1)


def non_negative_int(text: str) -> int:
    """argparse type of numbers from 0 on."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} on")
    return int(text)


def non_negative_number(text: str) -> float:
    """argparse type of finite numbers from 0 on."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return float(text)


def add_paths(
    group: argparse._ActionsContainer, texts: dict[str, str], required: bool = True
) -> None:
    """A flag for each path. texts: {flag: help}."""
    for flag, text in texts.items():
        group.add_argument(flag, type=expanded, required=required, help=text)


def add_flags(group: argparse._ActionsContainer, flags: dict[str, tuple[Any, Any, str]]) -> None:
    """A flag for each entry. flags: {flag: (default, argparse type or choices, help)}."""
    for flag, (default, kind, text) in flags.items():
        options = {"choices": kind} if isinstance(kind, tuple) else {"type": kind}
        group.add_argument(flag, default=default, help=text, **options)


def from_flags(kind: type[T], args: object, **others: Any) -> T:
    """A dataclass whose fields are called like flags; `others` are given. Fields that are neither
    keep their default."""
    names = kind.__dataclass_fields__.keys() & vars(args).keys()  # type: ignore[attr-defined]
    values = {name: getattr(args, name) for name in names}
    return kind(**{**values, **others})


def default_workers(most: int = 10) -> int:
    """Worker processes for reading images: the cores this process may use, at most so many."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), most)
    return min(os.cpu_count() or 1, most)


def add_launch_flags(
    parser: argparse.ArgumentParser, timeout: int, mem_gb: int, ngpus: int = 1, nodes: int = 1
) -> argparse._ArgumentGroup:
    """The flags of dejavu_utils.runtime.launch.launch and job_flags, with these defaults; their
    group."""
    group = parser.add_argument_group("where it runs")
    gpus = "GPUs per node, one process each (with --local 1 an upper limit); 0: CPUs only"
    flags = {
        "--local": (0, zero_or_one, "1: run here; 0: submit a SLURM job"),
        "--local_gpu": (0, non_negative_int, "which GPU to use with --local 1 and --ngpus 1"),
        "--ngpus": (ngpus, non_negative_int, gpus),
        "--nodes": (nodes, positive_int, "nodes of the job"),
        "--world_size": (0, non_negative_int, "processes per node where no GPU is used; 0: one"),
        "--timeout": (timeout, positive_int, "time limit of the job, minutes"),
        "--partition": ("", str, "SLURM partition"),
        "--mem_gb": (mem_gb, non_negative_int, "memory per node, GB; 0 = 60 x ngpus"),
        "--dependency": ("", str, "SLURM dependency, for instance afterok:123"),
    }
    add_flags(group, flags)
    return group


def add_inference_flags(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """The flags of running a trained network over image files."""
    group = parser.add_argument_group("speed")
    side = (
        "side of the network's input, pixels; default: 224 if its training ended at 168 to 224 pixels"
        " or at an unknown size, else the size that it ended with"
    )
    flags = {
        "--batch_size": (batch_size, positive_int, "images per batch"),
        "--num_workers": (default_workers(), non_negative_int, "processes that read images"),
        "--precision": ("fp32", ("fp32", "bf16", "fp16"), "precision of the network"),
        "--resolution": (None, positive_int, side),
    }
    add_flags(group, flags)
    group.add_argument(
        "--skip_unreadable",
        action="store_true",
        help="leave out images that cannot be read, and count them",
    )


def existing_file(path: str | Path | None, flag: str) -> Path:
    """The path, if it is a file; an InputError that names the flag otherwise."""
    if not path:
        raise InputError(f"{flag} is needed: name a file")
    if not Path(path).is_file():
        raise InputError(f"{flag} {path}: no such file")
    return Path(path)


def existing_or_awaited_file(path: str | Path | None, flag: str, args: argparse.Namespace) -> Path:
    """The path, if it is a file, or may be one by the time a submitted job runs: after the jobs of
    --dependency, or after the one in SLURM's queue that writes its folder."""
    if path and not Path(path).is_file():
        never = missing_snapshot(path)
        if never:
            raise InputError(f"{flag} {path}: no such file; {never}")
        if not args.local and (args.dependency or queued_job(Path(path).parent)):
            return Path(path)
    return existing_file(path, flag)


def existing_folder(path: str | Path | None, flag: str) -> Path:
    """The path, if it is a folder; an InputError that names the flag otherwise."""
    if not path:
        raise InputError(f"{flag} is needed: name a folder")
    if not Path(path).is_dir():
        raise InputError(f"{flag} {path}: no such folder")
    return Path(path)


def add_crop_flags(group: argparse._ArgumentGroup) -> None:
    """The flags of crops.CropRule for background crops; each with dashes or underscores
    within its name."""

    def add(name: str, **kwargs: Any) -> None:
        group.add_argument(f"--{name}", f"--{name.replace('_', '-')}", **kwargs)

    add(
        "crop_rule",
        choices=RULES,
        default="paper",
        help="paper: the largest gap within a strip between box edges; exact: the largest empty rectangle",
    )
    add(
        "min_px",
        type=positive_int,
        default=100,
        help="a crop's shorter side is longer than this, pixels",
    )
    add(
        "box_margin",
        type=non_negative_number,
        default=0.0,
        help="boxes grow by it on every side before a crop is cut: below 1 a fraction of the box's side, else pixels",
    )
    add(
        "scale_boxes",
        type=zero_or_one,
        nargs="?",
        const=1,
        default=0,
        help="1: scale boxes from the <size> in the XML to the image's; 0: where these differ, the image has no crop",
    )
