"""Several runs together: the summary against values worked out by other means, and bash_examples/summary_table.py."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import assert_one_line_error, ok, run_here

from dejavu_utils.analysis.attack_files import read_attack
from dejavu_utils.analysis.intervals import Estimate, combine_runs, within
from dejavu_utils.analysis.tables import attack_statistics
from dejavu_utils.typed_json import to_json

POINT = Path(__file__).parents[2] / "data/attack/NN_attk_vicreg_300pc_50ep"
Z95 = 1.959963984540054


def runs_of(values, deviations):
    return [Estimate(v, v - Z95 * d, v + Z95 * d) for v, d in zip(values, deviations)]


def test_runs_that_agree_have_no_tau_and_the_t_interval():
    """With equal intervals it is the t interval of the values."""
    found = combine_runs(runs_of([0.2, 0.21, 0.22], [0.03] * 3))
    half = 4.30265273 * 0.01 / np.sqrt(3)
    expected = {"runs": 3, "mean": 0.21, "low": 0.21 - half, "high": 0.21 + half, "sd": 0.01, "tau": 0}
    assert vars(found) == pytest.approx(expected, abs=1e-9)


def test_runs_that_differ_have_the_tau_of_paule_and_mandel():
    values, deviations = np.array([0.1, 0.3, 0.25, 0.5]), np.array([0.02, 0.05, 0.01, 0.08])
    found = combine_runs(runs_of(values, deviations))
    weights = 1 / (deviations**2 + found.tau**2)
    mean = (weights * values).sum() / weights.sum()
    assert (weights * (values - mean) ** 2).sum() == pytest.approx(3, abs=1e-6)  # which defines tau
    assert found.mean == pytest.approx(mean, abs=1e-12)
    # Of Hartung and Knapp the standard error then is that of the weights.
    assert found.high - found.mean == pytest.approx(3.182446305 / np.sqrt(weights.sum()), rel=1e-6)
    equal = combine_runs(runs_of(values, [0.01] * 4))
    assert equal.tau == pytest.approx(np.sqrt(values.var(ddof=1) - 0.01**2), abs=1e-9)


def test_the_mean_of_runs_that_differ_stays_a_proportion():
    two_epochs = combine_runs(runs_of([0.59, 0.68], [0.02, 0.02]))
    assert two_epochs.high > 1  # of two runs the t distribution is wide
    mean = within(two_epochs, 0.0)
    assert 0 < mean.low < mean.value == two_epochs.mean < mean.high < 1
    many = combine_runs(runs_of([0.2, 0.21, 0.22, 0.21, 0.2, 0.22], [0.02] * 6))
    assert (within(many, -1.0).low, within(many, -1.0).high) == pytest.approx((many.low, many.high), abs=1e-3)
    assert within(combine_runs(runs_of([1.0, 1.0], [0.01, 0.01])), 0.0).high == 1


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("runs", [2, 3, 8])
def test_the_interval_covers_the_mean_of_all_runs(runs, tau):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(4000):
        deviations = rng.uniform(0.02, 0.03, runs)
        found = combine_runs(runs_of(rng.normal(0.2, np.hypot(tau, deviations)), deviations))
        covered += found.low <= 0.2 <= found.high
    print(f"{runs} runs, tau {tau}: {covered / 4000:.4f}")
    assert 0.93 <= covered / 4000 <= 0.97


def summary(tmp_path, *arguments):
    return run_here("bash_examples/summary_table.py", *arguments, "--save_path", tmp_path / "table.csv")


def test_table_of_attacks_and_of_their_runs(tmp_path):
    """One run from its neighbor files, two from results.json; one of them has a ceiling."""
    statistics = to_json(attack_statistics(read_attack(POINT)))
    folders = [POINT]
    for number, shift in enumerate((0.02, -0.01)):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        changed = json.loads(json.dumps(statistics))
        for part in ("value", "low", "high"):
            changed["both"]["top_1"]["accuracy"]["100"]["score"][part] += shift
        if number == 1:
            estimate = {"value": 0.9, "low": 0.85, "high": 0.93}
            changed["ceiling"] = {model: {"top_1": estimate, "top_5": estimate} for model in "AB"}
        else:
            del changed["both"]["top_1"]["accuracy"]["100"]["chance"]  # written before chance was
        (folder / "results.json").write_text(json.dumps(changed))
        folders.append(folder)
    result = ok(summary(tmp_path, *(f"run{number}={folder}" for number, folder in enumerate(folders))))
    table = pd.read_csv(tmp_path / "table.csv").set_index(["attack", "pct_confidence"])
    figures = statistics["both"]["top_1"]["accuracy"]["20"]
    assert table["chance"]["run0", 20] == pytest.approx(figures["chance"]) and np.isnan(table["chance"]["run1", 100])
    assert table["ceiling"]["run2", 100] == 0.9 and np.isnan(table["ceiling"]["run0", 100])
    assert table["score_low"]["run0", 20] == pytest.approx(figures["score"]["low"])
    assert "ceiling" in result.stdout and "0.900" in result.stdout

    says, gallery, following = result.stdout.splitlines()[-3:]
    assert says.startswith("What the table says: Significant memorization in ") and "Holm" in says
    assert "pointwise" in says and gallery.endswith("attack_gallery.html") and following.startswith("Next: ")

    result = ok(summary(tmp_path, "--runs", *folders))
    table = pd.read_csv(tmp_path / "table.csv").set_index(["pct_confidence", "figure"]).loc[100, "score"]
    value = statistics["both"]["top_1"]["accuracy"]["100"]["score"]["value"]
    assert table["runs"] == 3 and table["mean"] == pytest.approx(value + 0.01 / 3, abs=1e-9)
    assert table["sd"] == pytest.approx(np.std([0, 0.02, -0.01], ddof=1), abs=1e-9)
    assert table["low"] < table["mean"] < table["high"] and "mean of 3 runs" in result.stdout


def test_equal_results_are_one_row(tmp_path):
    copy = shutil.copytree(POINT, tmp_path / "copy")
    result = ok(summary(tmp_path, f"a={POINT}", f"b={POINT}/", f"c={copy}"))
    assert pd.read_csv(tmp_path / "table.csv")["attack"].unique().tolist() == ["a"]
    assert result.stdout.count(f"holds the same results as {POINT}, and both count once") == 2


def test_images_of_a_list_and_the_others_have_rows_of_their_own(tmp_path):
    folder, tables, expected = shutil.copytree(POINT, tmp_path / "point"), [], {0: [], 1: []}
    for name, attacked in read_attack(POINT).items():
        paths = [f"{name}/{index}.JPEG" for index in attacked.idxs]
        table = pd.DataFrame({"index": attacked.idxs, "path": paths, "tied": np.arange(len(paths)) % 3 == 0})
        table[["index", "path"]].to_csv(folder / f"attack_{name}.csv", index=False)
        tables.append(table[["path", "tied"]].astype({"tied": int}))
        models = (attacked.attack.target, attacked.attack.reference)
        lead = np.subtract(*(model.correct(attacked.attack.labels, 1).astype(float) for model in models))
        for kind in (0, 1):
            expected[kind].append(lead[table["tied"] == kind].mean())
    listed, path = pd.concat(tables), tmp_path / "tied.csv"
    listed.sample(frac=1, random_state=0).to_csv(path, index=False)
    ok(summary(tmp_path, f"a={folder}", "--split", path))
    table = pd.read_csv(tmp_path / "table.csv").set_index(["attack", "pct_confidence"])["score"]
    assert table["a, tied", 100] == pytest.approx(np.mean(expected[1]), abs=1e-9)
    assert table["a, not tied", 100] == pytest.approx(np.mean(expected[0]), abs=1e-9)
    assert list(table.index.unique("attack")) == ["a", "a, tied", "a, not tied"]
    for rows, text in (
        (tables[0], f"lists {len(tables[0])} of the {len(listed)} attacked images of {folder}"),
        (listed.assign(tied=listed["path"].str.startswith("A/").astype(int)), "no attacked image of set B is tied"),
        (pd.concat([listed, listed[:1]]), f"{listed['path'].iloc[0]} is listed twice"),
        (listed[["path"]], "tied.csv: not a csv"),
        (listed.assign(tied=0.5), "tied has other values"),
    ):
        rows.to_csv(path, index=False)
        refused = summary(tmp_path, f"a={folder}", "--split", path)
        assert_one_line_error(refused, "--split", "tied.csv", text)
    listed.assign(path="c9/" + listed["path"]).to_csv(path, index=False)
    assert_one_line_error(summary(tmp_path, f"a={folder}", "--split", path), "none of the listed images")


def test_bad_input_is_one_line(tmp_path):
    broken = shutil.copytree(POINT, tmp_path / "broken")
    (broken / "results.json").write_text('{"both": 3}')
    for words, text in (
        ([], "LABEL=FOLDER"),
        ([POINT], "name each attack as LABEL=FOLDER"),
        ([f"a={POINT}", f"a={POINT}"], "name each attack as LABEL=FOLDER"),
        (["--runs", POINT], f"--runs {POINT}: name at least two runs"),
        (["--runs", POINT, "/nowhere"], "--runs /nowhere: no such folder"),
        ([f"a={POINT}", "--pct_confidences", "7"], "--pct_confidences 7"),
        ([f"a={POINT}", "--agreement"], "--agreement"),
        ([f"a={broken}"], "broken/results.json: was not written by"),
    ):
        assert_one_line_error(summary(tmp_path, *words), text)


def test_agreement_of_runs_is_written_beside_the_table(tmp_path):
    copy = shutil.copytree(POINT, tmp_path / "seed1" / POINT.name)
    for name in ("A", "B"):  # another run: other neighbors
        path = copy / f"{name}_attk_{name}_neighb_labels.npy"
        path.chmod(0o644)
        np.save(path, np.random.default_rng(0).permutation(np.load(path)))
    result = ok(summary(tmp_path, "--runs", POINT, copy, "--agreement"))
    table = pd.read_csv(tmp_path / "table_agreement.csv")
    same = table["first"] == table["second"]
    assert len(table) == 4 and (table["kappa"][same] == 1).all() and (table["kappa"][~same] < 0.5).all()
    assert (tmp_path / "table_agreement_legend.png").exists() and "Cohen's kappa" in result.stdout
    assert "Of the images memorized in one run, the fraction memorized in another" in result.stdout
