"""Which training questions a few-shot run sees: by hash, or by a list that somebody published."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any

from ralm_jax.data.questions.reading import Question
from ralm_jax.files import json_records


def choose(questions: Sequence[Question], shots: int, seed: int = 0) -> list[Question]:
  """The `shots` questions with the smallest SHA-256 of 'seed:id:question', in its order.

  The choice does not depend on the order of the questions, more shots contain the fewer, and other
  questions only ever take single places. An id made of file and line would change with the file,
  and counts as '' here; that is so of NQ-open, whose questions have no id. An id that occurs again
  counts as it is written, not as it is numbered.

  Raises:
    ValueError: there are fewer questions than shots.
  """
  if shots < 1:
    raise ValueError(f'shots is {shots}; it must be at least 1')
  if shots > len(questions):
    of_group = {question.group for question in questions} - {''}
    raise ValueError(
      f'shots is {shots}, but there are {len(questions)} questions to choose from'
      + (f' in group {of_group.pop()!r}' if len(of_group) == 1 else '')
      + '; give more or choose fewer'
    )
  # What decides between equal questions must not be their order either.
  return sorted(questions, key=lambda q: (_digest(q, seed), q.answers, q.options, q.target or ''))[
    :shots
  ]


def _digest(question: Question, seed: int) -> bytes:
  line = f':{question.line}'
  places = {os.path.basename(question.path) + line, question.path + line}
  written = question.source_id or question.id
  name = '' if written in places else written
  return hashlib.sha256(f'{seed}:{name}:{question.question}'.encode()).digest()


@dataclasses.dataclass(frozen=True)
class _Entry:
  """An entry of a list: a number of a line, from 0, or an id."""

  value: int | str
  where: str


def listed(questions: Sequence[Question], file: str | os.PathLike[str]) -> list[Question]:
  """The questions of one file that a list names, in its order.

  It is a JSON array, or one entry a line. A number is the line in the original file, counted from 0
  (of a file that is one JSON value: the record), as in the lists of Atlas and FiD; anything else,
  and a string of a JSON array, is an id. Blank lines do not count.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the list does not fit the questions; names the list with line or entry.
  """
  path = os.fspath(file)
  entries = _entries(path)
  if not entries:
    raise ValueError(f'{path}: lists no question')
  known: dict[int | str, Question] = {question.id: question for question in questions}
  if any(isinstance(entry.value, int) for entry in entries):
    files = sorted({question.path for question in questions})
    if len(files) > 1:
      raise ValueError(
        f'{path}: lists numbers of lines, which mean nothing in {len(files)} files ({files[0]}, '
        f'{files[1]}, ...); give the one file that the list was made for'
      )
    known |= {question.line - 1: question for question in questions}
  chosen: dict[int | str, Question] = {}
  for entry in entries:
    if entry.value not in known:
      what = (
        f'no question on line {entry.value} (counted from 0)'
        if isinstance(entry.value, int)
        else f'no question with id {entry.value!r:.60}'
      )
      source = f' in {questions[0].path}' if questions else ''
      raise ValueError(f'{entry.where}: there is {what}{source}')
    if entry.value in chosen:
      raise ValueError(f'{entry.where}: {entry.value!r:.60} is listed twice')
    chosen[entry.value] = known[entry.value]
  return list(chosen.values())


def _entries(path: str) -> list[_Entry]:
  lines = list(json_records.read_lines(path))
  text = '\n'.join(line for _, line in lines)
  if text.lstrip().startswith('['):
    return _array(path, text)
  return [
    _Entry(int(entry) if entry.isascii() and entry.isdigit() else entry, f'{path}:{line}')
    for line, entry in ((line, entry.strip()) for line, entry in lines)
    if entry
  ]


def _array(path: str, text: str) -> list[_Entry]:
  try:
    values: list[Any] = json.loads(text)
  except (ValueError, RecursionError) as error:
    line = getattr(error, 'lineno', 1)
    raise ValueError(f'{path}:{line}: malformed JSON: {error}') from error
  entries = []
  for number, value in enumerate(values, start=1):
    where = f'{path}: entry {number}'
    # bool is an int in Python, but true is no number of a line.
    if isinstance(value, bool) or not isinstance(value, (int, str)):
      raise ValueError(
        f'{where}: expected the number of a line or an id, found {json_records.kind(value)}'
      )
    if isinstance(value, int) and value < 0:
      raise ValueError(f'{where}: {value} is no line; they count from 0')
    entries.append(_Entry(value, where))
  return entries
