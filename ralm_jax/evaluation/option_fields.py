"""Frozen dataclasses of options within each other, by the names of their fields.

Flags and gin files name an option without the dataclass that it is in, so that a
new option is one field and one flag. No two fields have one name.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import typing
from typing import Any, TypeVar

T = TypeVar('T')


def fill(kind: type[T], values: Mapping[str, Any]) -> T:
  """A dataclass, and those within it, of what `values` hold for them.

  A dataclass within may itself be among the values. What belongs to no field is left alone.
  """
  given = {}
  for name, part in _fields(kind).items():
    if part is not None and not isinstance(values.get(name), part):
      given[name] = fill(part, values)
    elif name in values:
      given[name] = values[name]
  return kind(**given)


def make(kind: type[T], **values: Any) -> T:
  """As `fill`; TypeError for what belongs to no field."""
  unknown = values.keys() - names(kind)
  if unknown:
    raise TypeError(f'{kind.__name__} has no option {", ".join(sorted(unknown))}.')
  return fill(kind, values)


def names(kind: type) -> set[str]:
  """Of all fields but those that are dataclasses, whose own count."""
  found: set[str] = set()
  for name, part in _fields(kind).items():
    found |= {name} if part is None else names(part)
  return found


def flatten(options: Any) -> dict[str, Any]:
  """The values by the names that `fill` takes them by."""
  found: dict[str, Any] = {}
  for name, part in _fields(type(options)).items():
    value = getattr(options, name)
    found |= {name: value} if part is None else flatten(value)
  return found


def _fields(kind: Any) -> dict[str, Any]:
  """Names of the fields, with the dataclass that each is, if it is one."""
  types = typing.get_type_hints(kind)
  return {
    field.name: types[field.name] if dataclasses.is_dataclass(types[field.name]) else None
    for field in dataclasses.fields(kind)
  }
