"""Passages in the files users bring: jsonl and tables (tsv, csv).

A record has `id`, `text`, and optionally `title` and `section`; and, for what an example must not
see, `document` (the name of the source document, by default the title) and `date` (`dates.py`).
Other names of these fields are known as well (`_NAMES`); `contents` (FlashRAG, Pyserini) is a title
and a text where it has two lines. Numbers become texts. Tables (DPR's `psgs_w100.tsv`) name their
columns in a header; `files/tables.py` says what is quoted. Plain or compressed; contents decide,
not names. Every complaint names file and line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import math
import os
import re
from typing import Any

from ralm_jax.data import dates
from ralm_jax.data.text import words
from ralm_jax.files import byte_streams, input_files, json_records, tables
from ralm_jax.files.input_files import Path

_PART_NUMBER = re.compile(r'#[1-9][0-9]*$')
_TSV_COLUMNS = ('id', 'text', 'title')
# Our names of fields, and what BEIR, DPR, FlashRAG, Pyserini, ir_datasets and others call them.
_NAMES = {
  'id': ('id', '_id', 'docid', 'doc_id', 'passage_id', 'psg_id', 'pid'),
  'text': ('text', 'contents', 'content', 'passage', 'passage_text'),
  'title': ('title', 'passage_title', 'doc_title'),
  'section': ('section', 'section_title'),
  'document': ('document', 'wikipedia_id'),  # KILT names the page of a passage so.
  'date': ('date',),
}
_FIELDS = frozenset(name for names in _NAMES.values() for name in names)


@dataclasses.dataclass(frozen=True)
class Passage:
  """A passage, as users write it."""

  id: str  #: the user's own name for it, unique in a corpus
  title: str
  section: str
  text: str
  document: str = ''  #: names the document it comes from where the title does not
  date: str = ''  #: 'YYYY', 'YYYY-MM' or 'YYYY-MM-DD'; '' where it is not known
  part_of: str = ''  #: the id before `split_long` cut it; '' for first parts and what is whole

  @property
  def merged_title(self) -> str:
    """The title models read, `title: section`, as Atlas merges it."""
    return merge_title(self.title, self.section)

  @property
  def source_id(self) -> str:
    """The user's own id, which all parts of a long passage share."""
    return self.part_of or self.id

  @property
  def source_document(self) -> str:
    """Names the document: `document`, else the title, else the passage itself."""
    # No title begins so, which keeps the two kinds of name apart.
    return self.document or self.title or f'\0{self.source_id}'

  @property
  def last_day(self) -> int:
    """Days from 1970-01-01 to the last day of `date`, or `dates.NO_DATE`; ValueError for none."""
    if not self.date:
      return dates.NO_DATE
    try:
      return dates.last_day(self.date)
    except ValueError as error:
      raise ValueError(f'passage {self.id!r}: date {error}') from error


def merge_title(title: str, section: str) -> str:
  """Atlas's title of a passage: `title: section` if it has a section."""
  return f'{title}: {section}' if section else title


@dataclasses.dataclass(frozen=True)
class Line:
  """A line of a passage file: number from 1, undecoded content, and what parses it."""

  path: str
  number: int
  content: bytes
  parse: Callable[['Line'], Passage]

  @property
  def where(self) -> str:
    return f'{self.path}:{self.number}'

  def passage(self) -> Passage:
    """Parses the line; ValueError with `file:line` if it cannot."""
    return self.parse(self)

  def text(self) -> str:
    return json_records.text_of(self.content, self.where)

  def error(self, message: str) -> ValueError:
    return ValueError(f'{self.where}: {message}')


def parse_jsonl(line: Line) -> Passage:
  """Makes a passage of a JSON object; ValueError where it is at fault."""
  return _passage(json_records.object_of(line.content, line.where), line)


