"""README and docs/: commands parse, flags exist, links lead somewhere, each page is found from the README."""

import importlib
import re

import pytest
from helpers import ROOT, documentation, documented_commands, run_here

STAGES = ["imagenet_partition.py", "train_SSL.py", "label_inference_attack.py", "lin_probe.py"]
STAGES += ["plot_quant_results.py", "train_RCDM.py"]
FOLDERS = ["IMAGENET_DATASET_DIR", "IMAGENET_BBOX_ANNOTATIONS", "INDEX_FOLDER", "BETONS_FOLDER", "LOGGING_FOLDER"]
COMMANDS = list(documented_commands())


def test_the_readme_is_one_page_with_each_stage():
    page = ROOT / "README.md"
    assert len(documentation()[page].splitlines()) <= 200
    assert list(dict.fromkeys(script for where, script, _ in COMMANDS if where == page)) == STAGES


@pytest.mark.parametrize(
    "script, words", [command[1:] for command in COMMANDS], ids=[f"{p.stem}:{s}" for p, s, _ in COMMANDS]
)
def test_documented_commands_parse(monkeypatch, capsys, script, words):
    monkeypatch.chdir(ROOT)  # --config-file configs/...
    for variable in FOLDERS:
        monkeypatch.setenv(variable, "/a folder")
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    parse = getattr(module, "parse_args", None) or module.read_settings
    if "..." in words:  # a part of a command
        known = re.findall(r"--[\w.-]+", run_here(script, "--help").stdout)
        assert {word for word in words if word.startswith("--")} <= set(known)
        return
    try:
        parse(words)
    except SystemExit as stop:
        captured = capsys.readouterr()
        assert stop.code == 0 and "--help" in words, captured.err


def test_flags_named_in_text_exist():
    scripts = [path.name for path in ROOT.glob("*.py")]
    known = {flag for script in scripts for flag in re.findall(r"--[\w.-]+", run_here(script, "--help").stdout)}
    for page, text in documentation().items():
        text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        for span in re.findall(r"`(--[^`]+)`", text):
            unknown = set(re.findall(r"--[\w.-]+", span)) - known
            assert not unknown, f"{page.name}: {', '.join(unknown)} of `{span}`"


def anchors(text):
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", documentation(), ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    pages = documentation()
    for target in re.findall(r"\]\(([^)]+)\)", pages[page]):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(pages[linked]), target
    for path in re.findall(r"(?:\bbash |\./)((?:[\w-]+/)*[\w-]+\.sh)|\b((?:configs|tests)/[\w/]+\.\w+)", pages[page]):
        assert (ROOT / "".join(path)).is_file(), path


def test_each_page_is_linked_from_the_readme():
    text = documentation()[ROOT / "README.md"]
    for page in documentation():
        assert page.name == "README.md" or f"({page.relative_to(ROOT)})" in text, page.name


def test_hooks_have_the_versions_of_the_requirements():
    pinned = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    dependencies = re.findall(r"additional_dependencies: \[(.*)\]", hooks)
    assert dependencies and set(dependencies) <= set(pinned)


def test_files_contain_what_the_documentation_says():
    """`name` (`path.py`), and `name` in `path.py`: the file is there and has the name."""
    pages = documentation()
    for page in (ROOT / "docs" / "how_it_works.md", ROOT / "CONTRIBUTING.md"):
        text = " ".join(pages[page].split())
        for path in re.findall(r"`(dejavu_utils/[\w/]*(?:\.py)?)`", text):
            assert (ROOT / path).exists() or "toy" in path, f"{page.name}: {path}"
        for name, path in re.findall(r"`(\w+)`[^`]{0,30}?`((?:dejavu_utils/)?[\w/]+\.py)`", text):
            words = re.findall(r"\w+", (ROOT / path).read_text(encoding="utf-8")) if "toy" not in path else [name]
            assert name in words, f"{page.name}: {name} in {path}"
