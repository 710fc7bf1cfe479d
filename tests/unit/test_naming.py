"""The names of points and folders."""

import sys

import pytest
from helpers import ROOT, run_process

from dejavu_utils.naming import ATTACK_PREFIX, SWEEPS, fraction_digits, sslmem_beside, sweep_points


def test_points_are_read_without_torch_or_pandas():
    modules = "dejavu_utils.naming, dejavu_utils.cli"
    code = f"import sys, {modules}; print({{'torch', 'pandas', 'numpy'}} & set(sys.modules))"
    result = run_process(sys.executable, "-c", code, cwd=ROOT)
    assert result.stdout == "set()\n", result.stderr


@pytest.mark.parametrize("name, values", [(name, ("100", "250")) for name in ("epochs", "datasets", "sim_coeff")])
def test_a_sweep_finds_the_points_it_names(tmp_path, name, values):
    found(tmp_path, name, values, [100, 250])


@pytest.mark.parametrize("name", ["temperature", "corner_fraction"])
def test_fractions_are_their_digits(tmp_path, name):
    found(tmp_path, name, (".075", "0.5", ".10"), [0.075, 0.1, 0.5])
    assert [fraction_digits(text) for text in (".05", "0.075", ".5", ".100")] == ["05", "075", "50", "10"]
    for text in ("1.5", "15", "0.", "-.5", "abc"):
        with pytest.raises(ValueError):
            fraction_digits(text)


def found(folder, name, values, expected):
    where = {"model": "vicreg", "per_class": 300, "epoch": 1000}
    for value in values:
        (folder / SWEEPS[name].at(value, **where).attack("projector")).mkdir(parents=True)
    template = ATTACK_PREFIX + SWEEPS[name].template(**where)
    assert [value for value, _ in sweep_points(folder / "attack_sweeps", template, SWEEPS[name].value)] == expected


def test_label_free_scores_lie_beside_each_kind_of_attack(tmp_path):
    point = SWEEPS["epochs"].at(50, "simclr", per_class=300)
    for kind in ("projector", "backbone", "corner_crop"):
        assert sslmem_beside(tmp_path / point.attack(kind)) == tmp_path / point.sslmem
    assert sslmem_beside(tmp_path / "attack") is None


def test_published_names_of_one_point():
    point = SWEEPS["epochs"].at(50, "simclr_rn50", per_class=300)
    assert (point.training, point.attack("logits"), point.probe, point.rcdm, point.sslmem) == (
        "simclr_rn50_dssweep_300pc",
        "attack_sweeps_w_linear_layer_activations/NN_attk_simclr_rn50_300pc_50ep",
        "lin_probe_sweeps_with_aug/lp_simclr_rn50_300pc_50ep",
        "RCDM/rcdm_simclr_rn50_50ep_300pc",
        "sslmem_sweeps/sslmem_simclr_rn50_300pc_50ep",
    )
    assert SWEEPS["temperature"].at(".15", "simclr", 100, 1000).training == "simclr_tempsweep_p15"
    assert SWEEPS["sim_coeff"].at("25", "vicreg", 100, 1000).attack("backbone").endswith("NN_attk_vicreg_sim25_1000ep")
    assert SWEEPS["corner_fraction"].at(".40", "vicreg", 100, 1000).name == "vicreg_crop_p40_1000ep"
