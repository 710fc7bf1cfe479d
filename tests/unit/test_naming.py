"""The names of points and folders."""

import sys

import pytest
from helpers import ROOT, run_process

from dejavu_utils.naming import SWEEPS, fraction_digits, sslmem_beside


def test_points_are_read_without_torch_or_pandas():
    modules = "dejavu_utils.naming, dejavu_utils.cli"
    code = f"import sys, {modules}; print({{'torch', 'pandas', 'numpy'}} & set(sys.modules))"
    result = run_process(sys.executable, "-c", code, cwd=ROOT)
    assert result.stdout == "set()\n", result.stderr


def test_fractions_are_their_digits():
    """test_plot.py finds points by them."""
    assert [fraction_digits(text) for text in (".05", "0.075", ".5", ".100")] == ["05", "075", "50", "10"]
    for text in ("1.5", "15", "0.", "-.5", "abc"):
        with pytest.raises(ValueError):
            fraction_digits(text)


def test_label_free_scores_lie_beside_each_kind_of_attack(tmp_path):
    point = SWEEPS["epochs"].at(50, "simclr", per_class=300)
    for kind in ("projector", "backbone", "corner_crop"):
        assert sslmem_beside(tmp_path / point.attack(kind)) == tmp_path / point.sslmem
    assert sslmem_beside(tmp_path / "attack") is None


def test_folders_of_reconstructions_and_label_free_scores():
    """test_sweeps.py has the names of the other stages."""
    point = SWEEPS["epochs"].at(50, "simclr_rn50", per_class=300)
    assert point.rcdm == "RCDM/rcdm_simclr_rn50_50ep_300pc"
    assert point.sslmem == "sslmem_sweeps/sslmem_simclr_rn50_300pc_50ep"
