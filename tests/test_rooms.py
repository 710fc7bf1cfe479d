"""The rules of docs/how_it_works.md, counted: who imports whom, and how long a function may be."""

import ast

import pytest
from helpers import ROOT

ROOMS = ["networks", "data", "training", "attack", "analysis", "reconstruction"]  # each may import those before it
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
FILES = sorted((ROOT / "dejavu_utils").rglob("*.py")) + sorted(ROOT.glob("*.py"))


def imported(tree):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_the_core_and_earlier_rooms(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [name.split(".") for name in imported(tree)]
    assert not [name for name in names if name[0] in SCRIPTS], "no script is imported"
    inside = path.relative_to(ROOT).parts
    if inside[0] == "dejavu_utils":
        own = ROOMS.index(inside[1]) if inside[1] in ROOMS else -1  # -1: the core
        later = [".".join(name) for name in names if name[0] == "dejavu_utils" and name[1] in ROOMS[own + 1 :]]
        assert not later
    long = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 80
    ]
    assert not long, "functions of more than 80 lines"
