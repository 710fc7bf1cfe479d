"""Settings as dataclasses, one per section: declared once, read from a YAML file and from dotted flags over it.

A section is a dataclass whose fields are made with `setting`; the settings of a script are a dataclass of sections. As
a flat dict, {"section.name": value}, they are what flags, params.json and checkpoints carry.
"""

import argparse
import dataclasses
import math
import sys
from dataclasses import dataclass

import yaml

from dejavu_utils.cli import existing_file
from dejavu_utils.errors import InputError


@dataclass(frozen=True)
class Option:
    """What is known of a setting beside its default. kind: from text to value, as argparse's type. least, most: the
    smallest and the largest value that works; above: what it must exceed."""

    text: str
    kind: object
    choices: tuple | None = None
    least: float | None = None
    above: float | None = None
    most: float | None = None


def setting(default, text, kind=None, **limits):
    """A field of a section. text: its help. kind: from text to value; without one the default's type, and for numbers
    with a point a finite one. limits: choices, least, above, most of Option."""
    kind = kind or {int: int, float: number, str: str}[type(default)]
    return dataclasses.field(default=default, metadata={"declared": Option(text, kind, **limits)})


def number(text):
    """argparse type: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


class Sections:
    """Base of a dataclass of sections: its flat form, and back."""

    @classmethod
    def declared(cls):
        """{"section.name": (default, Option)} in the order of their declaration."""
        return {
            f"{section.name}.{f.name}": (f.default, f.metadata["declared"])
            for section in dataclasses.fields(cls)
            for f in dataclasses.fields(section.type)
        }

    def to_flat(self):
        """{"section.name": value} of all settings."""
        return {
            f"{section.name}.{name}": value
            for section in dataclasses.fields(self)
            for name, value in vars(getattr(self, section.name)).items()
        }

    @classmethod
    def from_flat(cls, values):
        """The settings of {"section.name": value}; those that are missing have their defaults, unknown ones are left
        out: a checkpoint of before knows fewer, or others."""
        return cls(
            **{
                section.name: section.type(
                    **{
                        f.name: values[key]
                        for f in dataclasses.fields(section.type)
                        if (key := f"{section.name}.{f.name}") in values
                    }
                )
                for section in dataclasses.fields(cls)
            }
        )

    def check_limits(self):
        """InputError for the first number beyond the limits of its setting."""
        declared = self.declared()
        for key, value in self.to_flat().items():
            known = declared[key][1]
            if known.least is not None and value < known.least:
                raise InputError(f"--{key} {value}: must be at least {known.least}")
            if known.above is not None and value <= known.above:
                raise InputError(f"--{key} {value}: must be above {known.above}")
            if known.most is not None and value > known.most:
                raise InputError(f"--{key} {value}: must be at most {known.most}")


def parse_settings(parser, sections, accepted_without_effect=(), argv=None):
    """Reads `--config-file YAML` and the dotted flags `--section.name VALUE`; flag beats YAML beats default.

    sections: a class of Sections. accepted_without_effect: names "section.name" or "section.*" that older files and
    commands carry; they are accepted and reported. Returns ({"section.name": value}, notices: list of str). An unknown
    key, in the file or on the command line, is an error that names it; so is a value that the flag would not take.
    """
    declared, groups = sections.declared(), {}
    for key, (default, known) in declared.items():
        section, _, name = key.partition(".")
        if section not in groups:
            groups[section] = parser.add_argument_group(section)
        text = known.text.replace("%", "%%")  # argparse formats help texts
        groups[section].add_argument(
            f"--{key}",
            dest=key,
            type=known.kind,
            choices=known.choices,
            default=argparse.SUPPRESS,
            metavar=None if known.choices else name.upper(),
            help=f"{text} (default: {default})" if default not in (None, "") else text,
        )
    argv, notices = _without_ignored(sys.argv[1:] if argv is None else argv, accepted_without_effect)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        what = "unknown flag" if unknown[0].startswith("-") else "unexpected argument"
        parser.error(f"{what} {unknown[0].split('=')[0]}")
    values = {key: default for key, (default, _) in declared.items()}
    if given.config_file:
        values.update(_read_yaml(given.config_file, declared, accepted_without_effect, notices))
    values.update({key: value for key, value in vars(given).items() if key in declared})
    return values, notices


def _without_ignored(argv, accepted):
    """(argv without the flags that are accepted but do nothing and their values, a notice for each)."""
    kept, notices, words = [], [], list(argv)
    while words:
        word = words.pop(0)
        flag, _, value = word.partition("=")
        if not (word.startswith("--") and _matches(flag[2:], accepted)):
            kept.append(word)
            continue
        if not value and words and not words[0].startswith("--"):
            words.pop(0)
        notices.append(f"{flag} has no effect here and is ignored")
    return kept, notices


def _matches(key, accepted):
    return key in accepted or f"{key.split('.')[0]}.*" in accepted


class _TextLoader(yaml.SafeLoader):
    """YAML whose values stay as they are written, so that a setting reads from a file what it reads from a flag.

    YAML 1.1 itself makes 43200 of 12:00:00, 8 of 010, true of yes, and text of 1e-6. An empty value is still null. A
    key that stands twice is an error: the first of the two values would be lost.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:null"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(problem=f"{name} stands twice", problem_mark=key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_KINDS = {int: "a whole number", number: "a number"}


def _read_yaml(path, declared, accepted, notices):
    try:
        text = existing_file(path, "--config-file").read_text(encoding="utf-8-sig")
        loaded = yaml.load(text, _TextLoader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise InputError(f"--config-file {path}: not valid YAML: {error}") from None
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, dict) or not all(isinstance(v, dict) for v in loaded.values()):
        raise InputError(f"--config-file {path}: expected sections with `name: value` lines below them")
    values = {}
    for section, settings in loaded.items():
        for name, value in settings.items():
            key = f"{section}.{name}"
            if key in declared:
                values[key] = _convert(value, declared[key][1], f"--config-file {path}: {key}")
            elif _matches(key, accepted):
                notices.append(f"{key} in {path} has no effect here and is ignored")
            else:
                raise InputError(f"--config-file {path}: unknown key {key}")
    return values


def _convert(value, known, where):
    """What the setting's flag makes of this text; InputError where the flag would refuse it."""
    if value is None:
        raise InputError(f'{where}: has no value; write one, "" for an empty text, or leave the line out')
    if not isinstance(value, str):
        raise InputError(f"{where}: takes one value, not {value!r}")
    if known.choices and value not in known.choices:
        raise InputError(f"{where}: {value!r} is not one of {', '.join(known.choices)}")
    try:
        return known.kind(value)
    except argparse.ArgumentTypeError as error:
        raise InputError(f"{where}: {error}") from None
    except ValueError:
        raise InputError(f"{where}: {value!r} is not {_KINDS.get(known.kind, 'a valid value')}") from None
