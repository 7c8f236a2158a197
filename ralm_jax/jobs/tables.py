"""table.md of evaluation jobs: scores, train × index, indexes, paired tests."""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import logging
import os
import pathlib

from ralm_jax.evaluation.scores import statistics
from ralm_jax.evaluation.scores.statistics import Comparison
from ralm_jax.files import atomic_files
from ralm_jax.jobs import cells as cells_lib, markdown, results

TABLE = 'table.md'
# Shown when nothing else was measured.
_RETRIEVAL = ('recall@', 'mrr', 'precision@', 'success_rate@')
_ALL_PAIRS_UP_TO = 8
_OUTDATED = ' †'

Row = results.Row
TableOptions = results.TableOptions


def write_table(
  output: str | os.PathLike[str],
  options: TableOptions = TableOptions(),
  rows: Sequence[Row] | None = None,
  *,
  pending: bool = False,
) -> str:
  """Rebuilds table.md; returns its text.

  Args:
    output: of the jobs.
    options: what it shows.
    rows: of results.jsonl; None rebuilds that, too.
    pending: as of `render`.

  Raises:
    ValueError: as `render`.
  """
  if rows is None:
    rows = results.write_results(output, options=options)
  text = render(output, rows, options, pending=pending)
  atomic_files.write(os.path.join(output, TABLE), text.encode('utf-8'))
  return text


def render(
  output: str | os.PathLike[str],
  rows: Sequence[Row],
  options: TableOptions,
  *,
  pending: bool = False,
) -> str:
  """All tables of finished cells as Markdown.

  Args:
    output: of the jobs.
    rows: of `job_results.read_cells`.
    options: what is shown.
    pending: whether cells are missing, which may have the baseline or a metric
      that no other has: the text says so then.

  Raises:
    ValueError: no row has the baseline, or a metric that is to be shown.
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
  parts += [_pairs(output, rows, options), _footnote(rows)]
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
          f'TableOptions.metrics (gin: TABLE_METRICS) has {name!r}; the '
          f'metrics are {", ".join(known)}.'
        )
      texts.append(f'No finished cell has the metric {name}.\n')
  return texts


def _scores(rows: Sequence[Row], options: TableOptions) -> str:
  """Checkpoints by tasks, a table for each metric."""
  several = len({row['index'] for row in rows}) > 1

  def column(row: Row) -> str:
    return f'{row["task"]} @ {row["index"]}' if several else row['task']

  def ends(row: Row) -> dict[str, dict[str, float]]:
    # None are shown for what they are not.
    return row['intervals'] if row['of_intervals'] == options.of_intervals else {}

  text = ''
  for name in _metrics(rows, options):
    having = [row for row in rows if name in row['metrics']]
    text += (
      f'## {name}\n\n'
      + markdown.pivot(
        having,
        lambda row: row['checkpoint'],
        column,
        lambda row, name=name: (
          markdown.interval(row['metrics'][name], ends(row).get(name)) + _mark(row)
        ),
        corner='checkpoint',
      )
      + '\n'
    )
  counts = markdown.table(
    ['task', 'questions'],
    sorted(
      {(row['task'], str(row['count']) + _mark(row)) for row in rows},
      key=lambda pair: markdown.natural(pair[0]),
    ),
  )
  return text + (
    f'In brackets: {options.confidence:.0%} bootstrap intervals over '
    f'questions ({options.resamples:,} resamples).\n\n{counts}'
  )


def _matrices(rows: Sequence[Row], options: TableOptions) -> str:
  """Checkpoints by indexes, for each task and metric: train by index year."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    if not _is_crossed(of_task):
      continue
    for name in _metrics(of_task, options):
      text += (
        f'## {task}: {name}, checkpoint × index\n\n'
        + markdown.pivot(
          of_task,
          lambda row: row['checkpoint'],
          lambda row: row['index'],
          lambda row, name=name: markdown.number(row['metrics'].get(name)) + _mark(row),
          corner='checkpoint',
        )
        + '\n'
      )
      groups = {group for row in of_task for group in row.get('groups', ())}
      for group in sorted(groups, key=markdown.natural) if options.by_group else ():
        text += (
          f'### {group}\n\n'
          + markdown.pivot(
            of_task,
            lambda row: row['checkpoint'],
            lambda row: row['index'],
            lambda row, name=name, group=group: _of_group(row, group, name),
            corner='checkpoint',
          )
          + '\n'
        )
  return text


