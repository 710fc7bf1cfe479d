"""The SLURM path on a real SLURM of one node: jobs submitted, preempted, timed out, killed, and queued after others.

All jobs run at once, on one tiny data set, and are looked at when they have ended. Needs root and Debian's packages
slurm-wlm and munge (tests/slurm_cluster.sh); skipped elsewhere.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    ROOT,
    assert_one_line_error,
    documented_command,
    draw_tree,
    flags,
    load,
    noise,
    ok,
    read_json,
    run_here,
    run_process,
    save_untrained,
)

from dejavu_utils.data.beton import write_beton

pytestmark = pytest.mark.slurm
CLUSTER = ROOT / "tests/slurm_cluster.sh"
LONGEST = 600  # seconds that anything may take before it counts as a hang
EPOCHS = 6
HERE = "--ngpus 0 --world_size 2 --mem_gb 2 --num_workers 1 --resolution 32"
SIZES = {  # flags of size that are appended to the README's commands
    "train_SSL.py": f"""--model.arch resnet18 --model.mlp 32-16 --resolution.min_res 32 --resolution.max_res 32
        --validation.resolution 32 --training.batch_size 4 --training.epochs {EPOCHS} --training.eval_freq {EPOCHS}
        --training.warmup_epochs 1 --data.num_workers 1 --logging.log_level 1 --dist.ngpus 0 --dist.world_size 2
        --dist.cpus_per_task 1 --dist.mem_gb 2""",
    "label_inference_attack.py": f"{HERE} --k 7 --k_attk 5 --min_px 10",
    "lin_probe.py": f"{HERE} --epochs 2",
    "sslmem.py": f"{HERE} --views 2",
    "train_RCDM.py": """--ssl_arch resnet18 --mlp 32-16 --ssl_resolution 32 --image_size 32 --num_channels 32
        --channel_mult 1,1 --num_res_blocks 1 --attention_resolutions 16 --batch_size 2 --workers 0
        --lr_anneal_steps 2 --save_interval 2 --log_interval 1 --timestep_respacing 2 --backend diffusers
        --nodes 1 --ngpus 0 --world_size 2 --mem_gb 3""",
}


@contextlib.contextmanager
def started_cluster(folder, **environment):
    """Starts SLURM; its tests find it by the environment. It ends with this process, whatever becomes of the tests."""
    missing = [p for p in ("munged", "slurmctld", "slurmd", "srun") if not shutil.which(p, path="/usr/sbin:/usr/bin")]
    if missing or os.geteuid() != 0:
        pytest.skip("needs root" if not missing else f"not installed: {', '.join(missing)} (slurm-wlm, munge)")
    run_cluster("start", folder, os.getpid(), **environment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        patch.setenv("PATH", "/usr/bin:/usr/sbin", prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
    run_cluster("stop", folder)


def run_cluster(*words, **environment):
    return ok(run_process(CLUSTER, *words, **environment))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with started_cluster(tmp_path_factory.mktemp("slurm")) as folder:
        yield folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set under the names of the README's commands; folders with spaces, quotes and other letters."""
    folder = draw_tree(tmp_path_factory.mktemp("the user's") / 'dätä "1"')
    rank = np.arange(36) % 12
    index = folder / "index"
    for n, names in ((300, ("bbox_A", "bbox_B", "train_A")), (500, ("public",))):
        (index / f"{n}_per_class").mkdir(parents=True)
        for name in names:
            chosen = {"bbox_B": (rank >= 4) & (rank < 8), "public": rank >= 8}.get(name, rank < 4)
            np.save(index / f"{n}_per_class/{name}.npy", np.flatnonzero(chosen))
    np.save(index / "val_set.npy", np.flatnonzero(rank >= 10))
    images = noise((40 + i, 50) for i in range(24))
    (folder / "betons").mkdir()
    for name in ("300_per_class_A", "300_per_class_B"):  # the same images: B's weights must be A's
        write_beton(folder / f"betons/{name}.beton", images, [i % 3 for i in range(24)])
    save_untrained(folder / "other.pth", seed=1, loss="vicreg")  # an attack refuses one model twice
    write_beton(folder / "betons/val.beton", images[:6], [i % 3 for i in range(6)])
    return folder


def command(script, data, **changes):
    """(script, words): the README's command with this data set's folders, flags of size, and what a test changes."""
    variables = {
        "IMAGENET_DATASET_DIR": data / "images",
        "IMAGENET_BBOX_ANNOTATIONS": data / "boxes",
        "INDEX_FOLDER": data / "index",
        "BETONS_FOLDER": data / "betons",
        "LOGGING_FOLDER": data / "logs",
    }
    words = [string.Template(word).substitute(variables) for word in documented_command(script)]
    words = [re.sub(r"(model_ep|_)1000(ep|\.pth)", rf"\g<1>{EPOCHS}\g<2>", word) for word in words]
    last = [words.pop()] if words[-1] == "0" else []
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    if script in ("label_inference_attack.py", "sslmem.py"):
        changes["model_B_pth"] = data / "other.pth"
    return script, [*words, *SIZES[script].split(), *flags(changes), *last]


