"""Text templates rendered on token ids instead of text.

`'{query} title: {title} context: {text}'` is tokenised once, literal by literal; its fields are
then filled with tokens made long before. The ids are those of tokenising the finished text, because
the vocabularies split at whitespace (`vocabularies.py`) and a template must keep its fields between
whitespace.

Vocabularies whose `first_word_differs` write what comes first in a text without its space: a
leading literal by `encode_start`, a leading query as the caller gives it (`leading_field` tells),
and a leading title as the field `title_start`. An empty first field leaves the space of what
follows, as `'' + ' / ' + text` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import string
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data import ragged
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.base_vocabulary import Vocabulary

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Bool, Int

# Atlas's `encoder_format` and `retriever_format`.
READER_FORMAT = '{query} title: {title} context: {text}'
RETRIEVER_FORMAT = '{title} {text}'
CLOSED_BOOK_FORMAT = '{query}'
# RAG's reader input (Hugging Face's `title_sep` and `doc_sep`), and DPR's
# passage, a pair of texts, in BERT's vocabulary.
RAG_READER_FORMAT = '{title} / {text} // {query}'
DPR_RETRIEVER_FORMAT = '{title} [SEP] {text}'

READER_FIELDS = ('query', 'title', 'text')
RETRIEVER_FIELDS = ('title', 'text')
TITLE_START = 'title_start'  # A title that begins a text.


class TokenTemplate:
  """A text with fields, tokenised but for the fields."""

  def __init__(
    self,
    format: str,
    encode: Callable[[str], Sequence[int]],
    *,
    encode_start: Callable[[str], Sequence[int]] | None = None,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    known_fields: Sequence[str] = READER_FIELDS,
    pad_id: int = 0,
  ):
    """Parses and tokenises a template.

    Args:
      encode_start: tokenises a literal that begins the text; None where no first word differs.

    Raises:
      ValueError: braces or fields at fault, or a start that `encode_start` cannot write.
    """
    self.format = format
    self.pad_id = pad_id
    self._prefix = np.asarray(prefix, np.int32)
    self._suffix = np.asarray(suffix, np.int32)
    # Field names and tokenised literals in order.
    self._parts: list[str | np.ndarray] = []
    literals, names = _parse(format, known_fields)
    leads = not literals[0].strip()  # A field is first.
    if encode_start is not None and leads:
      names[0] = _start_field(format, names)
    for index, literal in enumerate(literals):
      if index:
        self._parts.append(names[index - 1])
      encode_literal = encode if index else encode_start or encode
      ids = np.asarray(encode_literal(literal.strip()), np.int32)
      if len(ids):
        self._parts.append(ids)
    #: By first appearance; `title_start` for a leading title whose first word has its own ids.
    self.fields = tuple(dict.fromkeys(names))

  @classmethod
  def for_reader(cls, vocabulary: Vocabulary, format: str = READER_FORMAT) -> TokenTemplate:
    """Template of reader inputs: bos if there is one, query, passage, eos."""
    return cls._of(vocabulary, format, vocabulary.reader_prefix, READER_FIELDS)

  @classmethod
  def for_retriever(
    cls,
    vocabulary: Vocabulary,
    format: str = RETRIEVER_FORMAT,
    known_fields: Sequence[str] = RETRIEVER_FIELDS,
  ) -> TokenTemplate:
    """Template of encoder inputs: [CLS] … [SEP] for WordPiece, else … eos; of queries, too."""
    return cls._of(vocabulary, format, vocabulary.retriever_prefix, known_fields)

  @classmethod
  def _of(
    cls, vocabulary: Vocabulary, format: str, prefix: Sequence[int], known_fields: Sequence[str]
  ) -> TokenTemplate:
    return cls(
      format,
      vocabulary.encode,
      encode_start=vocabulary.encode_start if vocabulary.first_word_differs else None,
      prefix=prefix,
      suffix=[vocabulary.eos_id],
      known_fields=known_fields,
      pad_id=vocabulary.pad_id,
    )

  def render(
    self,
    fields: Mapping[str, RaggedTokens],
    length: int,
    *,
    has_passage: Bool[np.ndarray, ' n'] | None = None,
  ) -> RaggedTokens:
    """Fills the fields with the tokens of N texts and truncates on the right.

    Prefix and suffix always stay. Where `has_passage` is False only `{query}` is written.

    Raises:
      ValueError: a field is missing, they differ in N, or `length` is less than prefix and suffix.
    """
    missing = [name for name in self.fields if name not in fields]
    if missing:
      raise ValueError(
        f'template {self.format!r} needs field {missing[0]!r}; given: {", ".join(fields) or "none"}'
      )
    counts = {name: len(fields[name]) for name in self.fields}
    if has_passage is not None:
      counts['has_passage'] = len(has_passage)
    if len(set(counts.values())) != 1:
      raise ValueError(f'template {self.format!r}: fields differ in size: {counts}')
    space = length - len(self._prefix) - len(self._suffix)
    if space < 0:
      raise ValueError(
        f'length {length} does not hold the {len(self._prefix)} + '
        f'{len(self._suffix)} special tokens of template {self.format!r}'
      )
    n = next(iter(counts.values()))

    # Every result is a few runs out of one pool of tokens, so that one gather writes them all.
    pool = [self._prefix, self._suffix]
    pool_size = len(self._prefix) + len(self._suffix)
    starts = np.zeros((n, len(self._parts) + 2), np.int64)
    lengths = np.zeros_like(starts)
    pooled: dict[str, int] = {}
    for column, part in enumerate(self._parts, start=1):
      if isinstance(part, str):
        if part not in pooled:
          pooled[part] = pool_size
          pool.append(fields[part].values)
          pool_size += len(pool[-1])
        starts[:, column] = fields[part].offsets[:-1] + pooled[part]
        lengths[:, column] = fields[part].lengths
      else:
        pool.append(part)
        starts[:, column] = pool_size
        lengths[:, column] = len(part)
        pool_size += len(part)
      if has_passage is not None and not (isinstance(part, str) and part == 'query'):
        lengths[:, column] *= has_passage
    ends = np.minimum(np.cumsum(lengths, axis=1), space)
    lengths = np.diff(ends, axis=1, prepend=0)
    lengths[:, 0] = len(self._prefix)
    starts[:, -1], lengths[:, -1] = len(self._prefix), len(self._suffix)

    runs = ragged.gather(np.concatenate(pool), starts.ravel(), lengths.ravel())
    return RaggedTokens(runs.values, runs.offsets[:: starts.shape[1]].copy())

  def shown(
    self, lengths: Mapping[str, Int[np.ndarray, ' n']], length: int
  ) -> dict[str, Int[np.ndarray, ' n']]:
    """How many tokens of each field a text keeps, by the numbers that the fields of N texts have.

    Of a field that is there twice, those of its first place.
    """
    space = length - len(self._prefix) - len(self._suffix)
    start: Int[np.ndarray, ' n'] | int = 0
    kept: dict[str, Int[np.ndarray, ' n']] = {}
    for part in self._parts:
      size = lengths[part] if isinstance(part, str) else len(part)
      if isinstance(part, str) and part not in kept:
        kept[part] = np.clip(space - start, 0, size)
      start = start + size
    return kept

  def __repr__(self) -> str:
    return f'TokenTemplate({self.format!r})'


def leading_field(format: str) -> str | None:
  """The field that a text begins with; None for a literal, ValueError as `TokenTemplate`."""
  literals, names = _parse(format, READER_FIELDS)
  return None if literals[0].strip() else names[0]


def _start_field(format: str, names: Sequence[str]) -> str:
  """The name under which the first of the fields is rendered."""
  first = names[0]
  if first == 'text':
    raise ValueError(
      f'template {format!r} begins with {{text}}, whose first word would need '
      'other ids than the corpus holds; put {title}, {query} or a word before it'
    )
  if first == 'query' and 'query' in names[1:]:
    raise ValueError(
      f'template {format!r}: {{query}} is first and occurs again, where its '
      'first word would need other ids; put a word before the first one'
    )
  return TITLE_START if first == 'title' else first


def _parse(format: str, known: Sequence[str]) -> tuple[list[str], list[str]]:
  """Splits a template into literals and the field names between them."""
  try:
    pieces = list(string.Formatter().parse(format))
  except ValueError as error:
    raise ValueError(f'template {format!r}: {error}') from error
  literals, names = [''], []
  for literal, name, specification, conversion in pieces:
    literals[-1] += literal
    if name is None:
      continue
    if name not in known:
      raise ValueError(f'template {format!r}: unknown field {name!r}; known: {", ".join(known)}')
    if specification or conversion:
      raise ValueError(f'template {format!r}: field {name!r} must stand alone in its braces')
    names.append(name)
    literals.append('')
  if not names:
    raise ValueError(f'template {format!r} has no field; known: {", ".join(known)}')
  for index, name in enumerate(names):
    before, after = literals[index], literals[index + 1]
    # Between two fields even an empty literal glues them together.
    glued_before = before and not before[-1].isspace()
    glued_after = (after and not after[0].isspace()) or (not after and index + 1 < len(names))
    if glued_before or glued_after:
      raise ValueError(
        f'template {format!r}: field {name!r} must stand between whitespace; '
        'glued to other text its tokens would not be those of the whole text'
      )
  return literals, names
