"""Paired tests between the checkpoints of evaluation jobs."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import logging
import os
import pathlib

from ralm_jax.evaluation.scores import statistics
from ralm_jax.evaluation.scores.statistics import Comparison
from ralm_jax.jobs import cells, markdown, results
from ralm_jax.jobs.results import Row, TableOptions

_ALL_PAIRS_UP_TO = 8
# Shown when nothing else was measured.
_RETRIEVAL = ('recall@', 'mrr', 'precision@', 'success_rate@')
_COLUMNS = [
  *('checkpoints', 'task', 'index', 'metric', 'difference'),
  *('bootstrap p', 'sign-flip p', 'questions'),
]
_Scores = list[dict[str, float | None]]


def render(output: str | os.PathLike[str], rows: Sequence[Row], options: TableOptions) -> str:
  """Tests between the checkpoints of a task and an index, or each with an index of its own."""
  indexes = markdown.grouped(rows, lambda row: (row['task'], row['checkpoint']))
  several = {task for (task, _), found in indexes.items() if len(found) > 1}
  lines: list[list[str]] = []
  against_one, apart = '', []
  tested = markdown.grouped(
    rows, lambda row: (row['task'], row['index'] if row['task'] in several else None)
  )
  for (task, index), found in tested.items():
    index = index or ', '.join(dict.fromkeys(row['index'] for row in found))
    first, pairs = _pairs(found, options.baseline)
    if first is not None:
      against_one = f' Against {first["checkpoint"]}.'
    scores = {row['checkpoint']: _by_question(output, row) for row in found if pairs}
    comparable = []
    for one, other in pairs:
      ours, theirs = scores[one['checkpoint']], scores[other['checkpoint']]
      if ours is None or theirs is None:
        continue  # just being replaced
      # Questions may have other ids in a file that was renamed.
      if one['asked'] != other['asked'] or len(ours) != len(theirs):
        apart.append(f'{one["checkpoint"]} − {other["checkpoint"]} on {task}')
        continue
      comparable.append((f'{_named(one)} − {_named(other)}', ours, theirs))
    lines += [
      [names, task, index, metric, *_line(compared)]
      for metric in metrics(found, options)
      for names, ours, theirs in comparable
      if (compared := _compare(ours, theirs, metric, options)) is not None
    ]
  text = ''
  if lines:
    text = (
      f'## Paired tests between checkpoints\n\n{markdown.table(_COLUMNS, lines)}'
      '\nTwo-sided, on the questions both have; not corrected for the number of tests. '
      f'* signs drawn, else exact.{against_one}\n'
    )
  if apart:
    how = 'Not tested, since they were asked different questions or in different ways'
    note = f'{how}: {"; ".join(apart)}.'
    logging.warning('%s', note)
    text += f'\n{note}\n'
  return text


def _pairs(rows: Sequence[Row], baseline: str | None) -> tuple[Row | None, list[tuple[Row, Row]]]:
  """What all are tested against, if anything, and who against whom."""
  if len(rows) < 2:
    return None, []
  first = next((row for row in rows if row['checkpoint'] == baseline), None)
  if first is None and len(rows) <= _ALL_PAIRS_UP_TO:
    return None, list(itertools.combinations(rows, 2))
  first = first or rows[0]
  return first, [(row, first) for row in rows if row is not first]


def _named(row: Row) -> str:
  return row['checkpoint'] + mark(row)


def _line(compared: Comparison) -> list[str]:
  return [
    f'{compared.difference:+.4f} [{compared.low:+.4f}, {compared.high:+.4f}]',
    markdown.p_value(compared.bootstrap_p),
    markdown.p_value(compared.permutation_p) + ('' if compared.exact else ' *'),
    str(compared.count),
  ]


def _by_question(output: str | os.PathLike[str], row: Row) -> _Scores | None:
  """Metrics of each question; None where the cell is just being replaced."""
  try:
    return results.question_metrics(pathlib.Path(output, row['folder'], cells.PREDICTIONS))
  except FileNotFoundError:
    return None


def _compare(one: _Scores, other: _Scores, metric: str, options: TableOptions) -> Comparison | None:
  """On the questions for which both have the metric; None without any."""
  pairs = [
    (first[metric], second[metric])
    for first, second in zip(one, other)
    if first.get(metric) is not None and second.get(metric) is not None
  ]
  return statistics.compare(*zip(*pairs), **options.of_intervals) if pairs else None


def metrics(rows: Sequence[Row], options: TableOptions) -> list[str]:
  """Names of the metrics to show that any of the rows has."""
  values = [item for row in rows for item in row['metrics'].items()]
  known = list(dict.fromkeys(name for name, value in values if value is not None))
  if options.metrics is not None:
    return [name for name in options.metrics if name in known]
  answers = [name for name in known if not name.startswith(_RETRIEVAL)]
  return answers or known


def mark(row: Row) -> str:
  """A dagger behind what is not of what is configured now."""
  return ' †' if row['outdated'] else ''