@dataclasses.dataclass(frozen=True)
class ParseTable:
  """Makes a passage of a record of a table; ValueError unless it has the header's columns."""

  header: tuple[str, ...] = _TSV_COLUMNS
  delimiter: str = '\t'

  def __call__(self, line: Line) -> Passage:
    text, width = line.text(), len(self.header)
    separated = 'tab-separated' if self.delimiter == '\t' else 'comma-separated'
    names = ', '.join(self.header)
    if not text:
      raise line.error(f'blank line; expected {names}, {separated}')
    row = tables.columns(text, self.delimiter)
    if len(row) != width:
      raise line.error(
        f'expected {width} {separated} columns ({names}), found {len(row)}; '
        'tabs, line breaks and quotes in a text must be quoted as csv does'
      )
    # A table has a cell for every date, known or not.
    fields = {n: v for n, v in zip(self.header, row) if v or n != 'date'}
    return _passage(fields, line)


def _passage(fields: dict[str, Any], line: Line) -> Passage:
  """A passage of the fields of a record, whatever they are called."""
  values: dict[str, Any] = {}
  for name, known in _NAMES.items():
    found = next((other for other in known if fields.get(other) is not None), None)
    if found is None and name in ('id', 'text'):
      absent = next((other for other in known if other in fields), None)
      if absent is not None:
        raise line.error(f'{absent!r} must be a string, found null')
      raise line.error(f'no {name!r}; {_found(fields, name)}')
    values[name] = '' if found is None else _text(fields[found], found, line)
    if found == 'contents' and fields.get('title') is None and '\n' in values['text']:
      # FlashRAG's, whose first line is the title, in quotation marks in its copy of Wikipedia.
      title, _, values['text'] = values['text'].partition('\n')
      quoted = len(title) > 1 and title[0] == title[-1] == '"'
      fields = {**fields, 'title': title[1:-1] if quoted else title}
  if not values['id']:
    raise line.error("'id' is empty")
  if fields.get('date') is not None:
    try:
      dates.last_day(values['date'])
    except ValueError as error:
      raise line.error(f"'date': {error}, or leave it out") from error
  return Passage(**values)


def _text(value: Any, name: str, line: Line) -> str:
  """A text, or a number as one: 1984 as JSON writes it."""
  if isinstance(value, int) and not isinstance(value, bool):
    value = str(value)
  if isinstance(value, float) and math.isfinite(value) and name != 'id':
    value = repr(value)
  if not isinstance(value, str):
    raise line.error(f'{name!r} must be a string, found {json_records.kind(value)}')
  if not value.isascii():
    # JSON can spell halves of surrogate pairs, which no file can hold.
    try:
      value.encode('utf-8')
    except UnicodeEncodeError as error:
      raise line.error(f'{name!r} is not valid Unicode: {error}') from error
  return value


def _found(fields: dict[str, Any], name: str) -> str:
  hint = json_records.did_you_mean(name, fields, _NAMES[name])
  return f'found: {", ".join(map(repr, list(fields)[:12])) or "nothing"}{hint and "." + hint}'


class LineReader:
  """The passage lines of one file, read once."""

  def __init__(self, path: Path):
    self.path = os.fspath(path)
    self._lines = json_records.LineReader(self.path)

  @property
  def position(self) -> int:
    """Bytes of the file read so far, compressed as they are."""
    return self._lines.position

  def __iter__(self) -> Iterator[Line]:
    """Yields what holds passages; ValueError for another layout or damaged compression."""
    first = next(iter(json_records.LineReader(self.path)), None)
    parse = parse_jsonl if first is None else self._parser(first[1])
    if isinstance(parse, ParseTable):
      records = tables.records(self._lines, parse.delimiter, len(parse.header))
    else:
      records = iter(self._lines)
    if isinstance(parse, ParseTable):
      fields: Iterable[str] = parse.header
    else:
      fields = () if first is None else json_records.object_of(first[1], f'{self.path}:1')
    json_records.warn_of_misspelt(fields, _FIELDS, self.path)
    header = None
    for number, content in records:
      if isinstance(parse, ParseTable):
        header = header or content.rstrip(b'\r\n')
        if content.startswith(header) and content.rstrip(b'\r\n') == header:
          continue  # Once more where files were put together with `cat`.
      yield Line(self.path, number, content, parse)

  def _parser(self, first: bytes) -> Callable[[Line], Passage]:
    """Which format a file is in, by its first line and then by its name."""
    line = Line(self.path, 1, first, parse_jsonl)
    if first.lstrip().startswith(b'{'):
      return parse_jsonl
    for delimiter in '\t,':
      header = tuple(column.strip() for column in tables.columns(line.text(), delimiter))
      if all(set(_NAMES[name]) & set(header) for name in ('id', 'text')):
        return ParseTable(header, delimiter)
    name = self.path.removesuffix(os.path.splitext(self.path)[1] if _is_packed(self.path) else '')
    if name.endswith(('.jsonl', '.json')):
      return parse_jsonl
    expected_header = f'the header {chr(9).join(_TSV_COLUMNS)!r}'
    expected = (
      f'expected {expected_header},'
      if name.endswith('.tsv')
      else f'neither JSON lines nor a tsv file with {expected_header};'
    )
    raise line.error(f'{expected} found {line.text():.60}')


