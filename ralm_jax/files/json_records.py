"""JSON files record by record: lines, or one value too large to load whole."""

import codecs
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
import difflib
import json
import logging
import math
import os
from typing import Any, BinaryIO, TypeVar

from ralm_jax.files import byte_streams

T = TypeVar('T')
# Called with the error of what cannot be read, which is left out; None raises it.
OnError = Callable[[ValueError], None] | None

_CHUNK = 1 << 20
_SPACE = ' \t\r\n'
# Of one value in characters: what is larger is no record, but a quotation mark
# or a bracket left open.
_MOST = 64 << 20
# An error further than this from the end of what was read is none that reading
# on would mend: names (-Infinity), exponents and escapes are shorter.
_MARGIN = 32


def read_json_lines(path: str, on_error: OnError = None) -> Iterator[tuple[int, dict[str, Any]]]:
  """Reads the objects of a jsonl file with the 1-based numbers of their lines.

  Args:
    on_error: as of `attempt`; damaged compression is raised in any case.

  Raises:
    ValueError: a line is no JSON object, or the file is damaged; names file:line.
  """
  for line, content in LineReader(path):
    row = attempt(on_error, object_of, content, f'{path}:{line}')
    if row is not None:
      yield line, row


def attempt(on_error: OnError, convert: Callable[..., T], *arguments: Any) -> T | None:
  """What `convert` returns; None where its ValueError was told to `on_error`."""
  try:
    return convert(*arguments)
  except ValueError as error:
    if on_error is None:
      raise
    on_error(error)
    return None


class LineReader:
  """The lines of a file with their 1-based numbers, read once.

  The file is plain or compressed, told by content; byte order marks are no part of it. Lines are
  bytes with their ends.
  """

  def __init__(self, path: str):
    """Opens the file; ValueError for what is no text."""
    self.path = path
    self._raw = open(path, 'rb')
    try:
      # Bytes are split at \n only; text mode would also split inside strings.
      self._lines = byte_streams.decompressed(self._raw, path)
    except BaseException:
      self._raw.close()
      raise

  @property
  def position(self) -> int:
    """Bytes of the file read so far, compressed as they are."""
    return os.path.getsize(self.path) if self._raw.closed else self._raw.tell()

  def __iter__(self) -> Iterator[tuple[int, bytes]]:
    """Raises ValueError, with file:line, if compressed data are damaged."""
    line = 0
    with self._raw, byte_streams.naming_damage(self.path, lambda: line + 1):
      for line, content in enumerate(self._lines, 1):
        # In the middle, too, where files were put together.
        yield line, content.removeprefix(codecs.BOM_UTF8)


def text_of(content: bytes, where: str) -> str:
  """A line as text, without its end; ValueError, with file:line, if it is not UTF-8."""
  try:
    return content.decode('utf-8').rstrip('\r\n')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{where}: not UTF-8 at byte {error.start} of the line; convert the file to UTF-8'
    ) from error


def read_lines(path: str) -> Iterator[tuple[int, str]]:
  """The lines of a text file without their ends; ValueError, with file:line, for what is none."""
  for line, content in LineReader(path):
    yield line, text_of(content, f'{path}:{line}')


def object_of(content: bytes, where: str) -> dict[str, Any]:
  """A line as a JSON object; ValueError, with file:line, if it is none."""
  text = text_of(content, where)
  if not text.strip():
    raise ValueError(f'{where}: blank line; delete it (every line is one JSON object)')
  try:
    row = json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(
      f'{where}: malformed JSON at column {error.colno}: {error.msg}; every '
      'line must be one JSON object'
    ) from error
  except (ValueError, RecursionError) as error:
    # An integer of thousands of digits, or thousands of brackets.
    raise ValueError(f'{where}: malformed JSON: {error}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{where}: expected a JSON object, found {kind(row)}')
  return row


