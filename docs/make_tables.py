"""Writes the tables of the documentation that are declared in the code: results.json, the record, the report.

Fills the blocks between <!-- table: NAME --> and <!-- end --> in docs/*.md; tests/test_docs.py checks that they agree.

    python docs/make_tables.py
"""

import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout's package

from dejavu_utils.analysis import report
from dejavu_utils.analysis.intervals import Estimate
from dejavu_utils.analysis.results_json import AttackResults, ProbeResults
from dejavu_utils.cli import Parser, run
from dejavu_utils.data.provenance import READERS
from dejavu_utils.label_free.output import SslmemResults

DOCS = Path(__file__).resolve().parent
# Who compares two records, for each entry of READERS.
COMPARED = {
    "training": "a training that resumes",
    "rcdm": "a training of RCDM that resumes",
    "probe": "a linear probe that resumes",
    "shards": "attack and label-free scores that resume from finished shards",
    "crops": "an attack that reads cached crops",
    "reconstruction": "notebook and `judge_rcdm.py`: an RCDM's encoder and images against the attack's",
    "attack_dir": "label-free scores with `--attack_dir`",
    "epochs": "figures against epochs",
    "datasets": "figures against the size of the training set",
    "params": "figures against a setting of training",
    "model.arch": "figures against the architecture",
    "corner_crop_frac": "figures against the size of the corner",
    "layers": "figures of several layers",
    "runs": "`summary_table.py --runs`",
    "table": "`summary_table.py`",
    "one_model": "one of an attack's models against the test of it alone",
}


def entries(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(path of the entry, its type, its meaning) of every field of a dataclass, those of inner ones below it."""
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        declared, optional = without_none(hints[field.name])
        path, inner = f"{prefix}{field.name}", declared
        words = name_of(declared)
        if typing.get_origin(declared) is dict:
            inner = typing.get_args(declared)[1]
            path, words = f"{path}.*", name_of(inner)
        if field.metadata.get("absent"):
            words += ", or absent"
        elif optional:
            words += " or null"
        yield path, words, field.metadata["help"]
        if is_dataclass(inner) and inner is not Estimate:
            yield from entries(inner, f"{path}.")


def without_none(kind: typing.Any) -> tuple[typing.Any, bool]:
    """(the type that is not None, whether None is allowed)"""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind, False
    (inner,) = set(typing.get_args(kind)) - {types.NoneType}
    return inner, True


def name_of(kind: typing.Any) -> str:
    if kind is Estimate:
        return "estimate"
    if is_dataclass(kind):
        return "object"
    if typing.get_origin(kind) is list:
        return f"list of {name_of(typing.get_args(kind)[0])}"
    return {"str": "text", "float": "number", "int": "whole number", "bool": "true or false"}.get(kind.__name__, "any")


def results_table(kind: type) -> str:
    """Each entry of a results file once: those of set A and B are like those of both."""
    lines = ["| entry | type | meaning |", "| --- | --- | --- |"]
    repeated = ("A.", "B.", "near_copies.without.", "both.top_5.")
    for path, words, meaning in entries(kind):
        if not path.startswith(repeated):
            lines.append(f"| `{path}` | {words} | {meaning} |")
    return "\n".join(lines)


def readers_table() -> str:
    lines = ["| who compares | what may differ |", "| --- | --- |"]
    for reader, ignored in READERS.items():
        names = ", ".join(f"`{name}`" for name in ignored) or "nothing"
        lines.append(f"| {COMPARED[reader]} | {names} |")
    return "\n".join(lines)


TABLES = {
    "attack": lambda: results_table(AttackResults),
    "probe": lambda: results_table(ProbeResults),
    "label_free": lambda: results_table(SslmemResults),
    "readers": readers_table,
    "report": report.branch_table,
}


def fill_blocks(text: str) -> str:
    """The text with each block <!-- table: NAME --> ... <!-- end --> made anew."""

    def block(match: re.Match) -> str:
        return f"<!-- table: {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", block, text, flags=re.DOTALL)


def parse_args(argv: list[str] | None = None) -> typing.Any:
    return Parser(description=__doc__).parse_args(argv)


def main() -> None:
    parse_args()
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        filled = fill_blocks(text)
        if filled != text:
            page.write_text(filled, encoding="utf-8")
            print(f"{page.name}: tables updated")


if __name__ == "__main__":
    run(main)