def _is_packed(path: str) -> bool:
  return path.endswith(byte_streams.ENDINGS)


def iterate_passages(
  inputs: Path | Iterable[Path], *, max_words: int | None = None
) -> Iterator[Passage]:
  """Reads passages one after the other, texts cut by `split_long`.

  Remembers every id to find duplicates; `build_corpus` does without, for larger corpora.

  Raises:
    FileNotFoundError: a file is missing or a glob matches none.
    ValueError: the corpus is empty, an id occurs twice, or a line is at fault.
  """
  paths = input_files.expand_inputs(inputs)
  seen: dict[str, tuple[str, int]] = {}
  for path in paths:
    for line in LineReader(path):
      for passage in split_long(line.passage(), max_words):
        first = seen.setdefault(passage.id, (path, line.number))
        if first != (path, line.number):
          raise duplicate_error(passage.id, first, (path, line.number))
        yield passage
  if not seen:
    raise empty_error(paths)


def find_lines(
  paths: Sequence[str], passage_id: str, max_words: int | None = None
) -> list[tuple[str, int]]:
  """Every (file, line) that makes a passage of this id, a slow search."""
  return [
    (line.path, line.number)
    for path in paths
    for line in LineReader(path)
    if any(part.id == passage_id for part in split_long(line.passage(), max_words))
  ]


def duplicate_error(passage_id: str, first: tuple[str, int], second: tuple[str, int]) -> ValueError:
  return ValueError(
    f'{second[0]}:{second[1]}: duplicate id {passage_id!r}, '
    f'first on {first[0]}:{first[1]}; ids must be unique in a corpus'
  )


def empty_error(paths: Sequence[str]) -> ValueError:
  return ValueError(f'empty corpus: no passage in {", ".join(paths)}')


def split_long(passage: Passage, max_words: int | None) -> list[Passage]:
  """Cuts a long text into equal parts, as Atlas cut Wikipedia's sections.

  A text of n > `max_words` words (`words.spans`: in Chinese, Japanese, Thai and their like each
  character is one) becomes ceil(n / max_words) parts, in
  order, whose sizes differ by at most one word and which keep the whitespace inside them. The first
  part keeps the id, the others are `id#1`, `id#2`, …; all keep the other fields. Shorter passages
  come back as they are. `Passage.source_id` leads back to the id.

  Raises:
    ValueError: `max_words` is below 1.
  """
  if max_words is None:
    return [passage]
  if max_words < 1:
    raise ValueError(f'max_words must be at least 1, found {max_words}')
  spans = words.spans(passage.text)
  n_parts = math.ceil(len(spans) / max_words)
  if n_parts <= 1:
    return [passage]
  parts = []
  for index in range(n_parts):
    first = len(spans) * index // n_parts
    last = len(spans) * (index + 1) // n_parts - 1
    parts.append(
      dataclasses.replace(
        passage,
        id=f'{passage.id}#{index}' if index else passage.id,
        part_of=passage.source_id if index else passage.part_of,
        text=passage.text[spans[first][0] : spans[last][1]],
      )
    )
  return parts


def source_id(passage_id: str) -> str:
  """The id before `split_long`: `'a#2'` → `'a'`."""
  return _PART_NUMBER.sub('', passage_id)
