"""Reading the question files that users bring.

One JSON object a line:

  {"question": "...", "answers": ["...", ...],          # required
   "id": "...", "target": "...",                        # optional
   "gold_passage_id": "..." or "gold_passage_ids": ["...", ...],
   "exclude_passage_ids": ["...", ...],  # never shown, such as its own source
   "date": "YYYY-MM-DD",                 # nothing later, or undated, is shown
   "options": ["...", ...],              # multiple choice; answers: ["B"]
   "passages": [{"title": "...", "text": "...", "id": "..."}, ...],
   "provenance": [["page id", ...], ...],   # alternative sets of evidence
   "group": "...",                       # metrics are also given by group
   "patterns": true,                     # the answers are regular expressions
   "metadata": {...},                    # carried to predictions.jsonl
   "metrics": "..."}                     # what an answer is scored by

In place of `answers` the names that other data sets use are read as well: `golden_answers`
(FlashRAG's copies of DPR's data), `answer` (a string, or a list as in NQ-open), or `target` alone
(Atlas). A date may be a year or a month alone, and is then read as its first day (`dates.py`).

Published data sets of other layouts are read by naming their `record_format`
(`formats/catalogue.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import logging
import os
from typing import Any

from ralm_jax.data import dates
from ralm_jax.data.questions import rows
from ralm_jax.data.questions.formats import catalogue
from ralm_jax.data.questions.formats.records import Record
from ralm_jax.data.questions.rows import FilePassage
from ralm_jax.files import input_files, json_records
from ralm_jax.files.input_files import Path

_ERRORS_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Question:
  """One question as the user's file has it."""

  id: str  #: unique among the questions read together
  question: str
  answers: tuple[str, ...]  #: acceptable answers, as written; () only if answers were not required
  #: ids of the passages that hold the answer; () when the data name none
  gold_passage_ids: tuple[str, ...]
  line: int  #: 1-based line in `path`; of a file that is one JSON value, the number of the record
  path: str = ''  #: the file it came from
  target: str | None = None  #: the one answer to train on where the file names it, else None
  exclude_passage_ids: tuple[str, ...] = ()  #: ids of passages that must not be shown
  date: str | None = None  #: as written, when the question was asked; None where it is not known
  #: of a multiple choice, whose answer is a letter; () of any other question
  options: tuple[str, ...] = ()
  passages: tuple[FilePassage, ...] = ()
  #: alternative sets of ids of the pages that hold the evidence
  provenance: tuple[tuple[str, ...], ...] = ()
  group: str = ''  #: that metrics are also given for, such as MMLU's subject; '' for none
  patterns: bool = False  #: whether the answers are regular expressions
  #: JSON values, carried to the predictions
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
  #: what the answer is scored by, one of `METRICS_FAMILIES`; '' leaves it open.
  metrics: str = ''
  source_id: str = ''  #: the id as written where `id` is a numbered one ('x' of 'x#2'), else ''

  @property
  def max_date(self) -> int:
    """The latest day a passage may be of; `dates.NO_DATE_BOUND` for any."""
    return dates.NO_DATE_BOUND if self.date is None else dates.first_day(self.date)


def fingerprint(questions: Sequence[Question]) -> str:
  """Tells what is trained on apart by content, wherever the files lie and whatever their names."""
  digest = hashlib.sha256()
  for one in questions:
    asked = (one.question, one.answers, one.target, one.options, one.patterns)
    shown = (one.exclude_passage_ids, one.gold_passage_ids, one.date)
    digest.update(repr((asked, shown)).encode('utf-8', 'surrogatepass'))
  return f'{len(questions)} questions of SHA-256 {digest.hexdigest()[:16]}'


def question_of(
  record: Record, path: str, name: str, require_answers: bool, metrics: str
) -> Question:
  """The question of a record; ValueError, with file and line, for a field at fault."""
  fields = rows.parse(record.row, record.where, f'{name}:{record.number}', require_answers, metrics)
  return Question(line=record.number, path=path, **fields)


def read_questions(
  paths: Path | Iterable[Path],
  *,
  require_answers: bool = True,
  duplicate_ids: str = 'error',
  record_format: str = 'qa',
  on_error: str = 'raise',
) -> list[Question]:
  """Reads questions from files, plain or gzipped (told by content).

  Files are read in the order given, a glob's matches by name, each file once. A question without
  `id` gets 'FILE:LINE' (the path where two files share a name). Blank answers ('') are dropped.

  Args:
    require_answers: otherwise a question without an answer has `answers == ()`.
    duplicate_ids: 'error', or 'number' to make the second 'x' into 'x#2'.
    record_format: one of `catalogue.FORMATS`; 'qa' is one JSON object a line as above.
    on_error: 'raise', or 'skip' to leave malformed records out; the log says how many, and names
      the first. A file that is damaged as a whole, such as one cut short, is an error in any case.

  Raises:
    FileNotFoundError: a file is missing or a glob matches nothing.
    ValueError: an unknown format, or a file, line or field at fault; starts with file:line.
  """
  for option, value, known in (
    ('duplicate_ids', duplicate_ids, ('error', 'number')),
    ('on_error', on_error, ('raise', 'skip')),
  ):
    if value not in known:
      raise ValueError(f'{option} is {value!r}; it must be {known[0]!r} or {known[1]!r}')
  found_format = catalogue.find(record_format)
  files = input_files.expand_inputs(paths)
  names = [os.path.basename(path) for path in files]
  questions: list[Question] = []
  places: dict[str, str] = {}
  for path, name in zip(files, names):
    if names.count(name) > 1:
      name = path
    before = len(questions)
    skipped: list[ValueError] = []
    skip = skipped.append if on_error == 'skip' else None
    seen: set[str] = set()
    for record in found_format.records(path, require_answers, skip):
      try:
        question = question_of(record, path, name, require_answers, found_format.metrics)
        if new := record.row.keys() - seen:
          json_records.warn_of_misspelt(record.row, rows.FIELDS, f'{record.where} (and on)')
          seen |= new
        if question.id in places and duplicate_ids == 'error':
          raise ValueError(
            f"{record.where}: field 'id': {question.id!r} is already the id of "
            f'{places[question.id]}; make ids unique or leave them out '
            "(in Python: duplicate_ids='number')"
          )
      except ValueError as error:
        if skip is None:
          raise
        skip(error)
        continue
      if question.id in places:
        question = dataclasses.replace(
          question, id=_numbered(question.id, places), source_id=question.id
        )
      places[question.id] = record.where
      questions.append(question)
    if skipped:
      examples = '; '.join(map(str, skipped[:_ERRORS_SHOWN]))
      more = '; …' if len(skipped) > _ERRORS_SHOWN else ''
      logging.warning('%s: left out %d malformed records: %s%s', path, len(skipped), examples, more)
    if len(questions) == before:
      raise ValueError(f'{path}: holds no questions; expected {found_format.expected}')
  return questions


def _numbered(taken: str, places: dict[str, str]) -> str:
  number = 2
  while f'{taken}#{number}' in places:
    number += 1
  return f'{taken}#{number}'
