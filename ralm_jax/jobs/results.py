"""results.jsonl of evaluation jobs, made of the finished cells.

OUTPUT/cells/<checkpoint>/<task>/<index>/   see cells.py
OUTPUT/results.jsonl                        one line a finished cell
OUTPUT/table.md                             see tables.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
import logging
import math
import os
import pathlib
from typing import Any

from ralm_jax.evaluation import prediction_files
from ralm_jax.evaluation.scores import statistics
from ralm_jax.files import atomic_files, json_records
from ralm_jax.jobs import cells, markdown
from ralm_jax.jobs.cells import Cell

CELLS = 'cells'
RESULTS = 'results.jsonl'
# The index of cells that read no passages from one.
NO_INDEX = 'none'
_READ_ATTEMPTS = 3

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TableOptions:
  """What the tables show, and how sure they are to be."""

  #: Which ones; None for all, where those of retrieval only count if there is nothing else.
  metrics: Sequence[str] | None = None
  #: Name of the checkpoint that others are tested against; None tests all pairs of up to 8
  #: checkpoints, else against the first.
  baseline: str | None = None
  confidence: float = 0.95  #: of intervals
  resamples: int = statistics.RESAMPLES  #: of the bootstrap and of drawn signs
  seed: int = 0  #: of the draws
  by_group: bool = False  #: also tables of each group of questions: years, subjects

  def __post_init__(self):
    if not 0 < self.confidence < 1:
      raise ValueError(
        f'TableOptions.confidence is {self.confidence}; it must lie between 0 and 1.'
      )
    if self.resamples < 1:
      raise ValueError(f'TableOptions.resamples is {self.resamples}; it must be at least 1.')
    if isinstance(self.metrics, str):
      raise ValueError(f'TableOptions.metrics is {self.metrics!r}; write a list of names.')

  @property
  def of_intervals(self) -> dict[str, Any]:
    """What intervals depend on, as JSON values."""
    return {'confidence': self.confidence, 'resamples': self.resamples, 'seed': self.seed}


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is configured now, which finished cells may be behind."""

  #: By names of task and index: inputs of a cell but its checkpoint's, or why they are out
  #: of reach.
  tasks: Mapping[tuple[str, str], Mapping[str, Any] | str]
  #: By name: the inputs of those that are known. Of others, such as those that a run has
  #: removed, only the rest counts.
  checkpoints: Mapping[str, Mapping[str, Any]]
  #: Names of inputs that may differ, by index.
  ignore: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

  def why_outdated(self, manifest: Mapping[str, Any]) -> str | None:
    """How a cell differs from what is wanted; None where it does not."""
    names, inputs = manifest['names'], dict(manifest['inputs'])
    wanted = self.tasks.get((names['task'], names['index']))
    if wanted is None:
      return 'not configured any more'
    if isinstance(wanted, str):
      return wanted
    former = inputs.pop('checkpoint', None)
    if names['checkpoint'] in self.checkpoints:
      inputs['checkpoint'] = former
      wanted = {**wanted, 'checkpoint': self.checkpoints[names['checkpoint']]}
    return cells.differences(inputs, wanted, self.ignore.get(names['index'], ()))


def cell_folder(
  output: str | os.PathLike[str], checkpoint: str, task: str, index: str
) -> pathlib.Path:
  """Where a cell's results are."""
  return pathlib.Path(output, CELLS, *map(cells.file_name, (checkpoint, task, index)))


def question_metrics(predictions: str | os.PathLike[str]) -> list[dict[str, float | None]]:
  """Metrics of each question; a value that is no number counts as None."""
  rows, strange = [], []
  for record in prediction_files.read(predictions):
    row = dict(record['metrics'])
    for name, value in row.items():
      if value is not None and not math.isfinite(value):
        strange.append(f'{name} of {record.get("id")}')
        row[name] = None
    rows.append(row)
  if strange:
    more = f', as do {len(strange) - 1} other values' if strange[1:] else ''
    logging.warning('%s: %s is not finite and counts as missing%s.', predictions, strange[0], more)
  return rows


