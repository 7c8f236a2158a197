"""MMLU's files (Hendrycks et al. 2021) as the authors publish them.

A csv without a header, one question a record: question, four options and the
letter of the right one. The subject is the file's name without its split
(`astronomy_test.csv`). Questions may hold line breaks within quotation marks.
"""

from collections.abc import Iterator
import csv
import os
from typing import Any

from ralm_jax.data.questions.formats.records import Fields, OnError, Record, RecordFormat
from ralm_jax.files import json_records

_LETTERS = 'ABCD'
_SPLITS = ('_dev', '_test', '_val', '_valid', '_train')


def subject(path: str) -> str:
  """The subject that a file's name says: 'astronomy' of astronomy_test.csv."""
  name = os.path.basename(path).removesuffix('.gz').removesuffix('.csv')
  for split in _SPLITS:
    if name.endswith(split):
      return name.removesuffix(split)
  return name


def _records(path: str, on_error: OnError = None) -> Iterator[Record]:
  """Records numbered by their first lines; an open quotation is raised in any case."""
  # Strict, or a stray quotation mark would make one record of two.
  reader = csv.reader(
    (
      # A wrong byte must not end the reading: it is reported with its record.
      content.decode('utf-8', 'surrogateescape')
      for _, content in json_records.LineReader(path)
    ),
    strict=True,
  )
  line, group = 1, subject(path)
  while True:
    where = f'{path}:{line}: malformed csv:'
    try:
      columns = next(reader)
      if columns:
        yield Record(line, f'{path}:{line}', {'columns': columns, 'group': group})
    except StopIteration:
      return
    except csv.Error as error:
      if 'unexpected end' in str(error):
        raise ValueError(
          f'{where} a quotation mark is left open, and the rest of the file is within it'
        ) from error
      wrong = ValueError(
        f'{where} {error}; a quotation mark within a text is written twice, within quotation marks'
      )
      if on_error is None:
        raise wrong from error
      on_error(wrong)
    line = reader.line_num + 1


def _row(fields: Fields) -> dict[str, Any]:
  columns = fields.get('columns')
  for number, column in enumerate(columns, start=1):
    if any('\udc80' <= character <= '\udcff' for character in column):
      raise fields.wrong(f'column {number} is not UTF-8; convert the file to UTF-8')
  if len(columns) != len(_LETTERS) + 2:
    raise fields.wrong(
      f'found {len(columns)} columns, expected {len(_LETTERS) + 2}: '
      f'question,{",".join(_LETTERS)},letter; a comma or a quotation mark '
      'within a text needs quotation marks around it'
    )
  question, *options, letter = columns
  if not question.strip():
    raise fields.wrong('the question (column 1) is blank')
  for name, option in zip(_LETTERS, options):
    if not option.strip():
      raise fields.wrong(f'option {name} is blank; a question needs all of {", ".join(_LETTERS)}')
  row = {'question': question, 'options': options, **fields.rest('group')}
  letter = letter.strip()
  if not letter and not fields.require_answers:
    return row
  if len(letter) != 1 or letter not in _LETTERS:
    raise fields.wrong(
      f'the answer (column {len(columns)}) is {letter!r:.40}; '
      f"expected one of {', '.join(_LETTERS)}. MMLU's files have no header"
    )
  return {**row, 'answers': [letter]}


MMLU = RecordFormat(
  'mmlu', 'records of question,A,B,C,D,letter, without a header', _row, _records, 'multiple_choice'
)
FORMATS = (MMLU,)
