"""The rules of docs/how_it_works.md, counted: imports, the length of files and functions, parameters."""

import ast
import subprocess

import pytest
from helpers import ROOT, each_file

# Each may import those before it; all may import the core, the flat modules.
WINGS = ["runtime", "data", "networks", "training", "attack", "analysis", "label_free", "reconstruction"]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = sorted((ROOT / "dejavu_utils").rglob("*.py")) + sorted(ROOT.glob("*.py"))


def imported(tree):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@each_file(FILES)
def test_a_package_imports_the_core_and_earlier_ones(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [name.split(".") for name in imported(tree)]
    assert not [name for name in names if name[0] in SCRIPTS], "no script is imported"
    inside = path.relative_to(ROOT).parts
    if inside[0] == "dejavu_utils":
        own = WINGS.index(inside[1]) if inside[1] in WINGS else -1  # -1: the core
        later = [".".join(name) for name in names if name[0] == "dejavu_utils" and name[1] in WINGS[own + 1 :]]
        assert not later


@each_file(FILES)
def test_functions_are_short_and_take_few_parameters(path):
    functions = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    ]
    long = [node.name for node in functions if node.end_lineno - node.lineno >= 80]
    assert not long, "functions of more than 80 lines"
    wide = {f"{node.name}, line {node.lineno}": count for node in functions if (count := parameters(node)) > 8}
    assert not wide, "functions of more than 8 parameters"


def parameters(function):
    """How many a function has, self not counted."""
    all_of = function.args
    named = [*all_of.posonlyargs, *all_of.args, *all_of.kwonlyargs]
    starred = [argument for argument in (all_of.vararg, all_of.kwarg) if argument]
    return len([argument for argument in named if argument.arg not in ("self", "cls")] + starred)


def test_scripts_and_core_stay_small():
    def lines(path):
        return len(path.read_text(encoding="utf-8").splitlines())

    for path in ROOT.glob("*.py"):
        assert lines(path) <= (460 if path.stem in ("train_SSL", "train_RCDM") else 420), path.name
    assert sum(map(lines, (ROOT / "dejavu_utils").glob("*.py"))) <= 2100, "the core"


def test_no_checkout_setting_changes_a_line_end(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    files = ["bash_examples/sweep.sh", "gen_betons.sh", "train_SSL.py", "tests/data/attack_traces.json"]
    subprocess.run(["git", *settings, "checkout-index", f"--prefix={tmp_path}/", *files], cwd=ROOT, check=True)
    for name in files:
        assert b"\r" not in (tmp_path / name).read_bytes(), name
