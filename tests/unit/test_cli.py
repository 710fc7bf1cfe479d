"""Command lines: what their types make of a word."""

import argparse

import pytest
from helpers import ROOT, assert_one_line_error, run_here

from dejavu_utils.cli import expanded, non_negative_int, positive_int


def test_paths_are_filled_in_as_a_shell_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("LOGS", "/scratch/a$b")
    for text, path in {
        "~/runs": "/home/me/runs",
        "$LOGS/x": "/scratch/a$b/x",
        "${LOGS}/x/": "/scratch/a$b/x/",
        "plain/$(touch x); *": "plain/$(touch x); *",
        "runs/~": "runs/~",
        "": "",
        ".": ".",
    }.items():
        assert expanded(text) == path
    (tmp_path / "a$b").mkdir()
    assert expanded(f"{tmp_path}/a$b/new/folder") == f"{tmp_path}/a$b/new/folder"  # that name is there


@pytest.mark.parametrize("text, reason", [
    ("$UNSET_1/x", r"variable \$UNSET_1 is not set"), ("x/${UNSET_1}", r"variable \$\{UNSET_1\} is not set"),
    ("~nobody-of-this-name/x", "no user 'nobody-of-this-name'"),
])  # fmt: skip
def test_what_cannot_be_filled_in_is_refused(text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        expanded(text)


@pytest.mark.parametrize("kind, least", [(positive_int, 1), (non_negative_int, 0)])
def test_whole_numbers(kind, least):
    assert kind(str(least)) == least and kind("12") == 12
    for text in (str(least - 1), "-3", "2.5", "many", ""):
        with pytest.raises(argparse.ArgumentTypeError, match=f"is not a whole number from {least} on"):
            kind(text)


@pytest.mark.parametrize("script", ["imagenet_partition", "write_ffcv_dataset", "label_inference_attack", "lin_probe",
                                    "train_RCDM", "plot_quant_results", "make_demo_dataset"])  # fmt: skip
def test_every_flag_for_a_path_fills_in(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / f"{script}.py").read_text()
    flags = [word.strip('"') for word in text.replace("(", " ").replace(",", " ").split() if word.startswith('"--')]
    paths = [f for f in flags if f.endswith(("_pth", "_dir", "-path", "_path", "_indices", "_names", "_cache"))]
    for flag in [*paths, *(f for f in flags if f == "--resume_checkpoint")]:
        assert_one_line_error(run_here(f"{script}.py", flag, "$UNSET_1/x"), flag, "$UNSET_1 is not set")
    assert not list(tmp_path.iterdir())
