"""Tables (tsv, csv) record by record: what is quoted, and what only begins with a quotation mark.

Writers of tables differ: csv puts fields that hold quotation marks or line breaks into quotation
marks, and doubles those inside; others write fields as they are. A field is read as quoted where
its first and last characters are quotation marks, with none but doubled ones between them, and
where a record goes on over a line end for that, its lines are no records by themselves. Anything
else is read as it stands: `"Hello" he said` keeps its quotation marks.
"""

from collections.abc import Iterator
import re

from ralm_jax.files.json_records import LineReader

# A quoted field's content, up to a mark that is not doubled or the end of what was read.
_CONTENT = re.compile(r'[^"]*+(?:""[^"]*+)*+')
_ENDS = ('', '\r', '\n')
# Of one record in characters: beyond this a mark was left open.
_MOST = 64 << 20


def columns(text: str, delimiter: str) -> list[str]:
  """The fields of one record, which may hold line breaks within quotation marks."""
  return _read(text, delimiter)[0]


def records(lines: LineReader, delimiter: str, width: int) -> Iterator[tuple[int, bytes]]:
  """Records with the numbers of their first lines; `width` is how many fields they have.

  Raises ValueError, with file:line, where it cannot be told whether a quotation mark opens a field
  that goes on in the next line.
  """
  numbered = iter(lines)
  pushed: list[tuple[int, bytes]] = []
  while True:
    number, content = pushed.pop(0) if pushed else next(numbered, (0, b''))
    if not number:
      return
    # Bytes that are no UTF-8 are reported by whoever takes the record.
    if b'"' not in content or not _is_open(content, delimiter):
      yield number, content
      continue
    held, size, closed = [content], len(content), False
    read = 0
    while size < _MOST:
      if read < len(pushed):
        more = pushed[read]
      else:
        more = next(numbered, (0, b''))
        if not more[0]:
          break
        pushed.append(more)
      read += 1
      held.append(more[1])
      size += len(more[1])
      # Only a line with a mark can end the field.
      if b'"' in more[1]:
        joined = b''.join(held)
        if _is_open(joined, delimiter):
          continue
        found, literal = _read(_text(joined), delimiter)
        closed = len(found) == width and not literal
        break
    if not closed:
      yield number, content
      continue
    if all(len(columns(_text(line), delimiter)) == width for line in held):
      raise ValueError(
        f'{lines.path}:{number}: a quotation mark begins a field and may end it in line '
        f'{number + read}, or both may be part of the texts; put such fields into quotation marks, '
        'and double those inside, as csv does'
      )
    del pushed[:read]
    yield number, b''.join(held)


def _read(text: str, delimiter: str) -> tuple[list[str], bool]:
  """The fields, and whether one begins with a quotation mark that does not quote it."""
  text = text.removesuffix('\n').removesuffix('\r')
  fields, start, literal = [], 0, False
  while True:
    end = -1
    if text.startswith('"', start):
      match = _CONTENT.match(text, start + 1)
      assert match is not None  # It matches nothing, too.
      after = match.end() + 1
      # At the end of the text the mark is missing.
      if match.end() < len(text) and text[after : after + 1] in ('', delimiter):
        fields.append(match[0].replace('""', '"'))
        end = after
      else:
        literal = True
    if end < 0:
      end = text.find(delimiter, start)
      end = len(text) if end < 0 else end
      fields.append(text[start:end])
    if end == len(text):
      return fields, literal
    start = end + 1


def _is_open(content: bytes, delimiter: str) -> bool:
  """Whether a field that a quotation mark begins goes on to the very end."""
  text = _text(content)
  start = 0
  while start <= len(text):
    if text.startswith('"', start):
      match = _CONTENT.match(text, start + 1)
      assert match is not None
      if match.end() == len(text):
        return True
      after = match.end() + 1
      if text[after : after + 1] in (*_ENDS, delimiter):
        start = after + 1
        continue
    start = text.find(delimiter, start) + 1
    if not start:
      return False
  return False


def _text(content: bytes) -> str:
  return content.decode('utf-8', 'surrogateescape')
