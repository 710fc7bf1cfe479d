"""Settings as dataclasses, one per section, read by one parser: the lines of a YAML file are flags
like typed ones.

A section is a dataclass whose fields are made with `setting`; the settings of a script are a
dataclass of sections. As a flat dict, {"section.name": value}, they are what flags, params.json and
checkpoints carry.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

from dejavu_utils.cli import Parser, existing_file, zero_or_one
from dejavu_utils.errors import InputError

T = TypeVar("T")
Flat = dict[str, object]  # {"section.name": value}
S = TypeVar("S", bound="Sections")
_NULL = "tag:yaml.org,2002:null"


def setting(
    default: T,
    text: str,
    kind: Callable[[str], object] | None = None,
    choices: Sequence[str] | None = None,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
) -> T:
    """A field of a section. text: its help. kind: argparse type; without one the default's, for a
    number within limits.

    least, most: the smallest and the largest number that works; above: what it must exceed.
    """
    if kind is None:
        is_text = isinstance(default, str)
        kind = str if is_text else _number(type(default), least, above, most)
    metadata = {"text": text, "kind": kind, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def switch(text: str, default: int = 0) -> int:
    """A `setting` that is 0 or 1."""
    return setting(default, text, zero_or_one)


def fraction(default: float, text: str) -> float:
    """A `setting` from 0 to 1."""
    return setting(default, text, least=0, most=1)


def _number(kind: type, least: float, above: float, most: float) -> Callable[[str], float]:
    """argparse type: a finite number of a kind, int or float, within limits."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a {'whole' if kind is int else 'finite'} number"
            )
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} must be at least {least}")
        if value <= above:
            raise argparse.ArgumentTypeError(f"{text} must be above {above}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} must be at most {most}")
        return value

    return parse


class Sections:
    """Base of a dataclass of sections: its flat form, and back."""

    @classmethod
    def fields(cls) -> dict[str, dataclasses.Field]:
        """{"section.name": field of the section} in the order of their declaration."""
        found = {}
        for section in dataclasses.fields(cls):  # type: ignore[arg-type]
            for field in dataclasses.fields(section.type):  # type: ignore[arg-type]
                found[f"{section.name}.{field.name}"] = field
        return found

    def to_flat(self) -> Flat:
        flat = {}
        for key in self.fields():
            section, name = key.split(".")
            flat[key] = getattr(getattr(self, section), name)
        return flat

    @classmethod
    def from_flat(cls: type[S], values: Flat) -> S:
        """Missing settings have their defaults, unknown ones are left out: older checkpoints have
        fewer, or others."""
        settings = cls()
        for key in cls.fields().keys() & values.keys():
            section, name = key.split(".")
            setattr(getattr(settings, section), name, values[key])
        return settings


class SettingsParser(Parser):
    """A Parser with a flag --section.name for every setting of a class of Sections, and
    --config-file for a YAML file.

    without_effect: patterns of names ("lr.*") that older files and commands carry; they are
    accepted and reported.
    """

    def __init__(
        self, sections: type[Sections], without_effect: Sequence[str] = (), **kwargs: str
    ) -> None:
        super().__init__(argument_default=argparse.SUPPRESS, conflict_handler="resolve", **kwargs)
        self.sections = sections
        self.without_effect = without_effect
        self.config_file: Path | None = None  # the file that `read` has read
        self.add_argument(
            "--config-file", dest="config_file", help="YAML file of sections and settings"
        )
        self.add_argument(
            "ignored",
            nargs="?",
            help="an optional last word (published commands end in 0); ignored",
        )
        groups = {}
        for key, field in sections.fields().items():
            section, _, name = key.partition(".")
            if section not in groups:
                groups[section] = self.add_argument_group(section)
            text = field.metadata["text"].replace("%", "%%")  # argparse formats help texts
            choices = field.metadata["choices"]
            groups[section].add_argument(
                f"--{key}",
                dest=key,
                type=field.metadata["kind"],
                choices=choices,
                metavar=None if choices else name.upper(),
                help=text if field.default == "" else f"{text} (default: {field.default})",
            )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")

    def read(self, argv: Sequence[str] | None = None) -> tuple[Flat, list[str]]:
        """({"section.name": value}, notices) from the command line; flag beats YAML beats default.

        InputError for an unknown name, in the file or on the command line, and for a value that its
        flag does not take.
        """
        values = {key: field.default for key, field in self.sections.fields().items()}
        given, notices = self._parsed(sys.argv[1:] if argv is None else argv)
        given.pop("ignored", None)
        if "config_file" in given:
            self.config_file = path = existing_file(str(given.pop("config_file")), "--config-file")
            try:
                of_file, of_file_notices = self._parsed(list(_flags_of_yaml(path)))
            except InputError as error:
                raise InputError(f"--config-file {path}: {error}") from None
            values.update(of_file)
            notices = [f"--config-file {path}: {notice}" for notice in of_file_notices] + notices
        values.update(given)
        return values, notices

    def _parsed(self, words: Sequence[str]) -> tuple[Flat, list[str]]:
        """({name: value}, notices) of the words alone, without defaults."""
        notices = {}
        for word in words:
            flag = word.partition("=")[0]
            name = flag.removeprefix("--")
            if flag != name and any(fnmatch(name, pattern) for pattern in self.without_effect):
                notices[name] = f"{flag} has no effect here and is ignored"
                self.add_argument(flag, dest=name, nargs="?", help=argparse.SUPPRESS)
        given, unknown = self.parse_known_args(words)
        if unknown:
            what = "unknown flag" if unknown[0].startswith("-") else "unexpected argument"
            self.error(f"{what} {unknown[0].split('=')[0]}")
        values = {key: value for key, value in vars(given).items() if key not in notices}
        return values, list(notices.values())


def _flags_of_yaml(path: Path) -> Iterator[str]:
    """--section.name=value for each line of a YAML file of two levels.

    Values stay as they are written: YAML 1.1 itself makes 43200 of 12:00:00, 8 of 010, true of yes,
    and text of 1e-6.
    """
    try:
        document = yaml.compose(path.read_text(encoding="utf-8-sig"), yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"not valid YAML: {error}") from None
    for section, entries in _pairs(document) if document else ():
        for name, value in _pairs(entries):
            if not isinstance(value, yaml.ScalarNode):
                raise InputError(f"{section}.{name}: takes one value, not a list or a section")
            if value.tag == _NULL:
                raise InputError(
                    f'{section}.{name}: has no value; write one, "" for an empty text, or leave it out'
                )
            yield f"--{section}.{name}={value.value}"


def _pairs(node: yaml.Node) -> Iterator[tuple[str, yaml.Node]]:
    """(key, node of the value) of a mapping."""
    seen = set()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else [(None, None)]:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError("expected sections with `name: value` lines below them")
        if key.value in seen:  # one of the two values would be lost
            raise InputError(f"{key.value} is given twice (line {key.start_mark.line + 1})")
        seen.add(key.value)
        yield key.value, value
