"""MMLU's files (Hendrycks et al. 2021) as the authors publish them.

A csv without a header, one question a record: question, four options and the
letter of the right one. The subject is the file's name without its split
(`astronomy_test.csv`). Questions may hold line breaks within quotation marks.
"""

from collections.abc import Callable, Iterator
import csv
import os

from ralm_jax.data.questions.formats.records import Record
from ralm_jax.files import json_records

EXPECTED = {'mmlu': 'records of question,A,B,C,D,letter, without a header'}

_LETTERS = 'ABCD'
_SPLITS = ('_dev', '_test', '_val', '_valid', '_train')


def records(
  path: str,
  record_format: str = 'mmlu',
  require_answers: bool = True,
  on_error: Callable[[ValueError], None] | None = None,
) -> Iterator[Record]:
  """Reads a csv file of MMLU.

  Args:
    path: plain or gzipped.
    record_format: 'mmlu'.
    require_answers: whether a blank letter is an error.
    on_error: called with the error of a malformed record, which is left out;
      None raises it. Damaged compression, or a quotation that never ends, is
      raised in any case.

  Yields:
    Records numbered by their first line, with `question`, `options`, `answers`
    (the letter) and `group` (the subject).

  Raises:
    ValueError: an unknown format, a damaged file, or a malformed record: a
      number of columns other than six, a blank option, an unknown letter, or
      text that is not UTF-8. The message starts with file:line.
  """
  if record_format not in EXPECTED:
    raise ValueError(f'record_format is {record_format!r}; this module reads {", ".join(EXPECTED)}')
  group = subject(path)
  for line, fields in _csv_records(path):
    where = f'{path}:{line}'
    try:
      if isinstance(fields, ValueError):
        raise fields
      row = _row(fields, where, require_answers)
    except ValueError as error:
      if on_error is None:
        raise
      on_error(error)
      continue
    yield Record(line, where, {**row, 'group': group})


def subject(path: str) -> str:
  """The subject that a file's name says: 'astronomy' of astronomy_test.csv."""
  name = os.path.basename(path).removesuffix('.gz').removesuffix('.csv')
  for split in _SPLITS:
    if name.endswith(split):
      return name.removesuffix(split)
  return name


def _csv_records(path: str) -> Iterator[tuple[int, list[str] | ValueError]]:
  """The first line of each record, and its fields or what is wrong with it.

  Empty lines are none.
  """
  # Strict, or a stray quotation mark would make one record of two.
  reader = csv.reader(
    (
      # A wrong byte must not end the reading: it is reported with its record.
      content.decode('utf-8', 'surrogateescape')
      for _, content in json_records.read_lines(path)
    ),
    strict=True,
  )
  line = 1
  while True:
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      message = f'{path}:{line}: malformed csv: {error}'
      if 'unexpected end' in str(error):
        raise ValueError(
          f'{path}:{line}: malformed csv: a quotation mark is left open, and '
          'the rest of the file is within it'
        ) from error
      fields = ValueError(
        f'{message}; a quotation mark within a text is written twice, within quotation marks'
      )
    if fields:
      yield line, fields
    line = reader.line_num + 1


def _row(fields: list[str], where: str, require_answers: bool) -> dict[str, str | list[str]]:
  for number, field in enumerate(fields, start=1):
    if any('\udc80' <= character <= '\udcff' for character in field):
      raise ValueError(f'{where}: column {number} is not UTF-8; convert the file to UTF-8')
  if len(fields) != len(_LETTERS) + 2:
    raise ValueError(
      f'{where}: found {len(fields)} columns, expected {len(_LETTERS) + 2}: '
      f'question,{",".join(_LETTERS)},letter; a comma or a quotation mark '
      'within a text needs quotation marks around it'
    )
  question, *options, letter = fields
  if not question.strip():
    raise ValueError(f'{where}: the question (column 1) is blank')
  for name, option in zip(_LETTERS, options):
    if not option.strip():
      raise ValueError(
        f'{where}: option {name} is blank; a question needs all of {", ".join(_LETTERS)}'
      )
  row = {'question': question, 'options': options}
  letter = letter.strip()
  if not letter and not require_answers:
    return row
  if len(letter) != 1 or letter not in _LETTERS:
    raise ValueError(
      f'{where}: the answer (column {len(fields)}) is {letter!r:.40}; '
      f"expected one of {', '.join(_LETTERS)}. MMLU's files have no header"
    )
  return {**row, 'answers': [letter]}
