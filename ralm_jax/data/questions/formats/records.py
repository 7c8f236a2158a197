"""Records of published question files: how they are laid out, and their fields.

A `RecordFormat` is a layout, which finds the records of a file (`lines`, `array_or_lines`, ...),
and a function that makes a row of our own of each record's `Fields`.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import logging
import os
from typing import Any

from ralm_jax.data.questions import answer_texts
from ralm_jax.files import byte_streams, json_records, tables
from ralm_jax.files.json_records import JsonReader, OnError

_TABLE_ENDINGS = ('.tsv', '.csv')
_JSON_ENDINGS = ('.json', '.jsonl')


@dataclasses.dataclass(frozen=True)
class Record:
  """One question in our layout; the number is its line's, from 1, or the record's in one value."""

  number: int
  where: str
  row: dict[str, Any]


class Fields:
  """The fields of a published record, checked as they are read."""

  def __init__(self, record: Record, require_answers: bool):
    self._row = record.row
    self._where = record.where
    self.require_answers = require_answers

  def text(self, *names: str) -> str:
    """The first of the fields that there is; it must not be blank."""
    name = self.first(*names)
    if name is None:
      raise self.missing(names[0])
    value = self._row[name]
    if not isinstance(value, str) or not value.strip():
      found = 'a blank one' if isinstance(value, str) else json_records.kind(value)
      raise self.error(name, f'must be a text, found {found}')
    return value

  def texts(self, name: str) -> list[str] | None:
    """Texts without blank ones, of a list or one text (a list written as text, too); or None."""
    value = self._row.get(name)
    if isinstance(value, str):
      value = listed(value)
      if not value:
        return None
    if value is None:
      return None
    return [text for text in self._all(name, value, str, 'strings') if text.strip()]

  def answers(self, *names: str) -> list[str] | None:
    """Texts of the first of the fields that there is, without blank ones; None without any."""
    name = self.first(*names)
    if name is None:
      if self.require_answers:
        raise self.missing(names[0])
      return None
    value = self._row[name]
    if isinstance(value, str):
      listed = answer_texts.listed(value)
      return [value] if listed is None else listed
    return self.texts(name)

  def objects(self, name: str) -> list['Fields'] | None:
    """The fields of each object in a list; None if there is no such field."""
    value = self._row.get(name)
    if value is None:
      return None
    objects = self._all(name, value, dict, 'objects')
    return [self._inside(f'{name}[{i}]', one) for i, one in enumerate(objects)]

  def _all(self, name: str, value: Any, kind: type, kinds: str) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
      raise self.error(
        name,
        f'must be a list of {kinds}, found {json_records.kind(value)}'
        + (' of other things' if isinstance(value, list) else ''),
      )
    return value

  def object(self, name: str) -> 'Fields':
    """The fields of an object that must be there."""
    value = self._row.get(name)
    if value is None:
      raise self.missing(name)
    if not isinstance(value, dict):
      raise self.error(name, f'must be an object, found {json_records.kind(value)}')
    return self._inside(name, value)

  def _inside(self, name: str, row: dict[str, Any]) -> 'Fields':
    return Fields(Record(0, f'{self._where}: in {name!r}', row), self.require_answers)

  def first(self, *names: str) -> str | None:
    """The name of the first of the fields that there is."""
    return next((n for n in names if self._row.get(n) is not None), None)

  def get(self, name: str) -> Any:
    return self._row.get(name)

  def row(self) -> dict[str, Any]:
    return dict(self._row)

  def rest(self, *names: str) -> dict[str, Any]:
    """Those of the fields that there are, as written."""
    return {n: self._row[n] for n in names if self._row.get(n) is not None}

  def id(self, *names: str) -> dict[str, Any]:
    """`id` of our layout, from the first of the fields that there is."""
    name = self.first(*names)
    return {} if name is None else {'id': self._row[name]}

  def wrong(self, problem: str) -> ValueError:
    return ValueError(f'{self._where}: {problem}')

  def error(self, name: str, problem: str) -> ValueError:
    return self.wrong(f'field {name!r} {problem}')

  def missing(self, name: str) -> ValueError:
    found = ', '.join(map(repr, list(self._row)[:8])) or 'no field'
    hint = json_records.did_you_mean(name, self._row)
    return self.wrong(
      f'missing field {name!r}; found {found}.{hint} Is record_format the one of this file?'
    )


def lines(path: str, on_error: OnError = None) -> Iterator[Record]:
  for line, row in json_records.read_json_lines(path, on_error):
    yield Record(line, f'{path}:{line}', row)


Layout = Callable[[str, OnError], Iterable[Record]]


@dataclasses.dataclass(frozen=True)
class RecordFormat:
  """A published layout of question files."""

  name: str  #: the user's `record_format`
  expected: str  #: what a file holds, for errors
  #: makes a row of our own layout of a record's fields, or None to leave the record out
  convert: Callable[[Fields], dict[str, Any] | None]
  layout: Layout = lines  #: finds the records of a file
  metrics: str = ''  #: the family of metrics that its answers are scored by; '' leaves it open

  def records(
    self, path: str, require_answers: bool = True, on_error: OnError = None
  ) -> Iterator[Record]:
    """Rows of our own layout; `on_error` is called with the error of a record, which is left out.

    The log says how many records the format leaves out, as no questions of its kind.

    Raises:
      ValueError: a damaged file (in any case) or malformed record; names file and line or record.
    """
    n_records = n_left_out = 0

    def convert(fields: Fields) -> dict[str, Any] | None:
      nonlocal n_left_out
      row = self.convert(fields)
      n_left_out += row is None
      return row

    for record in self.layout(path, on_error):
      n_records += 1
      row = json_records.attempt(on_error, convert, Fields(record, require_answers))
      if row is not None:
        yield dataclasses.replace(record, row=row)
    if n_left_out:
      logging.warning(
        '%s: left out %d of %d records, which are no questions of %s',
        path,
        n_left_out,
        n_records,
        self.name,
      )


def array_or_lines(path: str, on_error: OnError = None) -> Iterator[Record]:
  """JSON objects in one array, or one a line."""
  if first_character(path) != '[':
    yield from lines(path, on_error)
    return
  with byte_streams.open_bytes(path) as file:
    reader = JsonReader(file, path)
    yield from _elements(reader, path, on_error)
    reader.end()


def array_in_object(path: str, name: str, on_error: OnError = None) -> Iterator[Record]:
  """JSON objects in the array `name` of one object; the rest is read past."""
  with byte_streams.open_bytes(path) as file:
    reader = JsonReader(file, path)
    found = False
    for key in reader.members():
      if key != name:
        reader.skip()
        continue
      if found:
        raise ValueError(f'{path}: field {name!r} is there twice; make one list of both')
      found = True
      yield from _elements(reader, path, on_error)
    if not found:
      raise ValueError(f'{path}: missing field {name!r} of the one object')
    reader.end()


def _elements(reader: JsonReader, path: str, on_error: OnError) -> Iterator[Record]:
  for number, _ in enumerate(reader.elements(), start=1):
    where, value = f'{path}: record {number}', reader.value(f'record {number}')
    row = json_records.attempt(on_error, _object, value, where)
    if row is not None:
      yield Record(number, where, row)


def _object(value: Any, where: str) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f'{where}: expected an object, found {json_records.kind(value)}')
  return value


def first_character(path: str) -> str:
  """The first one that is no space; '' of an empty file."""
  with byte_streams.open_bytes(path) as file:
    # A wrong byte further on may be that of a line, which can be left out.
    return JsonReader(file, path, errors='replace').peek()


def array_lines_or_table(path: str, on_error: OnError = None) -> Iterator[Record]:
  """JSON objects in one array or one a line, or a table of answers.

  A table's name ends in .tsv or .csv (of tabs as well), or it begins with neither bracket, where
  its name is not that of JSON.
  """
  name, ending = os.path.splitext(path)
  name = name if ending in byte_streams.ENDINGS else path
  if name.endswith(_TABLE_ENDINGS) or (
    not name.endswith(_JSON_ENDINGS) and first_character(path) not in ('[', '{', '')
  ):
    yield from table(path, on_error)
  else:
    yield from array_or_lines(path, on_error)


def table(path: str, on_error: OnError = None) -> Iterator[Record]:
  """Records of tab-separated columns, or of any columns that a header names.

  Without a header two of them are DPR's: question, list of answers as Python writes it. Four are
  those of the curated TREC questions: id, type, question, pattern.
  """
  first = next(iter(json_records.LineReader(path)), (1, b''))[1]
  beginning, header, delimiter = json_records.text_of(first, f'{path}:1'), None, '\t'
  for separator in '\t,':
    names = [column.strip() for column in tables.columns(beginning, separator)]
    if len(names) > 1 and {'question', 'query'} & set(names):
      header, delimiter = names, separator
      break
  width = len(tables.columns(beginning, delimiter))
  lines = json_records.LineReader(path)
  for line, content in tables.records(lines, delimiter, width):
    if header and content.rstrip(b'\r\n') == first.rstrip(b'\r\n'):
      continue  # The header, which is there again where files were put together.
    where = f'{path}:{line}'
    row = json_records.attempt(on_error, _columns, content, where, header, delimiter)
    if row is not None:
      yield Record(line, where, row)


def _columns(
  content: bytes, where: str, header: list[str] | None, delimiter: str
) -> dict[str, Any]:
  columns = tables.columns(json_records.text_of(content, where), delimiter)
  if header:
    if len(columns) != len(header):
      raise ValueError(
        f'{where}: expected {len(header)} columns ({", ".join(header)}), found {len(columns)}'
      )
    row: dict[str, Any] = {name: value for name, value in zip(header, columns) if value.strip()}
    for name in ('answers', 'golden_answers', 'answer'):
      if name in row:
        row[name] = listed(row[name])
    return row
  if len(columns) == 4:
    return dict(zip(('id', 'type', 'question', 'answer'), columns))
  if len(columns) != 2:
    raise ValueError(
      f'{where}: expected 2 columns (question, list of answers) or 4 (id, type, '
      f'question, pattern) with tabs between them, found {len(columns)}'
    )
  question, answers = columns
  value = answer_texts.listed(answers)
  if value is None:
    value = _literal(answers)
  if not isinstance(value, list):
    raise ValueError(
      f"{where}: the second column must be a list such as ['a', 'b'], found {answers!r:.60}"
    )
  return {'question': question, 'answers': value}


def listed(text: str) -> list[Any]:
  """The list that a text writes, or the text alone."""
  found = answer_texts.listed(text)
  if found is not None or not text.lstrip().startswith('['):
    return [text] if found is None else found
  value = _literal(text)  # A list of what are no texts is a fault.
  return value if isinstance(value, list) else [text]


def _literal(text: str) -> Any:
  """What a text is as Python writes it; None if it is nothing."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    return None