class JsonReader:
  """Reads one JSON value part by part, in memory for the largest part.

  The value is gone through from the beginning: `members` and `elements` stand before a part each
  time they yield, and whoever iterates must read it, with `value` or with another of these.
  """

  def __init__(self, file: BinaryIO, path: str, errors: str = 'strict'):
    """Reads nothing yet; `errors` says what bytes that are not UTF-8 become."""
    self._file = file
    self._path = path
    self._utf8 = codecs.getincrementaldecoder('utf-8-sig')(errors)
    self._json = json.JSONDecoder()
    self._buffer = ''
    self._position = 0
    self._ended = False
    self._name = ''
    # Of the text before the buffer: lines, and characters of the last one.
    self._lines = 0
    self._columns = 0

  def peek(self) -> str:
    """The next character that is no space; '' at the end."""
    while True:
      while self._position < len(self._buffer):
        character = self._buffer[self._position]
        if character not in _SPACE:
          return character
        self._position += 1
      if not self._fill(_CHUNK):
        return ''

  def value(self, name: str = '') -> Any:
    """Reads the part that stands next, called `name` ('record 7') in errors.

    Raises:
      ValueError: malformed JSON, or more than 64 Mi characters; names line and column.
    """
    self._name = name
    self.peek()
    wanted = _CHUNK
    while True:
      try:
        value, end = self._json.raw_decode(self._buffer, self._position)
        # A number may go on behind what was read so far: 1, 1e, 1e5.
        if self._is_final(end) or (self._buffer[end : end + 1] not in ('', '.', 'e', 'E')):
          self._position = end
          self._name = name and f'after {name}'
          return value
      except json.JSONDecodeError as error:
        # A string may go on for long, but nothing else.
        if self._ended or (
          self._is_final(error.pos) and not error.msg.startswith('Unterminated string')
        ):
          raise self._malformed(error.msg, error.pos) from error
      except (ValueError, RecursionError) as error:
        raise self._malformed(str(error)) from error
      if len(self._buffer) - self._position > _MOST:
        raise self._malformed(
          f'a value of more than {_MOST:,} characters; is a quotation mark or a bracket left open?'
        )
      self._fill(wanted)
      wanted *= 2  # So that a large part is not decoded ever again.

  def skip(self) -> None:
    """Reads past the part that stands next, in memory for its largest part."""
    parts = {'{': self.members, '[': self.elements}.get(self.peek())
    if parts is None:
      self.value()
      return
    for _ in parts():
      self.value()

  def _is_final(self, place: int) -> bool:
    """Whether reading on changes nothing there."""
    return self._ended or len(self._buffer) - place > _MARGIN

  def members(self) -> Iterator[str]:
    """The keys of the object that stands next."""
    for _ in self._items('{', '}', 'an object'):
      key = self.value()
      if not isinstance(key, str):
        raise self._malformed('a key must be a string')
      self._take(':')
      yield key

  def elements(self) -> Iterator[None]:
    """Stands before each element of the array that stands next."""
    yield from self._items('[', ']', 'an array')

  def end(self) -> None:
    """Raises ValueError if anything follows what was read."""
    if self.peek():
      raise self._malformed('expected the end of the file')

  def _items(self, opening: str, closing: str, name: str) -> Iterator[None]:
    if self.peek() != opening:
      raise self._malformed(f'expected {name}')
    self._position += 1
    if self.peek() == closing:
      self._position += 1
      return
    while True:
      yield
      if self._take(',' + closing) == closing:
        return

  def _take(self, characters: str) -> str:
    found = self.peek()
    if not found or found not in characters:
      raise self._malformed(f'expected {" or ".join(map(repr, characters))}')
    self._position += 1
    return found

  def _fill(self, size: int) -> bool:
    """Reads on; False at the end of the file."""
    if self._ended:
      return False
    with byte_streams.naming_damage(self._path, lambda: self._lines + self._buffer.count('\n') + 1):
      content = self._file.read(size)
    try:
      text = self._utf8.decode(content, final=not content)
    except UnicodeDecodeError as error:
      raise ValueError(
        f'{self._path}: not UTF-8 ({error.reason}); convert the file to UTF-8'
      ) from error
    self._ended = not content
    lines = self._buffer.count('\n', 0, self._position)
    self._columns = self._column(self._position)
    self._lines += lines
    self._buffer = self._buffer[self._position :] + text
    self._position = 0
    return not self._ended

  def _column(self, place: int) -> int:
    """Characters before a place of the buffer in its line."""
    before = self._buffer.rfind('\n', 0, place)
    return self._columns + place if before < 0 else place - before - 1

  def _malformed(self, problem: str, place: int | None = None) -> ValueError:
    place = self._position if place is None else place
    line = self._lines + self._buffer.count('\n', 0, place) + 1
    near = self._buffer[place : place + 40]
    column = f'(column {self._column(place) + 1})'
    found = f'before {near!r} {column}' if near else f'at its end {column}: is it cut short?'
    name = self._name and f'{self._name}: '
    return ValueError(f'{self._path}:{line}: {name}malformed JSON: {problem}, {found}')


def finite(value: Any) -> Any:
  """JSON values with None in place of NaN and infinity, which are no JSON."""
  if isinstance(value, dict):
    return {name: finite(one) for name, one in value.items()}
  if isinstance(value, (list, tuple)):
    return [finite(one) for one in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def kind(value: Any) -> str:
  """A JSON value's type, for error messages."""
  kinds = {
    dict: 'an object',
    list: 'a list',
    str: 'a string',
    bool: 'a boolean',
    type(None): 'null',
  }
  return kinds.get(type(value), 'a number')


def warn_of_misspelt(found: Iterable[str], known: Collection[str], where: str) -> None:
  """Says which unknown fields are very near to known ones that are not there, and so not read."""
  found = set(found)
  for field in sorted(found.difference(known)):
    near = difflib.get_close_matches(field.lower(), sorted(set(known) - found), 1, 0.85)
    if near:
      logging.warning('%s: field %r is not read; did you mean %r?', where, field, near[0])


def did_you_mean(name: str, found: Iterable[str], others: Sequence[str] = ()) -> str:
  """A question with the field that is nearest to a missing one; '' where none is near."""
  for field in found:
    if difflib.get_close_matches(field.lower(), (name, *others), 1, 0.7):
      return f' Field {field!r}: did you mean {name!r}?'
  return ''
