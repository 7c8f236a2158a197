"""Markdown tables that are aligned as plain text, too."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
import re
from typing import Any
import unicodedata

NOTHING = '–'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table whose first column is text and whose others are figures.

  Args:
    header: one a column.
    rows: of as many cells each.

  Returns:
    Lines, the last one ended.
  """
  rows = [
    [str(cell).replace('|', '\\|').replace('\n', ' ') for cell in row] for row in (header, *rows)
  ]
  widths = [max(3, *map(_width, column)) for column in zip(*rows)]

  def line(cells: Sequence[str]) -> str:
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths)):
      space = ' ' * (width - _width(cell))
      padded.append(space + cell if i else cell + space)
    return f'| {" | ".join(padded)} |'

  ruler = [
    ('-' if i else ':') + '-' * (width - 2) + (':' if i else '-') for i, width in enumerate(widths)
  ]
  return '\n'.join([line(rows[0]), line(ruler), *map(line, rows[1:])]) + '\n'


def pivot(
  items: Sequence[Any],
  row: Callable[[Any], str],
  column: Callable[[Any], str],
  cell: Callable[[Any], str],
  corner: str = '',
) -> str:
  """A table of items by two of their properties.

  Args:
    items: at most one of each pair of properties.
    row: names an item's row; rows and columns are ordered as people count.
    column: names its column.
    cell: what is shown of it.
    corner: heads the column of row names.
  """
  cells: dict[tuple[str, str], str] = {}
  for item in items:
    cells[row(item), column(item)] = cell(item)
  rows = sorted({name for name, _ in cells}, key=natural)
  columns = sorted({name for _, name in cells}, key=natural)
  return table(
    [corner, *columns],
    [[name, *(cells.get((name, other), NOTHING) for other in columns)] for name in rows],
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
