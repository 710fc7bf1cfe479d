"""Settings of a training: a YAML file with dotted flags over it."""

import argparse
import sys

import yaml

from dejavu_utils.cli import existing_file
from dejavu_utils.errors import InputError


def parse_settings(parser, sections, accepted_without_effect=(), argv=None):
    """Reads `--config-file YAML` and the dotted flags `--section.name VALUE`; flag beats YAML beats default.

    sections: {section: {name: (default, type or tuple of choices, help)}}. accepted_without_effect: names
    "section.name" or "section.*" that older files and commands carry; they are accepted and reported.
    Returns ({"section.name": value}, notices: list of str). An unknown key, in the file or on the command line, is an
    error that names it.
    """
    group_of = {}
    for section, settings in sections.items():
        group = parser.add_argument_group(section)
        for name, (default, kind, text) in settings.items():
            key = f"{section}.{name}"
            text = text.replace("%", "%%")  # argparse formats help texts
            group_of[key] = (default, kind)
            choices = kind if isinstance(kind, tuple) else None
            group.add_argument(
                f"--{key}",
                dest=key,
                type=str if choices else kind,
                choices=choices,
                default=argparse.SUPPRESS,
                metavar=None if choices else name.upper(),
                help=f"{text} (default: {default})" if default not in (None, "") else text,
            )
    argv, notices = _without_ignored(sys.argv[1:] if argv is None else argv, accepted_without_effect)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        what = "unknown flag" if unknown[0].startswith("-") else "unexpected argument"
        parser.error(f"{what} {unknown[0].split('=')[0]}")
    values = {key: default for key, (default, _) in group_of.items()}
    if known.config_file:
        values.update(_read_yaml(known.config_file, group_of, accepted_without_effect, notices))
    values.update({key: value for key, value in vars(known).items() if key in group_of})
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


def _read_yaml(path, group_of, accepted, notices):
    try:
        loaded = yaml.safe_load(existing_file(path, "--config-file").read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config-file {path}: not valid YAML: {error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(v, dict) for v in loaded.values()):
        raise InputError(f"--config-file {path}: expected sections with `name: value` lines below them")
    values = {}
    for section, settings in loaded.items():
        for name, value in settings.items():
            key = f"{section}.{name}"
            if key in group_of:
                values[key] = _convert(value, group_of[key][1], f"--config-file {path}: {key}")
            elif _matches(key, accepted):
                notices.append(f"{key} in {path} has no effect here and is ignored")
            else:
                raise InputError(f"--config-file {path}: unknown key {key}")
    return values


def _convert(value, kind, where):
    """YAML reads 1e-6 as text and yes as a bool: the setting's own type decides."""
    if isinstance(kind, tuple):
        if str(value) not in kind:
            raise InputError(f"{where}: {value!r} is not one of {', '.join(kind)}")
        return str(value)
    try:
        return kind(str(value) if not isinstance(value, (int, float)) or kind is str else value)
    except (ValueError, argparse.ArgumentTypeError):
        raise InputError(f"{where}: {value!r} is not a {getattr(kind, '__name__', 'valid value')}") from None
