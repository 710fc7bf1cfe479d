"""README and docs/: commands parse, flags exist, links lead somewhere, each page is found from the README."""

import importlib
import re
import struct

import numpy as np
import pandas as pd
import pytest
from helpers import (
    ROOT,
    assert_one_line_error,
    documentation,
    documented_commands,
    draw_alone,
    flags,
    ok,
    read_json,
    run_here,
    run_process,
    save_untrained,
)
from stages import attack_settings, plot_settings

STAGES = ["imagenet_partition.py", "train_SSL.py", "label_inference_attack.py", "lin_probe.py"]
STAGES += ["plot_quant_results.py", "train_RCDM.py"]
FOLDERS = ["IMAGENET_DATASET_DIR", "IMAGENET_BBOX_ANNOTATIONS", "INDEX_FOLDER", "BETONS_FOLDER", "LOGGING_FOLDER"]
COMMANDS = list(documented_commands())
FIGURES = ROOT / "docs/figures.json"
TABLES = ("summary", "epochs", "seeds", "losses", "agreement", "membership")


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
    for page in (ROOT / "docs/how_it_works.md", ROOT / "CONTRIBUTING.md"):
        text = " ".join(pages[page].split())
        for path in re.findall(r"`(dejavu_utils/[\w/]*(?:\.py)?)`", text):
            assert (ROOT / path).exists() or "toy" in path, f"{page.name}: {path}"
        for name, path in re.findall(r"`(\w+)`[^`]{0,30}?`((?:dejavu_utils/)?[\w/]+\.py)`", text):
            words = re.findall(r"\w+", (ROOT / path).read_text(encoding="utf-8")) if "toy" not in path else [name]
            assert name in words, f"{page.name}: {name} in {path}"


def imagenet_without_images(folder):
    """Index files and betons of the study's sizes, which say how many images there are, and none of their contents."""
    boxed = {100: 95_000, 200: 130_000, 300: 140_000, 400: 140_000, 500: 140_000}
    for name in ("images", "boxes", "betons", "logs"):
        (folder / name).mkdir()
    for n, attacked in boxed.items():
        index = folder / f"index/{n}_per_class"
        index.mkdir(parents=True)
        np.save(index / "public.npy", np.zeros(500_000, np.int8))
        for side in "AB":
            np.save(index / f"bbox_{side}.npy", np.zeros(attacked, np.int8))
            np.save(index / f"train_{side}.npy", np.zeros(1000 * n, np.int8))
            header = struct.pack("<HHIQQ", 2, 2, 8 << 20, 1000 * n, 0)
            (folder / f"betons/{n}_per_class_{side}.beton").write_bytes(header)
    np.save(folder / "index/val_set.npy", np.zeros(150_000, np.int8))
    (folder / "betons/val.beton").write_bytes(struct.pack("<HHIQQ", 2, 2, 8 << 20, 150_000, 0))
    names = ("images", "boxes", "index", "betons", "logs")
    return dict(zip(FOLDERS, (str(folder / name) for name in names)))


