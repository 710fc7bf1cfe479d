"""What several tests need: running a script as a user does, a tiny image folder with boxes, an untrained checkpoint."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from dejavu_utils.checkpoint import save_checkpoint, with_prefix
from dejavu_utils.cli import run
from dejavu_utils.data.provenance import TrainingImages
from dejavu_utils.errors import InputError
from dejavu_utils.imagenet import list_images
from dejavu_utils.models import SSLNetwork
from dejavu_utils.runtime import processes
from dejavu_utils.runtime.processes import StopSignal

ROOT = Path(__file__).parents[1]
ABSENT = Path(__file__).parent / "absent"  # nothing has this name, on any machine


def run_process(*words, cwd=None, timeout=None, **environment):
    """These words in a process of its own, with these variables."""
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [str(word) for word in words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=variables)


def run_script(name, *arguments, **environment):
    """`python NAME ARGUMENTS` in a process of its own."""
    return run_process(sys.executable, ROOT / name, *arguments, **{"OMP_NUM_THREADS": "1", **environment})


def interrupted(script, arguments, signum, at, send=os.kill):
    """Such a process, which gets the signal at the first line that begins so; (exit code, all output).

    send: os.killpg for every process of the run, as a terminal sends it.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    output = ""
    for line in process.stdout:
        output += line
        if at and line.startswith(at):
            send(process.pid, signum)
            at = None
    return process.wait(), output


def script_module(name):
    """The module of a script, imported anew under its own name."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_here(name, *arguments, **environment):
    """The same in this process, which saves the start of a new one: returncode, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    argv = sys.argv
    sys.argv = [str(ROOT / name), *(str(a) for a in arguments)]
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.dict(os.environ, environment),
            kept_signals(),
            one_thread(),
        ):
            run(script_module(name).main)
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = argv
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def run_example(name, *arguments, **environment):
    """`bash bash_examples/NAME ARGUMENTS` with these variables."""
    return run_process("bash", ROOT / "bash_examples" / name, *arguments, **environment)


def ok(result):
    """The result of a script or test command that ended well."""
    assert result.returncode == 0, f"{result.stdout}{result.stderr}"
    return result


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_log(path):
    """The records of a log, one JSON object a line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def load(path):
    return torch.load(path, weights_only=True)


def documentation():
    """{path: text} of README.md, the pages below docs/ and CONTRIBUTING.md."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
    return {path: path.read_text(encoding="utf-8") for path in paths}


def documented_commands():
    """(page, script, words) of each `python SCRIPT ...` in the documentation, in blocks and in lines of text.

    The words are as the shell takes them; MODEL_FLAGS_* are filled in, other variables are not.
    """
    pages = documentation()
    flags_of = re.compile(r'^export (MODEL_FLAGS_\d+)="(.*)"$', re.MULTILINE)
    variables = dict(pair for text in pages.values() for pair in flags_of.findall(text))
    for page, text in pages.items():
        blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        outside = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for line in lines + re.findall(r"`([^`\n]+)`", outside):
            if line.startswith("python "):
                filled = re.sub(r"\$(MODEL_FLAGS_\d+)", lambda match: variables[match[1]], line)
                script, *words = shlex.split(filled, comments=True)[1:]
                yield page, script, words


def documented_command(script):
    """The words of the first `python SCRIPT ...`, the README's before those of docs/."""
    return next(words for _, named, words in documented_commands() if named == script)


@contextlib.contextmanager
def one_thread():
    """Within it PyTorch computes as in `run_script`: the results are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def kept_signals():
    """What the scripts do on signals ends with the block."""
    handlers = {number: signal.getsignal(number) for number in StopSignal.SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def draw_alone(monkeypatch, *names):
    """Of the figures that are saved only these are drawn, which takes most of a plot's time; others are empty."""
    savefig = Figure.savefig

    def save(figure, path, **options):
        if any(name in Path(path).name for name in names):
            savefig(figure, path, **options)
        else:
            Path(path).touch()

    monkeypatch.setattr(Figure, "savefig", save)


def debug_cluster(monkeypatch, folder):
    """submitit's debug executor in place of SLURM: a job runs here when its result is asked for.

    Returns {"jobs": the jobs submitted, "parameters": those of the last}, which grow.
    """
    submitit = pytest.importorskip("submitit")
    submitted = {"jobs": [], "parameters": {}}

    class Debug(submitit.AutoExecutor):
        def __init__(self, folder, cluster, **kwargs):
            assert cluster == "slurm"
            submitted["parameters"].clear()
            super().__init__(folder, cluster="debug", **kwargs)

        def update_parameters(self, **kwargs):
            submitted["parameters"].update(kwargs)
            super().update_parameters(**kwargs)

        def submit(self, function):
            submitted["jobs"].append(super().submit(function))
            return submitted["jobs"][-1]

    (folder / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(submitit, "AutoExecutor", Debug)
    monkeypatch.setattr(processes, "gpu_problem", lambda: "")  # jobs get the GPUs they ask for, or a CPU
    return submitted


def flags(settings):
    """{"k": 5} -> ["--k", "5"]; None leaves a flag out, "" gives a switch."""
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}"] + ([] if value == "" else [str(value)])
    return words


