"""What evaluation questions share with training data and a corpus: the report.

`overlap` has the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import logging
import os
import pathlib
import time
from typing import Any

import numpy as np

from ralm_jax.data.corpus.passage_ids import RowsOfIds
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import overlap
from ralm_jax.evaluation.overlap import CorpusMatch, CorpusScan, Settings
from ralm_jax.evaluation.task import QuestionOptions
from ralm_jax.files import atomic_files, input_files, json_records, progress as progress_lib

_SAVE_PERIOD_S = 30.0


def report(
  questions: QuestionOptions,
  output: str | os.PathLike,
  *,
  training: QuestionOptions | None = None,
  corpus: str | None = None,
  predictions: str | None = None,
  settings: Settings = Settings(),
  chunk_size: int = 4096,
  progress: bool = True,
) -> dict[str, Any]:
  """Writes which questions of an evaluation set are known from elsewhere.

  The output, NAME.jsonl, gets a line a question; beside it are written `NAME.summary.json`, which
  is returned, and `NAME.clean_ids.json`, the list of the ids that are clean. The mean metrics of
  `predictions`, a predictions.jsonl of these questions, go into the summary, over clean and other
  questions. The scan of a corpus goes on where it was interrupted.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: neither training data nor a corpus is named, a file is
      malformed, or what is written would replace a file that is read.
  """
  if not training and not corpus:
    raise ValueError('name what the questions are compared with: --training, --corpus, or both')
  output = pathlib.Path(output)
  name = output.name.removesuffix('.jsonl')
  beside = (f'{output.name}.partial', f'{name}.summary.json', f'{name}.clean_ids.json')
  partial, summary_file, clean_file = map(output.with_name, beside)
  read = [predictions] if predictions else []
  for options in filter(None, (questions, training)):
    read += input_files.expand_inputs(options.questions)
  _refuse_replacing([output, partial, summary_file, clean_file], read)
  rows = _read(questions)
  trained = scan = None
  if training:
    others = _read(training)
    bar = progress_lib.bar(others, show=progress, desc='training questions', unit=' questions')
    trained = overlap.training_matches(rows, bar, settings)
  if corpus:
    scan = _scan(rows, settings, corpus, chunk_size, partial, progress)
  found = overlap.report_rows(rows, trained, scan)
  summary = overlap.summarize(found)
  if predictions:
    summary['scores'] = overlap.scores_by_cleanness(found, _predictions(predictions))
  summary['settings'] = dataclasses.asdict(settings)
  output.parent.mkdir(parents=True, exist_ok=True)
  atomic_files.write(output, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in found))
  clean = [row['id'] for row in found if row['clean']]
  for path, value in ((summary_file, summary), (clean_file, clean)):
    atomic_files.write_json(path, value, ensure_ascii=False, indent=1)
  partial.unlink(missing_ok=True)
  return summary


def _read(options: QuestionOptions) -> list[Question]:
  # As eval reads them, whose predictions name questions by these ids.
  return dataclasses.replace(options, require_answers=False).read()


def _refuse_replacing(written: Sequence[pathlib.Path], read: Sequence[str]) -> None:
  inputs = {os.path.realpath(path): path for path in read}
  for path in written:
    replaced = inputs.get(os.path.realpath(path))
    if replaced is not None:
      raise ValueError(
        f'{path}: the report would replace {replaced}, which it is made of; name another output'
      )


def _predictions(path: str) -> Iterator[Mapping[str, Any]]:
  """The records of a predictions.jsonl, with id and metrics checked."""
  line = 0
  for line, row in json_records.read_json_lines(path):
    where = f'{path}:{line}'
    if not isinstance(row.get('id'), str):
      raise ValueError(
        f"{where}: field 'id' must be a string, found "
        f'{json_records.kind(row.get("id"))}; is this a predictions.jsonl?'
      )
    scores = row.get('metrics')
    if not isinstance(scores, dict | None):
      raise ValueError(
        f"{where}: field 'metrics' must be an object of numbers, found {json_records.kind(scores)}"
      )
    for name, value in (scores or {}).items():
      if not isinstance(value, int | float | None):
        raise ValueError(
          f"{where}: field 'metrics.{name}' must be a number or null, found "
          f'{json_records.kind(value)}'
        )
    yield row
  if not line:
    raise ValueError(f'{path}: holds no predictions')


def _scan(
  questions: Sequence[Question],
  settings: Settings,
  corpus: str,
  chunk_size: int,
  partial: pathlib.Path,
  progress: bool,
) -> CorpusScan:
  """Goes through a corpus, from where an interrupted scan of it was."""
  if chunk_size < 1:
    raise ValueError(f'chunk_size is {chunk_size}; it must be at least 1')
  store = PassageStore.open(corpus)
  rows_of = RowsOfIds(store)
  unknown = [ids for q in questions if (ids := rows_of.unknown(q.gold_passage_ids))]
  if unknown:
    logging.warning(
      f'{len(unknown):,} of {len(questions):,} questions name gold passages that {corpus} does not '
      f'have, such as {unknown[0][0]!r}: is it the corpus that they are of?'
    )
  rows_of([question.exclude_passage_ids for question in questions])  # says which are unknown
  scan = CorpusScan(questions, settings)
  identity = {'corpus': store.fingerprint, 'questions': overlap.digest(questions, settings)}
  start = _resume(scan, partial, identity)
  saved = time.monotonic()
  with progress_lib.bar(
    show=progress, desc='passages', unit=' passages', total=len(store), initial=start
  ) as bar:
    for first in range(start, len(store), chunk_size):
      stop = min(first + chunk_size, len(store))
      scan.add(store.passages(np.arange(first, stop)))
      bar.update(stop - first)
      if time.monotonic() - saved > _SAVE_PERIOD_S:
        _save(scan, partial, identity, stop)
        saved = time.monotonic()
  _save(scan, partial, identity, len(store))
  return scan


def _save(scan: CorpusScan, partial: pathlib.Path, identity: dict[str, str], rows: int) -> None:
  partial.parent.mkdir(parents=True, exist_ok=True)
  matches = {str(number): dataclasses.asdict(match) for number, match in scan.matches.items()}
  atomic_files.write_json(partial, {**identity, 'rows': rows, 'matches': matches})


def _resume(scan: CorpusScan, partial: pathlib.Path, identity: dict[str, str]) -> int:
  """Takes over what an interrupted scan found; returns its next row."""
  try:
    state = json.loads(partial.read_bytes())
  except FileNotFoundError:
    return 0
  if {name: state.get(name) for name in identity} != identity:
    return 0  # Of other questions, settings or passages.
  scan.matches = {int(number): CorpusMatch(**match) for number, match in state['matches'].items()}
  return state['rows']
