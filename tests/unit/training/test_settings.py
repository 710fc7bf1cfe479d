"""Settings of a training: their flat form, YAML files and flags that take the same values, limits."""

import json

import pytest
import yaml
from helpers import flags, refused, rows_of

import train_SSL
from dejavu_utils.models import LOSSES
from dejavu_utils.training.methods import METHODS
from dejavu_utils.training.settings import Settings, check_settings, first_difference


def of_yaml(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return train_SSL.read_settings(["--config-file", str(tmp_path / "c.yaml")])[0]


def of_value(tmp_path, key, written):
    """The settings of a YAML file that says this of one key."""
    section, name = key.split(".")
    return of_yaml(tmp_path, f"{section}:\n  {name}: {written}\n")


def test_flat_form_and_back():
    settings = Settings()
    settings.vicreg.sim_coeff, settings.dist.ngpus = 10.0, 2
    flat = settings.to_flat()
    assert flat["vicreg.sim_coeff"] == 10.0 and flat["dist.ngpus"] == 2 and flat["training.loss"] == "simclr"
    assert Settings.from_flat(json.loads(json.dumps(flat))) == settings
    assert flat.keys() == train_SSL.read_settings([])[0].keys()
    assert Settings.from_flat({"vicreg.sim_coeff": 10.0, "dist.ngpus": 2, "gone.setting": 1}) == settings


def test_every_method_has_a_name_that_networks_and_flags_know():
    assert tuple(METHODS) == LOSSES


def test_settings_that_touch_the_weights_make_another_run():
    before, now = Settings(), Settings()
    now.dist.ngpus, now.validation.resolution, now.training.eval_freq = 1, 96, 7
    assert first_difference(before, now) is None
    now.simclr.temperature = 0.2
    assert first_difference(before, now) == ("simclr.temperature", 0.15, 0.2)


TAKEN = """
    training.weight_decay: 1e-6   -> 1e-06
    training.base_lr: 1           -> 1.0
    training.epochs: 010          -> 10
    training.epochs: '12'         -> 12
    training.epochs: !!int 3      -> 3
    model.fc: true                -> 1
    model.fc: 0                   -> 0
    model.mlp: 2048-512           -> '2048-512'
    model.mlp: 512                -> '512'
    dist.partition: ""            -> ''
    dist.partition: on            -> 'on'
    dist.comment: 2026-01-01      -> '2026-01-01'
    dist.dependency: afterok:123  -> 'afterok:123'
"""


@pytest.mark.parametrize("line", TAKEN.strip().splitlines())
def test_a_yaml_value_is_what_the_flag_takes(tmp_path, line):
    given, _, value = line.partition("->")
    key, _, written = (word.strip() for word in given.partition(": "))
    found = of_value(tmp_path, key, written)[key]
    assert repr(found) == value.strip()
    assert found == train_SSL.read_settings([f"--{key}", written.removeprefix("!!int ").strip("'\"")])[0][key]


NOT_TAKEN = """
    dist.timeout: 12:00:00
    dist.timeout: 1-00:00:00
    dist.timeout: 720.5
    training.epochs: 2.9
    training.epochs: 3.0
    training.epochs: 1e3
    training.epochs: true
    training.epochs: 0x10
    training.epochs: null
    training.batch_size: yes
    training.warmup_epochs: 0.5
    training.base_lr: true
    training.base_lr: .nan
    training.base_lr: nan
    training.base_lr: 0,3
    training.base_lr: 1:30
    training.clip_grad: inf
    training.weight_decay: -.inf
    training.loss: SimCLR
    model.fc: 2
    model.fc: 1.0
    model.mlp: [2048, 512]
    model.mlp: {2048: 512}
    logging.folder: $NO_SUCH_VARIABLE_HERE/run
    logging.folder:
    logging.folder: null
    logging.folder: ~
    dist.partition:
    dist.partition: NULL
    data.train_dataset: ${NO_SUCH_VARIABLE_HERE}/a.beton
    data.train_dataset: ~no_such_user_here/a.beton
"""


@pytest.mark.parametrize("line", NOT_TAKEN.strip().splitlines())
def test_a_yaml_value_that_the_flag_would_not_take_is_refused(tmp_path, line):
    key, _, written = line.strip().partition(":")
    with refused(rf"c\.yaml: .*{key}: "):
        of_value(tmp_path, key, written)


BROKEN = """
    training:|  epochs: 3|  epochs: 5           -> epochs is given twice
    training:|  epochs: 3|training:|  loss: byol -> training is given twice
    training:                                   -> expected sections
    - a                                         -> expected sections
    training:|  epoch: 3                        -> unknown flag --training.epoch
    ? [a, b]|: 3                                -> expected sections
    training: {epochs: 3                        -> not valid YAML
"""


@pytest.mark.parametrize("line", BROKEN.strip().splitlines())
def test_a_broken_yaml_file_is_refused(tmp_path, line):
    """A | ends a line of the file."""
    text, _, message = line.strip().partition(" -> ")
    with refused(message):
        of_yaml(tmp_path, text.rstrip().replace("|", "\n"))


def test_values_that_are_repeated_by_reference_are_taken(tmp_path):
    text = "validation: &shared\n  resolution: 32\nresolution:\n  min_res: &side 48\n  max_res: *side\n"
    assert of_yaml(tmp_path, text)["resolution.max_res"] == 48


def test_paths_are_expanded_in_files_and_flags(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("BETONS_FOLDER", "/data/be tons")
    found = of_yaml(tmp_path, "data:\n  train_dataset: $BETONS_FOLDER/a.beton\nlogging:\n  folder: ~/run\n")
    assert (found["data.train_dataset"], found["logging.folder"]) == ("/data/be tons/a.beton", "/home/me/run")
    words = ["--data.val_dataset=${BETONS_FOLDER}/val.beton", "--logging.folder=~/x"]
    found = train_SSL.read_settings(words)[0]
    assert (found["data.val_dataset"], found["logging.folder"]) == ("/data/be tons/val.beton", "/home/me/x")


@pytest.mark.parametrize("word", ["--training.base_lr=nan", "--logging.folder=$NO_SUCH_VARIABLE_HERE/x"])
def test_flags_are_as_strict(word):
    with refused(word.split("=")[0]):
        train_SSL.read_settings([word])


@pytest.mark.parametrize("word, limit", [
    ("--simclr.temperature=0", "must be above 0"), ("--training.momentum=1.5", "must be at most 1"),
    ("--dist.timeout=0", "must be at least 1"), ("--training.warmup_epochs=-1", "must be at least 0"),
])  # fmt: skip
def test_numbers_beyond_their_limits_are_named(tmp_path, word, limit):
    message = f"{word.replace('=', ': ')} {limit}"
    with refused(message):
        train_SSL.read_settings([word])
    with refused(rf"c\.yaml: .*{message}"):
        of_value(tmp_path, *word.removeprefix("--").split("="))


@rows_of(
    "changes, texts",
    """
    --augment.min_area 0.5 --augment.max_area 0.2 -> --augment.min_area: must be above 0
    --training.num_small_crops 2                  -> --training.num_small_crops: simclr has no small crops
    --training.loss mocov3 --model.remove_head 1  -> --model.remove_head 1
    --resolution.end_ramp 1                       -> --resolution.end_ramp
""",
)
def test_settings_that_do_not_go_together_are_named(tmp_path, changes, texts):
    (tmp_path / "a.beton").touch()
    small = {"data.train_dataset": str(tmp_path / "a.beton"), "data.val_dataset": str(tmp_path / "a.beton")}
    small |= {"logging.folder": str(tmp_path / "run"), "model.arch": "resnet18"}
    check_settings(Settings.from_flat(small))
    with refused() as error:
        check_settings(Settings.from_flat(train_SSL.read_settings(flags({**small, **changes}))[0]))
    assert str(error.value).startswith(texts[0])


def test_params_json_is_a_config_that_gives_the_same_settings(tmp_path):
    """Every value survives being written down and read again."""
    flat = train_SSL.read_settings(["--training.weight_decay", "1e-6", "--dist.partition", "gpu"])[0]
    sections = {}
    for key, value in flat.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    assert of_yaml(tmp_path, yaml.safe_dump(sections)) == flat
