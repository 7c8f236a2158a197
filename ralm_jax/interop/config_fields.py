"""Fields of a foreign JSON object, checked: a wrong one is named with its file."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def whole_number(
  raw: Json, name: str, where: str, default: int | None = None, least: int = 1
) -> int:
  """A whole number of at least `least`, or the default where it is absent or null.

  Raises ValueError, which names the object (`where`, a path), where it is of another type or too
  small, or absent without a default.
  """
  value = _given(raw, name, where, default)
  if not isinstance(value, int) or isinstance(value, bool) or value < least:
    raise ValueError(f'{where}: {name} is {value!r}, expected a whole number of at least {least}.')
  return value


def token_id(raw: Json, name: str, where: str, default: int) -> int:
  """As `whole_number` of at least 0."""
  return whole_number(raw, name, where, default, least=0)


def optional_number(raw: Json, name: str, where: str) -> int | None:
  """As `whole_number` of at least 0; None where it is absent."""
  if raw.get(name) is None:
    return None
  return whole_number(raw, name, where, least=0)


def positive(raw: Json, name: str, where: str, default: float | None = None) -> float:
  """A number above 0; arguments and errors as `whole_number`."""
  value = _given(raw, name, where, default)
  # Infinity and NaN are JSON to Python.
  if (
    not isinstance(value, (int, float)) or isinstance(value, bool) or not (0 < value < float('inf'))
  ):
    raise ValueError(f'{where}: {name} is {value!r}, expected a number above 0.')
  return value


def text(raw: Json, name: str, where: str, default: str | None = None) -> str:
  """A string; arguments and errors as `whole_number`."""
  value = _given(raw, name, where, default)
  if not isinstance(value, str):
    raise ValueError(f'{where}: {name} is {value!r}, expected a string.')
  return value


def names(raw: Json, name: str, where: str) -> list[str]:
  """An array of strings, empty where it is absent; errors as `whole_number`."""
  value = _given(raw, name, where, [])
  if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
    raise ValueError(f'{where}: {name} is {value!r}, expected an array of strings.')
  return value


def nested(raw: Json, name: str, where: str) -> Json:
  """An object; errors as `whole_number`."""
  value = _given(raw, name, where, None)
  if not isinstance(value, dict):
    raise ValueError(f'{where}: {name} is {value!r}, expected an object.')
  return value


def _given(raw: Json, name: str, where: str, default: Any) -> Any:
  value = raw.get(name)
  if value is None:
    value = default
  if value is None:
    raise ValueError(f'{where} has no field {name!r}; fetch it again.')
  return value
