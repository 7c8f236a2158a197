"""Passages in the files users bring: Atlas jsonl and DPR tsv.

Atlas: one JSON object a line with `id`, `text`, and optionally `title` and `section`; and, for what
an example must not see, `document` (the name of the source document, by default the title) and
`date` (`dates.py`). DPR (`psgs_w100.tsv`): tab-separated `id`, `text`, `title` under a header,
quoted as by Python's csv module. Plain or gzipped; contents decide, not names. Every complaint
names file and line.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import csv
import dataclasses
import math
import os
import re

from ralm_jax.data import dates
from ralm_jax.data.text import words
from ralm_jax.files import input_files, json_records
from ralm_jax.files.input_files import Path

_PART_NUMBER = re.compile(r'#[1-9][0-9]*$')
_TSV_COLUMNS = ('id', 'text', 'title')


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
  """Makes a passage of a line in Atlas's layout; ValueError where it is at fault."""
  fields = json_records.object_of(line.content, line.where)
  for name in ('id', 'text'):
    if name not in fields:
      raise line.error(f'no {name!r}; found: {", ".join(map(repr, fields)) or "nothing"}')
  values = {'id': fields['id'], 'text': fields['text']}
  if fields.get('document') is None:  # KILT names the page of a passage so.
    fields['document'] = fields.get('wikipedia_id')
  for name in ('title', 'section', 'document', 'date'):
    value = fields.get(name)
    values[name] = '' if value is None else value
  for name in ('id', 'document', 'date'):  # Numbers, for some.
    if isinstance(values[name], int) and not isinstance(values[name], bool):
      values[name] = str(values[name])
  for name, value in values.items():
    if not isinstance(value, str):
      raise line.error(f'{name!r} must be a string, found {json_records.kind(value)}')
    if not value.isascii():
      # JSON can spell halves of surrogate pairs, which no file can hold.
      try:
        value.encode('utf-8')
      except UnicodeEncodeError as error:
        raise line.error(f'{name!r} is not valid Unicode: {error}') from error
  if not values['id']:
    raise line.error("'id' is empty")
  if fields.get('date') is not None:
    try:
      dates.last_day(values['date'])
    except ValueError as error:
      raise line.error(f"'date': {error}, or leave it out") from error
  return Passage(**values)


def parse_tsv(line: Line) -> Passage:
  """Makes a passage of a line in DPR's layout; ValueError unless it has three columns."""
  row = _tsv_row(line)
  if not row:
    raise line.error('blank line; expected id, text and title, tab-separated')
  if len(row) != len(_TSV_COLUMNS):
    raise line.error(
      f'expected 3 tab-separated columns (id, text, title), found {len(row)}; '
      'tabs, line breaks and quotes in a text must be quoted as csv does'
    )
  identifier, text, title = row
  if not identifier:
    raise line.error("'id' is empty")
  return Passage(identifier, title, '', text)


def _tsv_row(line: Line) -> list[str]:
  try:
    return next(csv.reader([line.text()], delimiter='\t'), [])
  except csv.Error as error:
    raise line.error(f'malformed tsv: {error}') from error


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
    """Yields the lines that hold passages; ValueError for another layout or a damaged gzip."""
    parse = None
    for number, content in self._lines:
      if parse is None:
        parse = self._parser(content)
        if parse is parse_tsv:
          continue  # The header.
      yield Line(self.path, number, content, parse)

  def _parser(self, first: bytes) -> Callable[[Line], Passage]:
    """Which format a file is in, by its first line and then by its name."""
    line = Line(self.path, 1, first, parse_tsv)
    if first.lstrip().startswith(b'{'):
      return parse_jsonl
    if tuple(_tsv_row(line)) == _TSV_COLUMNS:
      return parse_tsv
    name = self.path.removesuffix('.gz')
    if name.endswith(('.jsonl', '.json')):
      return parse_jsonl
    header = f'the header {chr(9).join(_TSV_COLUMNS)!r}'
    expected = (
      f'expected {header},'
      if name.endswith('.tsv')
      else f'neither JSON lines nor a tsv file with {header};'
    )
    raise line.error(f'{expected} found {line.text():.60}')


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
