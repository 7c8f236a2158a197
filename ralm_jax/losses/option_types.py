"""Types of options that say which values can be meant, for gin, flags and Python alike.

`period: Count | None = None` is checked where gin binds it, where a flag is parsed (`parsed`), and
by `check_fields` in a dataclass's own `__post_init__`.
"""

from __future__ import annotations

import argparse
import collections.abc
from collections.abc import Callable
import dataclasses
import functools
import inspect
import math
import numbers
import os
import sys
import types
import typing
from typing import Annotated, Any, Literal, cast


@dataclasses.dataclass(frozen=True)
class Range:
  """Which numbers of a type are meant; finite ones only."""

  least: float = -math.inf
  most: float = math.inf
  open: bool = False  #: the bounds themselves are not among them
  below: bool = False  #: the upper one is not

  def holds(self, value: Any) -> bool:
    if not isinstance(value, numbers.Real):
      return False
    if self.open and value in (self.least, self.most) or self.below and value == self.most:
      return False
    return self.least <= float(value) <= self.most

  def __str__(self) -> str:
    if self.most == math.inf:
      return f'{"above" if self.open else "at least"} {self.least:.10g}'
    bound = 'below ' if self.open or self.below else ''
    return f'{"above" if self.open else "from"} {self.least:.10g} to {bound}{self.most:.10g}'


@dataclasses.dataclass(frozen=True)
class _Names:
  """Texts that are meant; what is no text is not looked at."""

  known: tuple[str, ...]


Count = Annotated[int, Range(1)]  #: what at least one is needed of: steps, questions, lengths
Number = Annotated[int, Range(0)]  #: what none may be of
Seed = Annotated[int, Range(0, 2**32 - 1)]
Amount = Annotated[float, Range(0.0)]  #: a rate, weight or time
Positive = Annotated[float, Range(0.0, open=True)]  #: what something is divided by
Share = Annotated[float, Range(0.0, 1.0)]
Dropout = Annotated[float, Range(0.0, 1.0, below=True)]  #: also of decays: 1 would leave nothing
Dtype = Annotated[Any, _Names(('float32', 'bfloat16', 'float16'))]


def expected(value: Any, hint: Any) -> str | None:
  """What a value of such a type is, in words; None where this is one, or the type is not known."""
  words = [_expected(value, one) for one in _choices(hint)]
  return None if None in words else ' or '.join(filter(None, dict.fromkeys(words)))


def _choices(hint: Any) -> tuple[Any, ...]:
  union = typing.get_origin(hint) in (typing.Union, types.UnionType)
  return typing.get_args(hint) if union else (hint,)


def _expected(value: Any, hint: Any) -> str | None:
  limits: tuple[Any, ...] = ()
  if typing.get_origin(hint) is Annotated:
    hint, *others = typing.get_args(hint)
    limits = tuple(others)
  for limit in limits:
    if isinstance(limit, _Names) and isinstance(value, str) and value not in limit.known:
      return f'one of {", ".join(limit.known)}'
  if hint in (int, float):
    kind = numbers.Integral if hint is int else numbers.Real
    ranges = [limit for limit in limits if isinstance(limit, Range)]
    outside = [str(limit) for limit in ranges if not limit.holds(value)]
    if isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value):
      return ' and '.join(outside) or None
    return ', '.join(['a whole number' if hint is int else 'a number', *outside])
  if typing.get_origin(hint) is Literal:
    known = typing.get_args(hint)
    return None if value in known else f'one of {", ".join(map(repr, known))}'
  for kinds, name in _KINDS.get(hint, ()):
    return None if isinstance(value, kinds) else name
  return _expected_structure(value, hint)


_KINDS: dict[Any, list[tuple[Any, str]]] = {
  str: [((str, os.PathLike), 'a text')],
  bool: [(bool, 'True or False')],
  type(None): [(type(None), 'None')],
}
_SEQUENCES = (list, tuple, collections.abc.Sequence)


def _expected_structure(value: Any, hint: Any) -> str | None:
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  literal = value is None or isinstance(value, (str, bool, int, float, list, tuple, dict))
  if origin in _SEQUENCES:
    if isinstance(value, str) or not isinstance(value, collections.abc.Sequence):
      return 'a list'
    inner = (expected(one, arguments[0]) for one in value)
    found = next(filter(None, inner), None)
    return found and f'a list, each of it {found}'
  if origin is collections.abc.Callable:
    return None if callable(value) else 'a function'
  if dataclasses.is_dataclass(hint) and isinstance(hint, type) and literal:
    return f'a reference to what makes {hint.__name__} objects'
  return None


def parsed(hint: Any) -> Callable[[str], Any]:
  """The type of a flag, for argparse, of a number's type."""
  kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint

  def parse(text: str) -> Any:
    try:
      value = kind(text)
    except ValueError:
      value = text
    if words := expected(value, hint):
      raise argparse.ArgumentTypeError(f'must be {words}, not {text}')
    return value

  return parse


@functools.lru_cache(None)
def hints(owner: Any) -> dict[str, Any]:
  """The types of a function's parameters or a dataclass's fields, as far as they can be found."""
  if inspect.isclass(owner) and not dataclasses.is_dataclass(owner):
    owner = owner.__init__
  found: dict[str, Any] = {}
  for one in reversed(owner.__mro__) if inspect.isclass(owner) else (inspect.unwrap(owner),):
    found |= _annotations(one)
  return found


def _annotations(owner: Any) -> dict[str, Any]:
  scope = vars(sys.modules.get(owner.__module__, typing))
  found = {}
  for name, text in inspect.get_annotations(owner).items():
    try:
      found[name] = eval(text, dict(scope)) if isinstance(text, str) else text
    except Exception:  # imported for type checkers alone.
      continue
  return found


def check_fields(options: Any) -> None:
  """Raises ValueError for a field whose value cannot be meant."""
  known = hints(cast(Any, type(options)))
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if words := expected(value, known.get(field.name, Any)):
      raise ValueError(f'{type(options).__name__}.{field.name} must be {words}, not {value!r}.')