def _groups(rows: Sequence[Row], options: TableOptions) -> str:
  """Groups by checkpoints, of tasks that have no matrix."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    indexed = [row for row in of_task if row['index'] != results.NO_INDEX]
    crossed = _is_crossed(indexed)
    of_task = [
      row
      for row in of_task
      if row.get('groups') and not (crossed and row['index'] != results.NO_INDEX)
    ]
    several = len({row['index'] for row in of_task}) > 1

    def column(row: Row, several: bool = several) -> str:
      return row['checkpoint'] + (f' @ {row["index"]}' if several else '')

    cells = [(row, group) for row in of_task for group in row['groups']]
    for name in _metrics(of_task, options):
      text += (
        f'## {task}: {name} by group\n\n'
        + markdown.pivot(
          cells,
          lambda cell: cell[1],
          lambda cell: column(cell[0]),
          lambda cell, name=name: _of_group(*cell, name),
          corner='group',
        )
        + '\n'
      )
  return text


def _indexes(rows: Sequence[Row], options: TableOptions) -> str:
  """What each index costs and what it gives."""
  text = ''
  for task, of_task in markdown.grouped(rows, lambda row: row['task']).items():
    names = _metrics(of_task, options)
    text += (
      f'## {task}: indexes\n\n'
      + markdown.table(
        ['checkpoint, index', *names, 'passages', 'index memory', 'search, ms a query'],
        [
          [
            f'{row["checkpoint"]}, {row["index"]}{_mark(row)}',
            *(markdown.number(row['metrics'].get(name)) for name in names),
            markdown.NOTHING if row['index_passages'] is None else f'{row["index_passages"]:,}',
            markdown.size(row['index_bytes']),
            markdown.NOTHING if row['search_ms'] is None else f'{row["search_ms"]:.3f}',
          ]
          for row in of_task
        ],
      )
      + '\n'
    )
  return text


def _pairs(output: str | os.PathLike[str], rows: Sequence[Row], options: TableOptions) -> str:
  """Paired tests between the checkpoints of each task and index.

  Where each checkpoint has an index of its own, across these.
  """
  indexes = markdown.grouped(rows, lambda row: (row['task'], row['checkpoint']))
  several = {task for (task, _), cells in indexes.items() if len(cells) > 1}
  lines = []
  against_one, apart = '', []
  for (task, index), cells in markdown.grouped(
    rows, lambda row: (row['task'], row['index'] if row['task'] in several else None)
  ).items():
    index = index or ', '.join(dict.fromkeys(cell['index'] for cell in cells))
    if len(cells) < 2:
      continue
    pairs = list(itertools.combinations(cells, 2))
    first = next((cell for cell in cells if cell['checkpoint'] == options.baseline), None)
    if first is not None or len(cells) > _ALL_PAIRS_UP_TO:
      first = first or cells[0]
      against_one = f' Against {first["checkpoint"]}.'
      pairs = [(cell, first) for cell in cells if cell is not first]
    scores = {cell['checkpoint']: _by_question(output, cell) for cell in cells}
    comparable = []
    for one, other in pairs:
      first_scores = scores[one['checkpoint']]
      second_scores = scores[other['checkpoint']]
      if first_scores is None or second_scores is None:
        continue  # just being replaced
      # Questions may have other ids in a file that was renamed.
      if one['asked'] != other['asked'] or (len(first_scores) != len(second_scores)):
        apart.append(f'{one["checkpoint"]} − {other["checkpoint"]} on {task}')
        continue
      comparable.append((one, other, list(zip(first_scores, second_scores))))
    for name in _metrics(cells, options):
      for one, other, both in comparable:
        compared = _compare(both, name, options)
        if compared is None:
          continue
        lines.append(
          [
            f'{one["checkpoint"]}{_mark(one)} − {other["checkpoint"]}{_mark(other)}',
            task,
            index,
            name,
            f'{compared.difference:+.4f} [{compared.low:+.4f}, {compared.high:+.4f}]',
            markdown.p_value(compared.bootstrap_p),
            markdown.p_value(compared.permutation_p) + ('' if compared.exact else ' *'),
            str(compared.count),
          ]
        )
  text = ''
  if lines:
    text = (
      '## Paired tests between checkpoints\n\n'
      + markdown.table(
        [
          'checkpoints',
          'task',
          'index',
          'metric',
          'difference',
          'bootstrap p',
          'sign-flip p',
          'questions',
        ],
        lines,
      )
      + '\nTwo-sided, on the questions both have; not corrected for the number '
      f'of tests. * signs drawn, else exact.{against_one}\n'
    )
  if apart:
    note = (
      'Not tested, since they were asked different questions or in '
      f'different ways: {"; ".join(apart)}.'
    )
    logging.warning('%s', note)
    text += f'\n{note}\n'
  return text


def _footnote(rows: Sequence[Row]) -> str:
  """What is behind the daggers."""
  outdated = [row for row in rows if row['outdated']]
  if not outdated:
    return ''
  return '† Not of what is configured now:\n\n' + ''.join(
    f'- {row["checkpoint"]}, {row["task"]}, {row["index"]}: {row["outdated"]}\n' for row in outdated
  )


def _by_question(output: str | os.PathLike[str], row: Row) -> list[dict[str, float | None]] | None:
  """Metrics of each question; None where the cell is just being replaced."""
  try:
    return results.question_metrics(pathlib.Path(output, row['folder'], cells_lib.PREDICTIONS))
  except FileNotFoundError:
    return None


def _compare(
  both: Sequence[tuple[dict[str, float | None], dict[str, float | None]]],
  name: str,
  options: TableOptions,
) -> Comparison | None:
  """On the questions for which both have the metric; None without any."""
  pairs = [
    (first[name], second[name])
    for first, second in both
    if first.get(name) is not None and second.get(name) is not None
  ]
  if not pairs:
    return None
  one, other = zip(*pairs)
  return statistics.compare(one, other, **options.of_intervals)


def _metrics(rows: Sequence[Row], options: TableOptions) -> list[str]:
  """Names of the metrics to show that any of the rows has."""
  known = list(
    dict.fromkeys(
      name for row in rows for name, value in row['metrics'].items() if value is not None
    )
  )
  if options.metrics is not None:
    return [name for name in options.metrics if name in known]
  answers = [name for name in known if not name.startswith(_RETRIEVAL)]
  return answers or known


def _is_crossed(rows: Sequence[Row]) -> bool:
  """Whether several checkpoints were asked with several indexes each."""
  checkpoints = {row['checkpoint'] for row in rows}
  return len(checkpoints) > 1 and len(rows) > len(checkpoints)


def _of_group(row: Row, group: str, metric: str) -> str:
  return markdown.number(row.get('groups', {}).get(group, {}).get(metric)) + _mark(row)


def _mark(row: Row) -> str:
  return _OUTDATED if row['outdated'] else ''