def options(text):
    """{flag: value} of `--k 7 --resume -min_px`: --NAME alone is a switch, -NAME takes a flag away.

    NAME=VALUE is a variable.
    """
    found, name = {}, None
    for word in shlex.split(text):
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = ""
        elif name:
            found[name], name = word, None
        elif word.startswith("-"):
            found[word.removeprefix("-")] = None
        else:
            variable, _, found[variable] = word.partition("=")
    return found


def cases(text):
    """[(options, [parts of the message])] of a table: `--k 13 -min_px -> --k 13 ;; only 12 images` a line.

    ABSENT is a path without a file.
    """
    rows = []
    for line in text.replace("ABSENT", str(ABSENT)).strip().splitlines():
        words, _, message = line.partition(" -> ")
        rows.append((options(words), [part.strip() for part in message.split(";;")]))
    return rows


def rows_of(names, text):
    """A test for each row of such a table. names: of its two arguments, the options and the parts of the message."""
    return pytest.mark.parametrize(names, cases(text))


def each_file(paths):
    """A test for each of these files."""
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def refused(match=None):
    """Within it an InputError is raised whose text this regular expression finds."""
    return pytest.raises(InputError, match=match)


def assert_one_line_error(result, *texts):
    assert result.returncode == 2, result.stderr
    errors = [line for line in result.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and "Traceback" not in result.stderr
    for text in texts:
        assert text in errors[0]


def noise(sizes):
    """Random images of these (height, width)."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def in_folder(path):
    """The path, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def annotation(*boxes, before=""):
    """The XML of an image with boxes (xmin, ymin, xmax, ymax). before: what its objects come after."""
    objects = ""
    for box in boxes:
        sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
        objects += f"<object><bndbox>{sides}</bndbox></object>"
    return f"<annotation>{before}{objects}</annotation>"


def draw_tree(folder, classes=3, per_class=12, boxed=8, seed=0):
    """images/CLASS/ID.JPEG of 60 x 50 or 50 x 60 pixels and boxes/Annotation/CLASS/ID.xml for the first `boxed`.

    classes: how many, or their names.
    """
    rng = np.random.default_rng(seed)
    for name in [f"c{label}" for label in range(classes)] if isinstance(classes, int) else classes:
        for rank in range(per_class):
            size = ((60, 50), (50, 60))[rank % 2]
            path = in_folder(folder / "images" / name / f"{name}_{rank:02d}.JPEG")
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize(size, Image.BILINEAR).save(path)
            if rank < boxed:
                xml = in_folder(folder / "boxes/Annotation" / name / f"{name}_{rank:02d}.xml")
                x, y = rng.integers(1, 20, 2)
                xml.write_text(annotation((x, y, x + 20, y + 20)))
    return folder


def save_sets(folder, per_class, **bounds):
    """Index files NAME.npy of the images whose number in their class lies within the bounds; returns the listing."""
    listing = list_images(folder / "images")
    rank = np.arange(len(listing)) % per_class
    for name, (first, last) in bounds.items():
        np.save(folder / f"{name}.npy", np.flatnonzero((first <= rank) & (rank < last)))
    return listing


def save_untrained(path, seed=0, loss="simclr", mlp="32-16", classes=3, **about):
    """A checkpoint with random weights, of a resnet18 as published; about: more of its entries. Returns the network."""
    torch.manual_seed(seed)
    arch = about.get("settings", {}).get("model.arch", "resnet18")
    network = SSLNetwork(arch, mlp, loss, classes if loss == "supervised" else None).eval()
    save_checkpoint(path, {"epoch": 1, "model": with_prefix(network.state_dict()), **about})
    return network


# Settings of a training from which a checkpoint's network is rebuilt.
RECIPE = {
    "model.arch": "test_resnet",
    "model.mlp": "32-16",
    "model.mlp_coeff": 1.0,
    "model.fc": 0,
    "model.proj_relu": 0,
}
RECIPE |= {"model.remove_head": 0, "training.loss": "simclr"}


def trained_on(folder, names, crops=""):
    """A checkpoint's record of its training images: those of FOLDER/NAME.npy, of FOLDER/images."""
    indices = np.sort(np.concatenate([np.load(folder / f"{name}.npy") for name in names]))
    return TrainingImages(indices, list_images(folder / "images").fingerprint["sha256"], crops).plain()


def draw_demo(folder, **settings):
    """The demo's images, small, by its script; returns the folder."""
    settings = {"save_dir": folder, "side": 64, "object_size": 0.3, "num_workers": 1, **settings}
    result = run_here("make_demo_dataset.py", *flags(settings))
    assert result.returncode == 0, result.stderr
    return folder


def read_colors(network):
    """Gives a resnet18 weights by which its output is a random function of an image's colors.

    The first convolution averages over its window and weighs the channels at random; all later blocks pass that on.
    """
    with torch.no_grad():
        first = network.net.conv1.weight
        colors = torch.nn.functional.normalize(torch.randn(len(first), 3, 1, 1), dim=1)
        first.copy_(colors.expand_as(first) / first[0, 0].numel())
        for name, module in network.net.named_modules():
            if name.endswith("bn2"):
                module.weight.zero_()
            if name.endswith("downsample.0"):
                torch.nn.init.dirac_(module.weight)
    return network


def save_color_reader(path, seed=0, classes=3, **about):
    """A checkpoint that reads colors (`read_colors`) and has never seen an image; about: more of its entries."""
    network = read_colors(save_untrained(path, seed, mlp="64-32", classes=classes))
    save_checkpoint(path, {"epoch": 1, "model": with_prefix(network.state_dict()), **about})
    return network