def test_the_table_of_costs_is_what_a_dry_run_says(tmp_path):
    folders = imagenet_without_images(tmp_path)
    page = documentation()[ROOT / "docs/costs.md"]
    rows = re.findall(r"^\|[^|]*\| `([^`]*/sweep\.sh)` \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) >= 8
    for command, *documented in rows:
        printed = ok(run_process("bash", "-c", command, cwd=ROOT, **folders, DRY_RUN=1))
        said = re.search(r"in all: ([\d.]+) GPU hours \(H100\), ([\d.]+) GB", printed.stdout + printed.stderr)
        assert list(said.groups()) == documented, command


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """The folders of bash_examples/demo.sh with untrained models, one snapshot and few images."""
    folder = tmp_path_factory.mktemp("demo") / "seed0"
    data, index, logs = folder / "data", folder / "index/4_per_class", folder / "simclr_1epochs"
    attacks = [logs / f"attack_sweeps{kind}/NN_attk_simclr_4pc_1ep" for kind in ("", "_backbone")]
    images, boxes = data / "images", data / "boxes"
    commands = [
        ("make_demo_dataset.py", {"save_dir": data, "classes": 2, "images_per_class": 14, "unboxed_per_class": 2}),
        ("imagenet_partition.py", {"imgnet_dir": images, "bbox_dir": boxes, "save_dir": index.parent, "per_class": 4}),
    ]
    beton = {"imgnet-path": images, "idx-path": index / "train_A.npy", "num-workers": 1}
    commands.append(("write_ffcv_dataset.py", {**beton, "write-path": folder / "betons/4_per_class_A.beton"}))
    models = {f"model_{side}_pth": folder / f"{side}.pth" for side in "AB"}
    for seed, path in enumerate(models.values()):
        save_untrained(path, seed)
    attack = {**models, **{f"bbox_{side}_idx_pth": index / f"bbox_{side}.npy" for side in "AB"}, "k": 3, "k_attk": 3}
    attack |= {"imgnet_train_pth": images, "imgnet_bbox_pth": boxes, "min_px": 32}
    for use_backbone, out in enumerate(attacks):
        values = attack_settings(index, out, **attack, use_backbone=use_backbone)
        commands.append(("label_inference_attack.py", values))
    plot = plot_settings(attacks[0].parent, logs / "plot", k_neighb=3, pct_confidences="20,100")
    commands.append(("plot_quant_results.py", plot))
    (folder / "betons").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        draw_alone(patch)
        for script, settings in commands:
            ok(run_here(script, *flags(settings)))
    named = [f"{name}={out}" for name, out in zip(("projector", "backbone"), attacks)]
    table = ok(run_here("bash_examples/summary_table.py", "--save_path", logs / "summary.csv", *named))
    return folder, table.stdout


def test_pictures_and_numbers_are_made_from_a_demo(small_demo, tmp_path):
    folder, printed = small_demo
    docs = tmp_path / "docs"
    docs.mkdir()
    page = "<!-- demo: summary -->\nold\n<!-- end -->\nand\n<!-- demo: epochs -->\n<!-- end -->\n"
    (docs / "page.md").write_text(page)
    ok(run_here("docs/make_pictures.py", "--docs", docs, folder))
    pictures = {"crops.png", "augmented_pairs.png", "memorized.png", "demo_accuracy.png"}
    assert pictures <= {path.name for path in docs.glob("*.png")}
    filled = (docs / "page.md").read_text()
    table = [line for line in printed.splitlines() if re.match(" +examples|projector|backbone", line)]
    assert len(table) == 5 and "\n".join(table) in filled and "old" not in filled  # as the demo's last stage prints it
    summary = pd.read_csv(folder / "simclr_1epochs/summary.csv")
    assert f"| 1 | {summary['target'][0]:.3f} [" in filled


@pytest.mark.skipif(not FIGURES.exists(), reason="python docs/make_pictures.py demo/seed0 writes docs/figures.json")
def test_numbers_of_the_demo_are_those_of_figures_json():
    numbers = read_json(FIGURES)
    make_pictures = importlib.import_module("docs.make_pictures")
    pages = documentation()
    for page, text in pages.items():
        assert text == make_pictures.fill_blocks(text, numbers), f"{page.name}: run docs/make_pictures.py again"
    known = make_pictures.fill_blocks("".join(f"<!-- demo: {name} -->\n<!-- end -->" for name in TABLES), numbers)
    for page in (ROOT / "README.md", ROOT / "docs/demo.md"):
        for estimate in re.findall(r"-?\d\.\d+ \[[^]]*\]", pages[page]):
            assert estimate in known, f"{page.name}: {estimate} is not in docs/figures.json"


def test_make_pictures_names_a_folder_that_is_no_demo(tmp_path):
    assert_one_line_error(
        run_here("docs/make_pictures.py", "--docs", tmp_path / "docs", tmp_path), "one finished demo is needed"
    )


def test_tables_that_are_declared_in_the_code_are_up_to_date():
    make_tables = importlib.import_module("docs.make_tables")
    assert not [page.name for page, text in documentation().items() if make_tables.fill_blocks(text) != text], (
        "run python docs/make_tables.py"
    )


def section(page, heading):
    """The text of a page from a line that begins so to the next heading or csv."""
    text = documentation()[ROOT / "docs" / page]
    return re.search(rf"^{re.escape(heading)}.*?(?=^#|^`\w+.*csv|\Z)", text, re.DOTALL | re.MULTILINE)[0]


@pytest.mark.parametrize("name", ["attack_{A,B}.csv", "attack_classes.csv", "attack_confidence.csv"])
def test_columns_of_an_attack_are_those_of_the_schema(finished_stage, name):
    columns = set(pd.read_csv(finished_stage("attack") / name.replace("{A,B}", "A")).columns)
    rows = re.findall(r"^\| (`.*?) \|", section("schema.md", f"`{name}`"), re.MULTILINE)
    documented = {column for row in rows for column in re.findall(r"`([^`]+)`", row)}
    assert documented - columns <= {"near_copy_elsewhere", "{LAYER}_sslmem", "column"}  # those that need more input
    assert columns <= documented


@pytest.mark.parametrize("stage, kind", [("attack", "an attack"), ("probe", "a linear probe")])
def test_keys_of_results_are_those_of_the_schema(finished_stage, stage, kind):
    text = section("schema.md", f"## results.json of {kind}")
    patterns = []
    for path, kind_of_entry in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", text, re.MULTILINE):
        below = r"(\..*)?" if kind_of_entry.startswith("any") else ""
        patterns.append(re.escape(path).replace(r"\.\*", r"(\.[^.]+(\.csv|\.npy)?)?") + below)
    results = read_json(finished_stage(stage) / "results.json")
    waiting = list(results.items())
    while waiting:
        path, value = waiting.pop()
        as_documented = re.sub(r"^[AB]\.|^near_copies\.without\.", "both.", path).replace(".top_5.", ".top_1.")
        assert any(re.fullmatch(pattern, as_documented) for pattern in patterns), path
        if isinstance(value, dict) and set(value) != {"value", "low", "high"}:
            # names of files and layers hold dots, too
            waiting += [(f"{path}.{name.replace('.', '_')}", inner) for name, inner in value.items()]
