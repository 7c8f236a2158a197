"""predictions.jsonl and metrics.json: written once, resumed where cut short."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping
import json
import logging
import os
import pathlib
from typing import Any

import jax

from ralm_jax.evaluation import gathering, summary
from ralm_jax.files import atomic_files, json_records

Record = dict[str, Any]
METRICS = 'metrics.json'


def write(
  predict: Callable[..., Iterator[Record]],
  output: str | os.PathLike[str] | None,
  *,
  metrics: str = 'qa',
  resume_as: str | None = None,
  batch_size: int = 1,
  about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes predictions and their metrics into a folder; None writes none.

  `predict` gives the records of this process in order, without those of the first
  `done` batches; a whole batch has `batch_size` of them. `resume_as` names all that
  decides the records: what an interrupted call of the same name has written is taken
  over; None begins anew. `about` says whose
  predictions they are, `of` in metrics.json. Returns `summary.summarize` of all processes' records.
  """
  if output is None:
    return _summarized([summary.counted(record) for record in predict()], metrics)
  os.makedirs(output, exist_ok=True)
  name = 'predictions.jsonl'
  if jax.process_count() > 1:
    name += f'-{jax.process_index():05}-of-{jax.process_count():05}'
  path = os.path.join(output, name)
  before = [] if resume_as is None else _resumable(path + '.partial', resume_as, batch_size)
  if jax.process_count() > 1:
    # All go on with the same batch, or they would wait for each other forever.
    done = min(gathering.gather([len(before) // batch_size]))
    before = before[: done * batch_size]
  if before:
    logging.info('%s: going on behind %d predictions', path, len(before))
  records = [summary.counted(record) for record in before]
  indexes = collections.Counter(record['index'] for record in before)
  _write_lines(path + '.partial', before, resume_as)
  # Nothing of an earlier evaluation stands beside what begins now.
  for former in (path, os.path.join(output, METRICS)):
    pathlib.Path(former).unlink(missing_ok=True)
  with open(path + '.partial', 'a', encoding='utf-8') as file:
    for record in predict(done=len(before) // batch_size):
      indexes[record['index']] += 1
      records.append(summary.counted(record))
      file.write(_line(record))
      if len(records) % batch_size == 0:
        file.flush()
  if len(indexes) > 1:
    logging.warning(
      'Another index was served meanwhile, and the metrics are averages over the answers '
      'from all: %s.',
      ', '.join(f'{count} from index {index}' for index, count in indexes.items()),
    )
  means = {**_summarized(records, metrics), **({'of': dict(about)} if about else {})}
  if jax.process_index() == 0:
    atomic_files.write_json(os.path.join(output, METRICS), json_records.finite(means), indent=2)
  # Last: what was killed before goes on from the partial file.
  atomic_files.move(path + '.partial', path)
  pathlib.Path(path + '.partial.name').unlink(missing_ok=True)
  return means


def _summarized(records: list[Record], metrics: str) -> dict[str, Any]:
  """Over all processes; the log says what is to be known of the numbers."""
  means = summary.summarize(gathering.gather(records), metrics)
  if jax.process_index() == 0:
    for note in summary.notes(means):
      logging.warning('%s.', note)
  return means


def read(path: str | os.PathLike[str]) -> list[Record]:
  """The records of a predictions.jsonl; ValueError names a line that is no JSON object."""
  return [row for _, row in json_records.read_json_lines(os.fspath(path))]


def _resumable(path: str, name: str, batch_size: int) -> list[Record]:
  """The records of whole batches that a call of this name has written."""
  try:
    if pathlib.Path(path + '.name').read_text('utf-8') != name:
      logging.info('%s is of another evaluation, or an older version: beginning anew', path)
      return []
    lines = pathlib.Path(path).read_text('utf-8').split('\n')
  except (FileNotFoundError, UnicodeDecodeError):
    return []
  records = []
  for line in lines[:-1]:  # What no newline ends was cut short.
    try:
      records.append(json.loads(line))
    except ValueError:
      break
  return records[: len(records) - len(records) % batch_size]


def _write_lines(path: str, records: list[Record], name: str | None) -> None:
  """Begins a partial file; the name is written last, when the lines are true."""
  pathlib.Path(path + '.name').unlink(missing_ok=True)
  atomic_files.write(path, ''.join(map(_line, records)))
  if name is not None:
    atomic_files.write(path + '.name', name)


def _line(record: Record) -> str:
  return json.dumps(json_records.finite(record), ensure_ascii=False) + '\n'
