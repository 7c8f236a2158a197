"""Leakage: what evaluation questions share with training data and a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import time
from typing import Any

import numpy as np

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.questions import reading
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.data.questions.reading import Question
from ralm_jax.evaluation import overlap
from ralm_jax.evaluation.overlap import CorpusMatch, CorpusScan, Settings
from ralm_jax.files import atomic_files, input_files, json_records, progress as progress_lib

_SAVE_PERIOD_S = 30.0


def report(
  *,
  questions: str | Sequence[str],
  output: str | os.PathLike,
  record_format: str = 'qa',
  training: str | Sequence[str] | None = None,
  training_format: str | None = None,
  corpus: str | None = None,
  predictions: str | None = None,
  span_share: float = 0.75,
  word_overlap: float = 0.8,
  min_words: int = 5,
  chunk_size: int = 4096,
  on_error: str = 'raise',
  progress: bool = True,
) -> dict[str, Any]:
  """Writes which questions of an evaluation set are known from elsewhere.

  `output` gets a line a question; beside it are written `NAME.summary.json` and
  `NAME.clean_ids.json`, the list of the ids that are clean. The scan of a
  corpus goes on where it was interrupted.

  Args:
    questions: files or globs of the evaluation set.
    output: NAME.jsonl, replaced if it is there.
    record_format: of the questions.
    training: files or globs of training questions.
    training_format: of those; None for that of the questions.
    corpus: folder of a corpus.
    predictions: a predictions.jsonl of these questions, whose mean metrics over
      clean and other questions go into the summary.
    span_share: see `leakage.Settings`.
    word_overlap: see `leakage.Settings`.
    min_words: see `leakage.Settings`.
    chunk_size: passages at a time.
    on_error: 'raise', or 'skip' to leave out malformed records.
    progress: show a bar.

  Returns:
    The summary.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: neither training data nor a corpus is named, a file is
      malformed, or what is written would replace a file that is read.
  """
  if not training and not corpus:
    raise ValueError('name what the questions are compared with: --training, --corpus, or both')
  settings = Settings(word_overlap, span_share, min_words)
  output = pathlib.Path(output)
  _refuse_replacing(
    _written(output),
    [
      *input_files.expand_inputs(questions),
      *(input_files.expand_inputs(training) if training else []),
      *([predictions] if predictions else []),
    ],
  )
  rows = _read(questions, record_format, on_error)
  trained = scan = None
  if training:
    trained = overlap.training_matches(
      rows,
      progress_lib.bar(
        _read(training, training_format or record_format, on_error),
        show=progress,
        desc='training questions',
        unit=' questions',
      ),
      settings,
    )
  if corpus:
    scan = _scan(rows, settings, corpus, chunk_size, _written(output)[1], progress)
  found = overlap.report_rows(rows, trained, scan)
  summary = overlap.summarize(found)
  if predictions:
    summary['scores'] = overlap.scores_by_cleanness(found, _predictions(predictions))
  summary['settings'] = dataclasses.asdict(settings)
  output.parent.mkdir(parents=True, exist_ok=True)
  atomic_files.write(
    output, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in found).encode()
  )
  _, partial, *beside = _written(output)
  clean = [row['id'] for row in found if row['clean']]
  for path, value in zip(beside, (summary, clean), strict=True):
    atomic_files.write(path, (json.dumps(value, ensure_ascii=False, indent=1) + '\n').encode())
  partial.unlink(missing_ok=True)
  return summary


def _written(output: pathlib.Path) -> list[pathlib.Path]:
  """What a report writes: itself, its partial scan, summary and clean ids."""
  name = output.name.removesuffix('.jsonl')
  return [
    output,
    *map(
      output.with_name, (f'{output.name}.partial', f'{name}.summary.json', f'{name}.clean_ids.json')
    ),
  ]


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


def _read(paths: str | Sequence[str], record_format: str, on_error: str) -> list[Question]:
  # As eval reads them, whose predictions name questions by these ids.
  return reading.read_questions(
    paths,
    require_answers=False,
    duplicate_ids='number',
    record_format=record_format,
    on_error=on_error,
  )


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
  atomic_files.write(
    partial,
    json.dumps(
      {
        **identity,
        'rows': rows,
        'matches': {
          str(number): dataclasses.asdict(match) for number, match in scan.matches.items()
        },
      }
    ).encode(),
  )


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


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Reports leakage from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument(
    '--questions',
    required=True,
    nargs='+',
    metavar='FILE',
    help='the evaluation set; globs allowed',
  )
  parser.add_argument('--record_format', choices=catalogue.RECORD_FORMATS, default='qa')
  parser.add_argument('--training', nargs='+', metavar='FILE', help='training questions')
  parser.add_argument(
    '--training_format',
    choices=catalogue.RECORD_FORMATS,
    help='of the training questions; default that of the questions',
  )
  parser.add_argument('--corpus', metavar='CORPUS', help='folder of a corpus')
  parser.add_argument(
    '--predictions',
    metavar='predictions.jsonl',
    help='of these questions; their metrics are given for clean questions too',
  )
  parser.add_argument('--output', required=True, metavar='NAME.jsonl')
  parser.add_argument(
    '--span_share',
    type=float,
    default=0.75,
    help='a passage holds a question if one run of its words is so much of it',
  )
  parser.add_argument(
    '--word_overlap',
    type=float,
    default=0.8,
    help='two questions are near copies from this Jaccard similarity on',
  )
  parser.add_argument(
    '--min_words', type=int, default=5, help='shorter questions are not looked for in the corpus'
  )
  parser.add_argument('--on_error', choices=('raise', 'skip'), default='raise')
  arguments = parser.parse_args(argv)
  summary = report(**vars(arguments))
  _print(summary)
  print(f'written to {arguments.output}, and its summary and clean_ids beside it')


def _print(summary: dict[str, Any]) -> None:
  count = summary['count']
  for name, value in summary.items():
    if isinstance(value, int):
      share = '' if name == 'count' else f'{value / count:8.1%}'
      print(f'{name:<22}{value:>9,}{share}')
  for part, scores in summary.get('scores', {}).items():
    shown = '  '.join(
      f'{name} {value:.4f}' for name, value in scores.items() if isinstance(value, float)
    )
    print(f'{part:<22}{scores["count"]:>9,}  {shown}')
