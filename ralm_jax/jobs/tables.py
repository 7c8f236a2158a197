"""table.md of evaluation jobs: scores, train × index, indexes, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
import os

from ralm_jax.evaluation import summary
from ralm_jax.files import atomic_files
from ralm_jax.jobs import comparisons, markdown, results
from ralm_jax.jobs.results import Row, TableOptions

TABLE = 'table.md'


def write_table(
  output: str | os.PathLike[str],
  options: TableOptions = TableOptions(),
  rows: Sequence[Row] | None = None,
  *,
  pending: bool = False,
) -> str:
  """Rebuilds table.md, and results.jsonl where its rows are not given; returns the text."""
  if rows is None:
    rows = results.write_results(output, options=options)
  text = render(output, rows, options, pending=pending)
  atomic_files.write(os.path.join(output, TABLE), text)
  return text


def render(
  output: str | os.PathLike[str],
  rows: Sequence[Row],
  options: TableOptions,
  *,
  pending: bool = False,
) -> str:
  """All tables of finished cells as Markdown.

  ValueError where no row has the baseline, or a metric that is to be shown; if cells are
  `pending`, which may have it, the text says so in place.
  """
  if not rows:
    return 'No cell is finished yet.\n'
  parts = [*_missing(rows, options, pending), _scores(rows, options)]
  indexed = [row for row in rows if row['index'] != results.NO_INDEX]
  several = len({row['index'] for row in indexed}) > 1
  if several:
    parts += [_matrices(indexed, options), _indexes(indexed, options)]
  if options.by_group:
    parts.append(_groups(rows, options))
  parts += [comparisons.render(output, rows, options), _footnote(rows)]
  return '\n'.join(part for part in parts if part)


def check_baseline(options: TableOptions, known: Sequence[str]) -> None:
  """Raises ValueError for a baseline that is not among the checkpoints."""
  if options.baseline is not None and options.baseline not in known:
    raise ValueError(
      f'TableOptions.baseline (gin: BASELINE) is {options.baseline!r}; the '
      f'checkpoints are {", ".join(map(repr, known)) or "none"}.'
    )


def _missing(rows: Sequence[Row], options: TableOptions, pending: bool) -> list[str]:
  """Says what was asked for and is not there (yet)."""
  texts = []
  try:
    check_baseline(options, list(dict.fromkeys(row['checkpoint'] for row in rows)))
  except ValueError:
    if not pending:
      raise
    texts.append(f'The baseline {options.baseline} is not finished yet.\n')
  known = list(dict.fromkeys(name for row in rows for name in row['metrics']))
  for name in options.metrics or ():
    if name not in known:
      if not pending:
        raise ValueError(
          f'TableOptions.metrics (gin: TABLE_METRICS) has {name!r}; the metrics are '
          f'{", ".join(known)}.'
        )
      texts.append(f'No finished cell has the metric {name}.\n')
  return texts


def _scores(rows: Sequence[Row], options: TableOptions) -> str:
  """Checkpoints by tasks, a table for each metric."""
  several = len({row['index'] for row in rows}) > 1

  def column(row: Row) -> str:
    return f'{row["task"]} @ {row["index"]}' if several else row['task']

  def score(row: Row, name: str) -> str:
    # Ends made otherwise are not shown for what they are not.
    ends = row['intervals'] if row['of_intervals'] == options.of_intervals else {}
    return markdown.interval(row['metrics'][name], ends.get(name)) + comparisons.mark(row)

  text = ''
  for name in comparisons.metrics(rows, options):
    having = [row for row in rows if name in row['metrics']]
    cells = [(row['checkpoint'], column(row), score(row, name)) for row in having]
    text += _section(name, markdown.pivot(cells, 'checkpoint'))
  asked = {(row['task'], str(row['count']) + comparisons.mark(row)) for row in rows}
  counts = markdown.table(
    ['task', 'questions'], sorted(asked, key=lambda pair: markdown.natural(pair[0]))
  )
  return text + (
    f'In brackets: {options.confidence:.0%} bootstrap intervals over questions '
    f'({options.resamples:,} resamples).\n\n{counts}{_denominators(rows, options)}'
  )


def _denominators(rows: Sequence[Row], options: TableOptions) -> str:
  """Which averages are over a part of the questions, and what else the numbers are not of."""
  shown = comparisons.metrics(rows, options)
  lines: dict[str, None] = {}
  for row in rows:
    over = row.get('averaged_over', {})
    lines |= dict.fromkeys(
      f'{name} of {row["task"]} is averaged over {over[name]:,} of {row["count"]:,} questions'
      for name in shown
      if name in over
    )
    where = ', '.join(row[name] for name in ('checkpoint', 'task', 'index'))
    lines |= dict.fromkeys(f'{note} ({where})' for note in summary.notes(row))
  return ''.join(f'\n- {line}' for line in lines) + '\n' * bool(lines)


def _matrices(rows: Sequence[Row], options: TableOptions) -> str:
  """Checkpoints by indexes, for each task and metric: train by index year."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    if not _is_crossed(of_task):
      continue
    groups = {group for row in of_task for group in row.get('groups', ())}
    places = [(row['checkpoint'], row['index'], row) for row in of_task]
    for name in comparisons.metrics(of_task, options):
      cells = [(*place, _number(row, row['metrics'].get(name))) for *place, row in places]
      title = f'{task}: {name}, checkpoint × index'
      text += _section(title, markdown.pivot(cells, 'checkpoint'))
      for group in sorted(groups, key=markdown.natural) if options.by_group else ():
        cells = [(*place, _of_group(row, group, name)) for *place, row in places]
        text += _section(group, markdown.pivot(cells, 'checkpoint'), level=3)
  return text