def submit(script, words, **environment):
    """Submits the command; the job's number, which is the last line."""
    result = ok(run_here(script, *words, **environment))
    return result.stdout.splitlines()[-1]


def job(number):
    """What SLURM knows about a job."""
    shown = subprocess.run(["scontrol", "show", "job", "-o", number], capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in shown.stdout.split() if "=" in word)


def wait_for(what, condition):
    deadline = time.monotonic() + LONGEST
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {LONGEST} s: {what}"
        time.sleep(0.05)
    return found


def ended(number):
    return job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")


def log(number, task=0, kind="out"):
    """What a task of a job has written so far."""
    path = job_folders[number] / f"{number}_{task}_log.{kind}"
    return path.read_text(errors="replace") if path.exists() else ""


job_folders = {}


def training(data, name, **changes):
    """Submits the README's training into the folder `name`."""
    folder = data / "logs/vicreg" / name
    number = submit(*command("train_SSL.py", data, logging__folder=folder, **changes))
    job_folders[number] = folder / "submitit"
    return number


def tasks(number):
    """{rank: process} of a running job; not those that read images for one of these."""
    found, parents = {}, {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"submitit.core._submit" not in (process / "cmdline").read_bytes():
                continue
            words = (process / "environ").read_bytes().split(b"\0")
            parent = int(re.search(r"PPid:\s*(\d+)", (process / "status").read_text()).group(1))
        except OSError:  # it has just ended, or is nobody's business
            continue
        environment = dict(word.split(b"=", 1) for word in words if b"=" in word)
        if environment.get(b"SLURM_JOB_ID") == number.encode() and b"SLURM_PROCID" in environment:
            found[int(process.name)] = int(environment[b"SLURM_PROCID"])
            parents[int(process.name)] = parent
    return {rank: process for process, rank in found.items() if parents[process] not in found}


def set_limit(number, minutes):
    subprocess.run(["scontrol", "update", f"JobId={number}", f"TimeLimit={minutes}"], check=True)


@pytest.fixture(scope="module")
def jobs(cluster, data):
    """Everything that happens to the jobs, told once; {name: job's number}."""
    found = {
        "whole": training(data, "vicreg_dssweep_300pc_A"),
        "preempted": training(data, "vicreg_dssweep_300pc_B"),
        "limited": training(data, "limited", dist__timeout=10),
        "killed": training(data, "killed"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SBATCH_ACCOUNT", "laboratory")
        patch.setenv("SBATCH_PARTITION", "other")
        patch.setenv("SBATCH_CONSTRAINT", "fast")
        dependency = f"afterok:{found['whole']}"
        found["next"] = training(data, "vicreg_dssweep_300pc_A", dist__dependency=dependency, dist__comment="it's 2nd")
    found["never"] = training(data, "never", dist__dependency=f"afterok:{found['killed']}")

    # They are held in their second epoch, so that what is to happen happens there.
    held = {name: None for name in ("preempted", "limited", "killed")}

    def all_held():
        for name in [name for name, pids in held.items() if pids is None and "epoch 1/" in log(found[name])]:
            held[name] = tasks(found[name])
            for pid in held[name].values():
                os.kill(pid, signal.SIGSTOP)
        return None not in held.values()

    wait_for("first epoch", all_held)
    assert all(sorted(pids) == [0, 1] for pids in held.values()), held
    found["second"] = training(data, "limited")

    subprocess.run(["scancel", "--signal=USR2", found["preempted"]], check=True)
    os.kill(held["killed"][1], signal.SIGKILL)
    for pid in (*held["preempted"].values(), held["killed"][0]):
        os.kill(pid, signal.SIGCONT)
    wait_for("end of the second job", lambda: ended(found["second"]))
    _, minutes, _ = job(found["limited"])["RunTime"].split(":")
    set_limit(found["limited"], int(minutes) + 2)  # SLURM's own signal comes 120 s before
    wait_for("time limit", lambda: job(found["limited"])["Restarts"] == "1")
    set_limit(found["limited"], 10)
    for name in found:
        wait_for(f"end of job {name}", lambda name=name: ended(found[name]))
    return found


def weights(data, name):
    return load(data / "logs/vicreg" / name / "final_weights.pt")


def assert_same_weights(data, name):
    expected = weights(data, "vicreg_dssweep_300pc_A")
    assert all(torch.equal(value, expected[key]) for key, value in weights(data, name).items())
    lines = (data / "logs/vicreg" / name / "log").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, EPOCHS + 1))


def test_two_tasks_train(jobs, data):
    assert job(jobs["whole"])["JobState"] == "COMPLETED" and job(jobs["whole"])["Restarts"] == "0"
    assert "steps of 8 images per epoch (2 processes)" in log(jobs["whole"])
    assert_same_weights(data, "vicreg_dssweep_300pc_A")


@pytest.mark.parametrize("name, folder, case", [
    ("preempted", "vicreg_dssweep_300pc_B", "preempted"), ("limited", "limited", "timed-out")
])  # fmt: skip
def test_a_stopped_job_is_requeued_and_ends_in_the_same_weights(jobs, data, name, folder, case):
    assert job(jobs[name])["JobState"] == "COMPLETED" and job(jobs[name])["Restarts"] == "1"
    output = log(jobs[name]) + log(jobs[name], kind="err")
    assert output.count("stopped after epoch") == 1 and output.count("resumes after epoch") == 1, output
    assert "this job is timed-out" in output if case == "timed-out" else "Caught signal SIGUSR2" in output
    assert_same_weights(data, folder)


def test_a_killed_task_ends_the_job_with_its_error_in_the_log(jobs, data):
    assert job(jobs["killed"])["JobState"] == "FAILED"
    assert re.search(r"task 1: Killed", log(jobs["killed"], kind="err"))
    assert not (data / "logs/vicreg/killed/final_weights.pt").exists()
    assert not tasks(jobs["killed"])


def test_a_second_job_over_the_same_folder_is_refused(jobs, data):
    assert job(jobs["second"])["JobState"] == "FAILED"
    errors = log(jobs["second"], kind="err")
    assert re.search(rf"--logging.folder .*limited: process \d+ on \S+, SLURM job {jobs['limited']} writes", errors)


def test_dependencies_hold(jobs):
    first, then, never = (job(jobs[name]) for name in ("whole", "next", "never"))
    assert then["JobState"] == "COMPLETED" and then["StartTime"] >= first["EndTime"]
    assert f"{EPOCHS} epochs are done" in log(jobs["next"])
    assert never["JobState"] == "CANCELLED" and not log(jobs["never"])


def test_sbatch_takes_what_has_no_flag_from_the_environment(jobs):
    shown = job(jobs["next"])
    assert shown["Account"] == "laboratory" and shown["Partition"] == "other" and shown["Comment"] == "it's"
    assert shown["Features"] == "fast"
    assert job(jobs["whole"])["Partition"] == "main" and job(jobs["whole"])["TimeLimit"] == "1-22:40:00"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dist__partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"dist__dependency": "afterok:what"}, "SLURM refuses the job"),
        ({"dist__mem_gb": 10**6}, "SLURM refuses the job"),
        ({"logging__folder": "a 50% run"}, "SLURM cannot write logs below a folder with %"),
        ({"logging__folder": "a\nrun"}, "a line break in its name"),
    ],
)
def test_what_slurm_cannot_do_is_one_line(cluster, data, tmp_path, changes, message):
    if "logging__folder" in changes:
        changes = {"logging__folder": tmp_path / changes["logging__folder"]}
    script, words = command("train_SSL.py", data, **{"logging__folder": tmp_path / "x", **changes})
    assert_one_line_error(run_here(script, *words), message)
    assert not list(tmp_path.glob("x/model*"))


