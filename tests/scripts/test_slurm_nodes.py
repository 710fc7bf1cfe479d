"""A real SLURM of two nodes: every stage gives what it gives here, and a node dies during a training."""

import os
import signal
import subprocess

import pytest
import torch
from helpers import load, ok, read_json, run_script
from test_slurm import command, data, ended, job, log, run_cluster, started_cluster, submit, tasks, training, wait_for

pytestmark = pytest.mark.slurm
__all__ = ["data"]  # a fixture
# The stages after the training and the flag that says where they write.
STAGES = dict.fromkeys(("label_inference_attack.py", "lin_probe.py", "sslmem.py"), "--output_dir")
STAGES["train_RCDM.py"] = "--out_dir"
TWO = {"nodes": 2, "world_size": 1, "mem_gb": 1}
OF_TRAINING = {f"dist__{name}": value for name, value in TWO.items()}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A SLURM of two nodes on this machine."""
    with started_cluster(tmp_path_factory.mktemp("nodes"), NODES="2") as folder:
        yield folder


def node_of(process):
    """The name of the node that a task runs on."""
    words = open(f"/proc/{process}/environ", "rb").read().split(b"\0")
    return next(word.split(b"=")[1].decode() for word in words if word.startswith(b"SLURMD_NODENAME="))


@pytest.fixture(scope="module")
def trainings(nodes, data):
    """The numbers of two submitted trainings, of A and B."""
    names = [f"vicreg_dssweep_300pc_{side}" for side in "AB"]
    return [training(data, name, **OF_TRAINING) for name in names]


@pytest.fixture(scope="module")
def stages(trainings, data):
    """All other stages, submitted while the trainings are in the queue; {script: number of the job that has ended}."""
    numbers = {script: submit(*stage(script, data, **TWO)) for script in STAGES}
    for number in numbers.values():
        wait_for("end of the stages", lambda number=number: ended(number))
    return numbers


@pytest.fixture(scope="module")
def dying(nodes, data):
    """The number of a training whose second node dies after the first epoch; it has ended."""
    number = training(data, "dying", logging__checkpoint_freq=1, **OF_TRAINING)

    def held():
        if "epoch 1/" not in log(number):
            return None
        for process in tasks(number).values():
            os.kill(process, signal.SIGSTOP)
        return tasks(number)

    second = node_of(wait_for("first epoch", held)[1])
    run_cluster("kill", nodes, second)
    wait_for("requeue", lambda: job(number)["Restarts"] == "1")
    run_cluster("revive", nodes, second)
    wait_for("end of the training", lambda: ended(number))
    return number


def stage(script, data, **changes):
    """`command`, without the index file of shared images: this data set has none."""
    _, words = command(script, data, **changes)
    if "--shared_idx_pth" in words:
        place = words.index("--shared_idx_pth")
        words = words[:place] + words[place + 2 :]
    return script, words


def folder_of(script, data):
    words = command(script, data)[1]
    return words[words.index(STAGES[script]) + 1]


def final_weights(data, name):
    return data / "logs/vicreg" / name / "final_weights.pt"


def assert_same_tensors(file, other):
    ours, theirs = load(file), load(other)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("script", STAGES)
def test_two_nodes_give_what_two_processes_give_here(stages, data, tmp_path, script):
    """Submitted with the trainings: it waited for them without a flag."""
    about = job(stages[script])
    assert about["JobState"] == "COMPLETED" and about["NumNodes"] == "2"
    there = data / folder_of(script, data)
    name, words = stage(script, data, local=1, **{STAGES[script].strip("-"): tmp_path})
    ok(run_script(name, *words))
    if script == "train_RCDM.py":
        for name in ("model000002.pt", "ema_0.9999_000002.pt"):
            assert_same_tensors(tmp_path / name, there / name)
    else:
        for path in [*tmp_path.glob("*.npy"), *tmp_path.glob("*.csv")]:
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
        ours, theirs = (read_json(folder / "results.json") for folder in (tmp_path, there))
        for entry in ("counts", "final", "both"):  # the stages have different ones
            assert ours.get(entry) == theirs.get(entry), entry


def test_two_nodes_train_as_two_processes_here(trainings, data, tmp_path):
    whole = trainings[0]
    wait_for("end of the training", lambda: ended(whole))
    about = job(whole)
    assert about["JobState"] == "COMPLETED" and about["NumNodes"] == "2", log(whole, kind="err")
    script, words = command("train_SSL.py", data, logging__folder=tmp_path, dist__use_submitit=0)
    ok(run_script(script, *words))
    assert_same_tensors(tmp_path / "final_weights.pt", final_weights(data, "vicreg_dssweep_300pc_A"))


def test_a_node_that_dies_does_not_change_the_weights(trainings, dying, data):
    assert job(dying)["JobState"] == "COMPLETED", log(dying, kind="err")
    wait_for("end of the training", lambda: ended(trainings[0]))
    assert_same_tensors(final_weights(data, "dying"), final_weights(data, "vicreg_dssweep_300pc_A"))
    assert "resumes after epoch" in log(dying)


def test_a_node_that_does_not_see_the_data_is_named(nodes, data):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    run_cluster("blind", nodes, "localhost", data / "betons")
    number = training(data, "blind", **OF_TRAINING)
    wait_for("end of the training", lambda: ended(number))
    run_cluster("kill", nodes, "localhost")
    run_cluster("revive", nodes, "localhost")
    message = f"node localhost: {data / 'betons/300_per_class_A.beton'}: not a complete .beton"
    logs = "".join(log(number, task, "err") for task in range(2))
    assert job(number)["JobState"] == "FAILED" and message in logs, logs
