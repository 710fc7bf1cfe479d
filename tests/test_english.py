"""Plain English: turns of phrase that readers stumbled on occur nowhere in documents, scripts, code or help texts.

Each line of the table is a regular expression, and what to write instead. A line that quotes one on purpose ends in
`# english: quoted`.
"""

import io
import re
import tokenize

from helpers import ROOT, each_file

INSTEAD = {
    # single sentences
    r"who hid the": "no note if the user hid it",
    r"who is (not )?there|who has seen|who owns this": "name what it is",
    r"answer that cannot": "it never hangs",
    r"equals all at once": "ties share their places",
    r"come in or fall out|comes? in or falls? out": "enter or leave the selection",
    r"so much is memorized": "déjà vu score",
    r"hardly (tell|know)": "barely separate",
    r"no difference that these": "no significant memorization detected",
    r"are (now )?taken for\b|is taken for granted": "is assumed",
    r"leaves? out the last": "say what is dropped",
    r"what a method is to": "the interface of",
    r"is asked for, not guessed": "specify it with the flag",
    r"must not be read|must be true of": "say what holds",
    # habits of words
    r"\btrunks?\b": "backbone",
    r"\brooms\b|\broom of the code": "packages, buffers",
    r"\bwings?\b": "package",
    r"\bguess(es|ed)?\b": "prediction, predict",
    r"in the midst of": "during, within",
    r"\bthe very\b": "the",
    r"as they stand\b|as it stands\b": "unchanged, literally",
    r"\bgoes on (where|with|from)\b": "resumes, continues",
    r"\bcomes? along\b": "is included",
    r"(checkpoints|files|those|results|attacks|betons|ones|version) of before\b": "older",
    r"\bof (then|that moment|that time)\b": "original",
    r"\bof which (the|one|some|each|there)\b": "two sentences",
    r"\bless (that|the|half|smallest|largest|what|control)\b": "minus",
    r"\b(is|are|negative|is no|is not|says nothing about|room to see) memory\b(?! of| on| per| needed)": "memorization",
    r"must (sit|come) ": "is expected",
    r"(score|it|which|interval|difference|delta)( then)? must (be|cover) 0\b": "is expected to be 0",
    r"never falls?\b": "sorted",
    r"\bprocess number\b": "rank",
    r"begin(s)? elsewhere": "the threshold moves",
    r"\bedge of the (selection|confidence|chosen)": "threshold",
    r"\bhow (much|many) two trainings differ": "variation between training runs",
    r"\bin silence\b": "silently",
    r"at most that is taken": "upper limit",
    r"of all that may be\b": "of the candidates",
    r"\bso that no order\b|whatever decides": "independent of the order",
    r"\btells? (no |the )?class(es)?\b|\bnames? (no |the )?class(es)? of\b": "separates, predicts",
    r"gives? (itself|the object|it|more|less) away|gives away": "reveals, leaks",
    r"\bmakes of (a|whole|an)\b": "say what is computed",
    r"what (it|they|a machine|the weights) (lacks?|do(es)? not tell)": "say what is missing",
}
PATTERNS = [re.compile(pattern, re.IGNORECASE) for pattern in INSTEAD]
ANY = re.compile("|".join(f"(?:{pattern})" for pattern in INSTEAD), re.IGNORECASE)
QUOTED = "english: quoted"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [
    *sorted(ROOT.glob("*.sh")),
    *sorted((ROOT / "bash_examples").glob("*.sh")),
    *sorted(ROOT.glob("configs/*")),
]
TEMPLATES = sorted(ROOT.glob("dejavu_utils/**/*.html"))
CODE = [*sorted(ROOT.glob("*.py")), *sorted(ROOT.glob("[bdt]*/**/*.py"))]
CODE.remove(ROOT / "tests/test_english.py")


def hits(text):
    """(line number, words found, what to write instead); a phrase may be wrapped over two lines."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        following = lines[number].lstrip(" #*>") if number < len(lines) else ""
        joined = f"{line.rstrip()} {following}"
        if not ANY.search(joined):
            continue
        for pattern, instead in zip(PATTERNS, INSTEAD.values()):
            match = pattern.search(joined)
            if match and match.start() < len(line) and QUOTED not in line:
                yield number, match[0], instead


def words_of(source):
    """A Python file's comments and string literals, on their own lines; all else is blank."""
    lines = [""] * (source.count("\n") + 2)
    middle = getattr(tokenize, "FSTRING_MIDDLE", None)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, middle):
            for offset, part in enumerate(token.string.split("\n")):
                lines[token.start[0] - 1 + offset] += f" {part.strip()}"
    return "\n".join(lines)


def problems(path, text):
    name = path.relative_to(ROOT)
    return [f"{name}:{number}: {words!r}: {instead}" for number, words, instead in hits(text)]


@each_file(DOCUMENTS)
def test_documents_and_shell_scripts(path):
    assert not problems(path, path.read_text(encoding="utf-8"))


@each_file([*CODE, *TEMPLATES])
def test_comments_docstrings_messages_and_templates(path):
    text = path.read_text(encoding="utf-8")
    found = problems(path, words_of(text) if path.suffix == ".py" else text)
    assert not found, found


def test_a_phrase_is_found_over_two_lines_and_in_comments():
    assert list(hits("two models, of which\nthe first")) == [(1, "of which the", "two sentences")]  # english: quoted
    assert not list(hits("of which\n\nthe first"))
    code = 'trunk = 1  # the trunk\nname = f"a {mean} guess"\n'  # english: quoted
    assert [words for _, words, _ in hits(words_of(code))] == ["trunk", "guess"]  # english: quoted