REPORT = """
import json, os, sys
from pathlib import Path
from dejavu_utils.runtime.launch import Resources, ScriptJob, submit
from dejavu_utils.runtime.processes import init_distributed

def report(folder):
    init_distributed(gpu=None)
    found = {"cores": len(os.sched_getaffinity(0)), "environment": dict(os.environ)}
    (Path(folder) / "report.json").write_text(json.dumps(found))

if __name__ == "__main__":
    resources = Resources(timeout=10, mem_gb=1, nodes=1, ngpus=0, world_size=1, cores=2)
    print(submit(ScriptJob(report, sys.argv[1]), sys.argv[1], resources, "--here"))
"""


@pytest.fixture(scope="module")
def binding_cluster(cluster, tmp_path_factory):
    """A second SLURM, which binds processes to the cores that they were given."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    folder = tmp_path_factory.mktemp("binding")
    run_cluster("start", folder, os.getpid(), SLURM_CPUS="2", SLURM_TASK_PLUGIN="task/affinity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
    run_cluster("stop", folder)


@pytest.mark.parametrize("inside", [
    [], ["salloc", "-Q", "--mem-per-cpu=100M", "-n1"], ["srun", "-Q", "-n1", "--cpu-bind=cores", "--mem-per-cpu=100M"]
])  # fmt: skip
def test_a_job_starts_as_from_a_login_shell_with_its_cores(binding_cluster, tmp_path, inside):
    """Also where it is submitted within another one, whose SLURM_* would reach the new job's srun as flags."""
    (tmp_path / "report.py").write_text(REPORT)
    words = [*inside, sys.executable, tmp_path / "report.py", tmp_path]
    result = ok(run_process(*words, PYTHONPATH=ROOT, SBATCH_ACCOUNT="kept", SUBMITIT_FOLDER="/another"))
    number = result.stdout.split()[-1]
    wait_for("end of the job", lambda: ended(number))
    errors = [path.read_text() for path in tmp_path.glob(f"{number}*_log.err")]
    assert job(number)["JobState"] == "COMPLETED", errors
    found = read_json(tmp_path / "report.json")
    assert found["cores"] == 2
    assert found["environment"]["SLURM_JOB_ID"] == number and "SLURM_MEM_PER_CPU" not in found["environment"]
    assert job(number)["Account"] == "kept" and job(number)["JobName"] == tmp_path.name
