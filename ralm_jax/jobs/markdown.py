"""Markdown tables that are aligned as plain text, too."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
import re
from typing import Any
import unicodedata

NOTHING = '–'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Lines of a table whose first column is text and whose others are figures."""
  rows = [
    [str(cell).replace('|', '\\|').replace('\n', ' ') for cell in row] for row in (header, *rows)
  ]
  widths = [max(3, *map(_width, column)) for column in zip(*rows)]

  def line(cells: Sequence[str]) -> str:
    spaces = [' ' * (width - _width(cell)) for cell, width in zip(cells, widths)]
    figures = [space + cell for space, cell in zip(spaces[1:], cells[1:])]
    return f'| {" | ".join([cells[0] + spaces[0], *figures])} |'

  ruler = [':' + '-' * (widths[0] - 1), *('-' * (width - 1) + ':' for width in widths[1:])]
  return '\n'.join([line(rows[0]), line(ruler), *map(line, rows[1:])]) + '\n'


def pivot(cells: Iterable[tuple[str, str, str]], corner: str = '') -> str:
  """A table of (name of the row, name of the column, text), ordered as people count."""
  texts = {(row, column): text for row, column, text in cells}
  rows = sorted({row for row, _ in texts}, key=natural)
  columns = sorted({column for _, column in texts}, key=natural)
  return table(
    [corner, *columns],
    [[row, *(texts.get((row, column), NOTHING) for column in columns)] for row in rows],
  )


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
  """A sort key by which 'run-9' comes before 'run-10'."""
  return tuple(
    (0, int(part), '') if part.isdecimal() else (1, 0, part)
    for part in re.split(r'(\d+)', text)
    if part
  )


def grouped(items: Sequence[Any], key: Callable[[Any], Hashable]) -> dict[Any, list[Any]]:
  """Items by their key, in order of first appearance."""
  groups: dict[Any, list[Any]] = {}
  for item in items:
    groups.setdefault(key(item), []).append(item)
  return groups


def number(value: float | None, digits: int = 4) -> str:
  """A metric from 0 to 1, or NOTHING."""
  return NOTHING if value is None else f'{value:.{digits}f}'


def interval(value: float | None, ends: Mapping[str, float] | None = None) -> str:
  """A metric with the ends of its interval, where there is one."""
  if value is None or not ends:
    return number(value)
  return f'{value:.4f} [{ends["low"]:.4f}, {ends["high"]:.4f}]'


def p_value(value: float | None) -> str:
  if value is None:
    return NOTHING
  return '< 0.0001' if value < 1e-4 else f'{value:.4f}'


def size(count: int | None) -> str:
  """Bytes as people read them."""
  if count is None:
    return NOTHING
  value, unit = float(count), 'B'
  for larger in ('kB', 'MB', 'GB', 'TB'):
    if value < 1000:
      break
    value, unit = value / 1000, larger
  return f'{value:.0f} {unit}' if unit == 'B' else f'{value:.2f} {unit}'


def _width(text: str) -> int:
  return sum(
    0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1
    for c in text
  )
