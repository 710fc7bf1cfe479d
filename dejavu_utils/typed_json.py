"""Dataclasses as JSON and back, so that every entry of a results file is declared once: as a
field."""

import math
import types
import typing
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def entry(meaning: str, absent: bool = False, **options: Any) -> Any:
    """A dataclass field that says what it holds, with its unit; documentation is made from it.

    absent: where it is None, the file has no such entry, instead of null. options: of
    dataclasses.field.
    """
    return field(metadata={"help": meaning, "absent": absent}, **options)


def optional(meaning: str) -> Any:
    """An `entry` that the file does not have where it is None, as it is by default."""
    return entry(meaning, absent=True, default=None)


def to_json(value: object) -> Any:
    """What json.dump takes. JSON has no NaN: a figure that no example tells is null."""
    if is_dataclass(value):
        written = {}
        for one in fields(value):
            content = getattr(value, one.name)
            if content is not None or not one.metadata.get("absent"):
                written[one.name] = to_json(content)
        return written
    if isinstance(value, dict):
        return {name: to_json(content) for name, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(content) for content in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_json(kind: type[T], written: Any) -> T:
    """The dataclass that `to_json` wrote; null is NaN where a number is declared.

    Entries that are not declared are left out, those that are missing take the field's default.
    TypeError, ValueError, KeyError or AttributeError for what is no such file.
    """
    return _read(kind, written)


def _read(kind: Any, written: Any) -> Any:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = set(arguments) - {types.NoneType}
        return None if written is None else _read(inner, written)
    if typing.get_origin(kind) is dict:
        return {name: _read(arguments[1], content) for name, content in written.items()}
    if typing.get_origin(kind) is list:
        return [_read(arguments[0], content) for content in written]
    if kind is float:
        return math.nan if written is None else float(written)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return written
    declared = typing.get_type_hints(kind)
    values = {name: _read(declared[name], written[name]) for name in declared if name in written}
    return kind(**values)