def intervals(
  predictions: str | os.PathLike[str], options: TableOptions = TableOptions()
) -> dict[str, dict[str, float]]:
  """`{metric: {mean, low, high}}` of the metrics that every question may have."""
  values: dict[str, list[float]] = {}
  for row in question_metrics(predictions):
    for name, value in row.items():
      if value is not None:
        values.setdefault(name, []).append(value)
  result = {}
  for name, column in values.items():
    found = statistics.bootstrap_interval(column, **options.of_intervals)
    result[name] = {'mean': found.mean, 'low': found.low, 'high': found.high}
  return result


def read_cells(
  output: str | os.PathLike[str], wanted: Wanted | None = None, options: TableOptions | None = None
) -> list[Row]:
  """A row of JSON values for each finished cell, by checkpoint, task and index.

  `outdated` says how one differs from what is `wanted`. Intervals are computed anew where
  they were made with other options.
  """
  paths = pathlib.Path(output, CELLS).glob(f'*/*/*/{cells.MANIFEST}')
  rows = [row for path in paths if (row := _read_cell(path.parent, output, wanted, options))]
  names = ('checkpoint', 'task', 'index')
  return sorted(rows, key=lambda row: [markdown.natural(row[name]) for name in names])


def _read_cell(
  folder: pathlib.Path,
  output: str | os.PathLike[str],
  wanted: Wanted | None,
  options: TableOptions | None,
) -> Row | None:
  """None where it is not finished, or is just being replaced."""
  cell = Cell(folder)
  for _ in range(_READ_ATTEMPTS):
    manifest = cell.manifest()
    if manifest is None:
      return None
    ends, made_with = manifest.get('intervals', {}), manifest.get('of_intervals')
    try:
      metrics = json.loads((folder / cells.METRICS).read_text('utf-8'))
      if options is not None and made_with != options.of_intervals:
        made_with = options.of_intervals
        ends = intervals(folder / cells.PREDICTIONS, options)
    except FileNotFoundError:
      continue
    if cell.manifest() == manifest:
      break  # what was read between is of this manifest
  else:
    return None
  inputs = manifest['inputs']
  index = inputs.get('index') or {}
  metrics = json_records.finite(metrics)
  asked = json.dumps([inputs.get('questions'), inputs.get('task')], sort_keys=True)
  return {
    **manifest['names'],
    'count': metrics['count'],
    'metrics': {
      # Without the questions that have no number.
      name: ends.get(name, {}).get('mean') if value is None else value
      for name, value in metrics.items()
      if name != 'count' and not isinstance(value, dict)
    },
    'intervals': ends,
    'of_intervals': made_with,
    **{n: value for n, value in metrics.items() if isinstance(value, dict) and n != 'of'},
    'run': manifest['run'],
    'step': inputs['checkpoint']['step'],
    'checkpoint_fingerprint': inputs['checkpoint'].get('fingerprint'),
    # Cells of the same have the same questions in the same order.
    'asked': hashlib.sha256(asked.encode()).hexdigest()[:16],
    'outdated': wanted and wanted.why_outdated(manifest),
    'index_id': index.get('id'),
    'generation': index.get('generation'),
    **{name: manifest.get(name) for name in ('index_passages', 'index_bytes', 'search_ms')},
    'seconds': manifest['seconds'],
    'date': manifest['date'],
    'folder': os.path.relpath(folder, output),
  }


def write_results(
  output: str | os.PathLike[str], wanted: Wanted | None = None, options: TableOptions | None = None
) -> list[Row]:
  """Rebuilds results.jsonl, as `read_cells` has it; returns its rows."""
  rows = read_cells(output, wanted, options)
  text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  os.makedirs(output, exist_ok=True)
  atomic_files.write(os.path.join(output, RESULTS), text)
  return rows
