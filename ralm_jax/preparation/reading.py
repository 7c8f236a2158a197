"""Reads published files one question at a time, and counts what it leaves out."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import os
import re
from typing import Any

from ralm_jax.data.questions import reading
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.data.questions.formats.records import OnError, Record
from ralm_jax.data.questions.reading import Question
from ralm_jax.files import progress as progress_lib

_MAX_REASONS = 50
_REASON_LENGTH = 120
_EXAMPLES = 5

# (path, on_error) to the records of a file.
Records = Callable[[str, OnError], Iterable[Record]]


@dataclasses.dataclass
class Tally:
  """What became of the records of one part."""

  read: int = 0
  renamed: int = 0  # Those read whose id another one already had.
  skipped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  # The first errors, with file and line.
  examples: list[str] = dataclasses.field(default_factory=list)

  def skip(self, error: ValueError, path: str) -> None:
    """Counts an error under what it says, without its file and line."""
    message = str(error)
    if len(self.examples) < _EXAMPLES:
      self.examples.append(message)
    reason = re.sub(rf'^{re.escape(path)}(:\d+|: record [^:]+)?: ', '', message)
    reason = reason.split('; ')[0][:_REASON_LENGTH]
    if reason not in self.skipped and len(self.skipped) >= _MAX_REASONS:
      reason = 'other'
    self.skipped[reason] += 1

  def to_json(self) -> dict[str, Any]:
    """For the manifest."""
    return {
      'read': self.read,
      'renamed_ids': self.renamed,
      'skipped': dict(self.skipped),
      'examples': self.examples,
    }


class Reader:
  """Reads the parts of a benchmark.

  Attributes:
    tallies: by role.
  """

  def __init__(self, on_error: str = 'raise', *, progress: bool = True):
    """Reads nothing yet.

    Args:
      on_error: 'raise', or 'skip' to count malformed records and go on. A
        damaged file is an error all the same.

    Raises:
      ValueError: `on_error` is neither.
    """
    if on_error not in ('raise', 'skip'):
      raise ValueError(f"on_error is {on_error!r}; it must be 'raise' or 'skip'")
    self._skips = on_error == 'skip'
    self._progress = progress
    self.tallies: dict[str, Tally] = {}

  def questions(
    self,
    role: str,
    paths: Sequence[str],
    record_format: str,
    require_answers: bool = True,
    records: Records | None = None,
  ) -> Iterator[Question]:
    """Questions of one part.

    An id that occurs again becomes 'id#2', as published files have them. A
    question without an id gets 'FILE:LINE' of its file.

    Args:
      record_format: one of `catalogue.FORMATS`.
      records: how to read a file, if not by that.

    Raises:
      ValueError: a malformed record, unless they are skipped; a file that is
        damaged or cut short; not one question in all the files.
    """
    tally = self.tallies[role] = Tally()
    ids: set[str] = set()
    known = catalogue.find(record_format)

    def default(path: str, on_error: OnError) -> Iterable[Record]:
      return known.records(path, require_answers, on_error)

    with progress_lib.bar(
      desc=f'reading {role}',
      unit=' questions',
      show=self._progress,
      total=_lines(paths) if self._progress else None,
    ) as bar:
      for path in paths:

        def skip(error: ValueError, path: str = path) -> None:
          tally.skip(error, path)

        for record in (records or default)(path, skip if self._skips else None):
          try:
            question = reading.question_of(
              record, path, os.path.basename(path), require_answers, known.metrics
            )
          except ValueError as error:
            if not self._skips:
              raise
            skip(error)
            continue
          question = self._unique(question, ids, tally)
          tally.read += 1
          bar.update()
          yield question
    if not tally.read:
      raise ValueError(
        f'{", ".join(paths)}: no question could be read as {record_format}'
        + (f'; {tally.examples[0]}' if tally.examples else '')
      )

  @staticmethod
  def _unique(question: Question, ids: set[str], tally: Tally) -> Question:
    name, number = question.id, 1
    while name in ids:
      number += 1
      name = f'{question.id}#{number}'
    ids.add(name)
    if name == question.id:
      return question
    tally.renamed += 1
    return dataclasses.replace(question, id=name, source_id=question.id)


def _lines(paths: Sequence[str]) -> int | None:
  """How many records there are, where that is quickly told."""
  lines = 0
  for path in paths:
    if not path.endswith('.jsonl'):
      return None
    with open(path, 'rb') as file:
      while chunk := file.read(1 << 22):
        lines += chunk.count(b'\n')
  return lines