def _groups(rows: Sequence[Row], options: TableOptions) -> str:
  """Groups by checkpoints, of tasks that have no matrix."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    crossed = _is_crossed([row for row in of_task if row['index'] != results.NO_INDEX])
    if crossed:
      of_task = [row for row in of_task if row['index'] == results.NO_INDEX]
    of_task = [row for row in of_task if row.get('groups')]
    several = len({row['index'] for row in of_task}) > 1
    columns = [row['checkpoint'] + (f' @ {row["index"]}' if several else '') for row in of_task]
    for name in comparisons.metrics(of_task, options):
      cells = [
        (group, column, _of_group(row, group, name))
        for row, column in zip(of_task, columns)
        for group in row['groups']
      ]
      cells += [
        (group, 'questions', f'{of_group["count"]:,}')
        for row in of_task[:1]
        for group, of_group in row['groups'].items()
        if 'count' in of_group
      ]
      text += _section(f'{task}: {name} by group', markdown.pivot(cells, 'group'))
  return text


def _indexes(rows: Sequence[Row], options: TableOptions) -> str:
  """What each index costs and what it gives."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    names = comparisons.metrics(of_task, options)
    header = ['checkpoint, index', *names, 'passages', 'index memory', 'search, ms a query']
    lines = [
      [
        f'{row["checkpoint"]}, {row["index"]}{comparisons.mark(row)}',
        *(markdown.number(row['metrics'].get(name)) for name in names),
        markdown.NOTHING if row['index_passages'] is None else f'{row["index_passages"]:,}',
        markdown.size(row['index_bytes']),
        markdown.number(row['search_ms'], 3),
      ]
      for row in of_task
    ]
    text += _section(f'{task}: indexes', markdown.table(header, lines))
  return text


def _footnote(rows: Sequence[Row]) -> str:
  """What is behind the daggers."""
  outdated = [row for row in rows if row['outdated']]
  if not outdated:
    return ''
  return '† Not of what is configured now:\n\n' + ''.join(
    f'- {row["checkpoint"]}, {row["task"]}, {row["index"]}: {row["outdated"]}\n' for row in outdated
  )


def _is_crossed(rows: Sequence[Row]) -> bool:
  """Whether several checkpoints were asked with several indexes each."""
  checkpoints = {row['checkpoint'] for row in rows}
  return len(checkpoints) > 1 and len(rows) > len(checkpoints)


def _of_group(row: Row, group: str, metric: str) -> str:
  return _number(row, row.get('groups', {}).get(group, {}).get(metric))


def _number(row: Row, value: float | None) -> str:
  return markdown.number(value) + comparisons.mark(row)


def _section(title: str, table: str, level: int = 2) -> str:
  return f'{"#" * level} {title}\n\n{table}\n'
