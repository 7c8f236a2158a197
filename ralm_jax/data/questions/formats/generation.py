"""Sets whose answers are sentences, as published.

ms_marco  MS MARCO's question answering set (Nguyen et al. 2016), one object of columns, each from
          record to value, or one object a line. Well formed answers take the place of the others
          where there are any; questions answered by 'No Answer Present.' alone are left out
jeopardy  Jeopardy question generation (Lewis et al. 2020, section 3.3): the answer entity asks and
          the clue is the answer; one array, or one object a line. Clues of nothing but a picture
          or a sound are left out
"""

from collections.abc import Iterator
import html
import re
from typing import Any

from ralm_jax.data.questions.formats import records
from ralm_jax.data.questions.formats.records import Fields, OnError, Record, RecordFormat
from ralm_jax.files import byte_streams
from ralm_jax.files.json_records import JsonReader

_MS_MARCO_COLUMNS = ('query', 'query_id', 'answers', 'wellFormedAnswers')
_NO_ANSWER = 'No Answer Present.'
_TAG = re.compile(r'</?[a-zA-Z][^>]*>')


def _ms_marco(fields: Fields) -> dict[str, Any] | None:
  row = {'question': fields.text('query'), **fields.id('query_id', 'id')}
  answers = fields.texts('answers')
  well_formed = _answered(fields.texts('wellFormedAnswers') or [])
  if well_formed:
    return {**row, 'answers': well_formed}
  if answers is None:
    if fields.require_answers:
      raise fields.missing('answers')
    return row  # The blind test set.
  answers = _answered(answers)
  return {**row, 'answers': answers} if answers else None


def _answered(answers: list[str]) -> list[str]:
  return [answer for answer in answers if answer.strip() != _NO_ANSWER]


def _jeopardy(fields: Fields) -> dict[str, Any] | None:
  answer = fields.text('answer')
  # An answer may be mark-up itself, such as the name of a tag.
  row = {'question': _plain(answer) or answer, **fields.id('id')}
  if not fields.require_answers and all(fields.get(name) is None for name in ('question', 'clue')):
    return row
  clue = fields.text('question', 'clue').strip()
  if len(clue) > 1 and clue[0] == clue[-1] == "'":
    clue = clue[1:-1]  # The published file quotes every clue.
  clue = _plain(clue)
  return {**row, 'answers': [clue]} if clue else None


def _plain(text: str) -> str:
  """Without the mark-up of clues that showed a picture or played a sound."""
  return html.unescape(_TAG.sub('', text)).strip()


def _columns_or_lines(path: str, on_error: OnError = None) -> Iterator[Record]:
  """Records of an object of columns, or one a line."""
  columns = _columns(path) if _may_be_columns(path) else None
  if columns is None:
    yield from records.lines(path, on_error)
    return
  for number, key in enumerate(columns['query'], start=1):
    row = {name: column[key] for name, column in columns.items() if key in column}
    if row.get('query_id') is None:
      row['query_id'] = key
    yield Record(number, f'{path}: record {key!r}', row)


def _may_be_columns(path: str) -> bool:
  """Whether the file begins with an object whose first value is an object."""
  try:
    with byte_streams.open_bytes(path) as file:
      reader = JsonReader(file, path)
      for _ in reader.members():
        return reader.peek() == '{'
  except ValueError:
    pass  # Damaged, or no object: whoever reads on reports it.
  return False


def _columns(path: str) -> dict[str, dict[str, Any]] | None:
  """The columns we use, past the passages; None if the object is a record, not a table."""
  columns: dict[str, dict[str, Any]] = {}
  with byte_streams.open_bytes(path) as file:
    reader = JsonReader(file, path)
    for name in reader.members():
      if reader.peek() != '{':
        return None
      if name in columns:
        raise ValueError(f'{path}: column {name!r} is there twice; make one of both')
      column = {}
      for key in reader.members():
        value = reader.value(f'{name} of record {key!r}')
        if name in _MS_MARCO_COLUMNS:
          column[key] = value
      columns[name] = column
    reader.end()
  columns = {n: columns[n] for n in columns if n in _MS_MARCO_COLUMNS}
  if 'query' not in columns:
    raise ValueError(
      f"{path}: missing column 'query'; found {', '.join(map(repr, columns)) or 'none of MS MARCO'}"
    )
  return columns


FORMATS = (
  RecordFormat(
    'ms_marco',
    'questions of MS MARCO, columns or lines, with answers',
    _ms_marco,
    _columns_or_lines,
    'generation',
  ),
  RecordFormat(
    'jeopardy',
    'an array of clues, or one clue a line',
    _jeopardy,
    records.array_or_lines,
    'question_generation',
  ),
)
