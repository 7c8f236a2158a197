"""Batches on the host: static arrays out of ragged tokens. NumPy only.

Padding is static everywhere, so that a compiled step sees one shape: `[batch, n_passages, length]`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import templates
from ralm_jax.data.text.templates import TokenTemplate

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Bool, Int

NO_PASSAGE = -1  # As a row: there is no such passage.


class TokenSource(Protocol):
  """What assembly needs of a `PassageStore`."""

  def tokens(
    self, rows: Int[np.ndarray, ' n'], column: str, *, max_length: int | None = None
  ) -> RaggedTokens:
    """None where a row is -1."""


@dataclasses.dataclass(frozen=True)
class QueryBatch:
  """Examples before retrieval, as host arrays."""

  #: of the retriever's vocabulary, padded, special tokens included: what the query encoder reads
  query_tokens: Int[np.ndarray, 'b q']
  #: of the reader's vocabulary, padded, without eos: what stands before each passage
  reader_query_tokens: Int[np.ndarray, 'b q']
  target_tokens: Int[np.ndarray, 'b t']  #: of the reader's vocabulary, padded, with eos
  #: the example's position in its data set; -1 for rows that only fill up the batch
  example_index: Int[np.ndarray, ' b']
  #: passages an example must not see (such as the one it was made of), filled with -1; None if
  #: there are none
  exclude_rows: Int[np.ndarray, 'b _'] | None = None
  #: passages known to answer, filled with -1; None where the data name none
  gold_rows: Int[np.ndarray, 'b _'] | None = None
  #: the latest day, counted from 1970-01-01, that a passage may be of; `dates.NO_DATE_BOUND` for
  #: any. None for none at all.
  max_dates: Int[np.ndarray, ' b'] | None = None
  #: source documents of which an example must not see any passage, as `shards.keys_of` has their
  #: names, filled with 0; None if there are none.
  exclude_document_keys: Int[np.ndarray, 'b _'] | None = None

  def __post_init__(self):
    sizes = {
      field.name: len(value)
      for field in dataclasses.fields(self)
      if (value := getattr(self, field.name)) is not None
    }
    if len(set(sizes.values())) != 1:
      raise ValueError(f'the fields of a batch differ in size: {sizes}')

  def __len__(self) -> int:
    return len(self.example_index)

  @property
  def is_example(self) -> Bool[np.ndarray, ' b']:
    """False for rows that only fill up the batch."""
    return self.example_index >= 0


@dataclasses.dataclass(frozen=True)
class PassageInputs:
  """Encoder inputs, one for each query and passage, padded.

  The mask is True on tokens, and never all False: a missing passage leaves the
  query and the special tokens. `passage_mask` is False where it is missing.
  """

  tokens: Int[np.ndarray, 'b k s']
  mask: Bool[np.ndarray, 'b k s']
  passage_mask: Bool[np.ndarray, 'b k']


def assemble_reader_inputs(
  queries: RaggedTokens | Int[np.ndarray, 'b q'],
  rows: Int[np.ndarray, 'b k'],
  store: TokenSource | None,
  template: TokenTemplate,
  length: int,
  *,
  titles: RaggedTokens | None = None,
) -> PassageInputs:
  """Puts queries and passages together for the reader.

  As in Atlas, one text a passage is truncated on the right and ends with eos; a query longer than
  `length` leaves no room for the passage. Unlike Atlas, a missing passage (row -1) is marked in
  `passage_mask`, and the query stands alone instead of an empty text.

  Closed-book is the template `'{query}'` with `rows` of -1, [batch, 1], and no store.

  Args:
    queries: in the reader's vocabulary, without special tokens; those of `encode_start` where the
      template begins with {query} and the vocabulary's first word differs.
    titles: `batch * n_passages` titles in the reader's vocabulary, shown
      instead of the rows' own (an augmentation).

  Raises:
    ValueError: arrays that do not fit together, a template with passage fields without a store, or
      `titles` for a template whose title begins the text and has other ids there.
    IndexError: a row the store does not have.
  """
  rows = _checked_rows(rows)
  if titles is not None and len(titles) != rows.size:
    raise ValueError(f'{len(titles)} titles for {rows.size} passages')
  if not isinstance(queries, RaggedTokens):
    queries = RaggedTokens.from_padded(queries, template.pad_id)
  if len(queries) != len(rows):
    raise ValueError(f'{len(queries)} queries, but rows for {len(rows)}')
  fields = _passage_fields(store, 'reader', template, rows, length)
  if titles is not None and templates.TITLE_START in template.fields:
    raise ValueError(
      f'template {template.format!r} begins with {{title}}, whose first word '
      'has ids of its own there: other titles cannot take its place'
    )
  if titles is not None and 'title' in template.fields:
    fields['title'] = titles.truncate(length)
  if 'query' in template.fields:
    # One copy per passage, of no more than can be shown.
    fields['query'] = queries.truncate(length).take(np.repeat(np.arange(len(rows)), rows.shape[1]))
  return _assemble(template, fields, rows, length)


def assemble_retriever_inputs(
  rows: Int[np.ndarray, 'b k'], store: TokenSource, template: TokenTemplate, length: int
) -> PassageInputs:
  """Passages as the passage encoder reads them; row -1 leaves the special tokens alone.

  Raises:
    ValueError, IndexError: arrays that do not fit together or the store.
  """
  rows = _checked_rows(rows)
  fields = _passage_fields(store, 'retriever', template, rows, length)
  return _assemble(template, fields, rows, length)


def _checked_rows(rows: np.ndarray) -> np.ndarray:
  rows = np.asarray(rows)
  if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.integer):
    raise ValueError(
      f'expected integer rows [batch, n_passages], found {rows.dtype} of shape {rows.shape}'
    )
  return rows


def _passage_fields(
  store: TokenSource | None, model: str, template: TokenTemplate, rows: np.ndarray, length: int
) -> dict[str, RaggedTokens]:
  """Tokens of the template's passage fields, `batch * n_passages` each."""
  fields = {}
  for name in template.fields:
    if name == 'query':
      continue
    if store is None:
      raise ValueError(
        f'template {template.format!r} shows passages: give a store, or for '
        f'closed-book the template {templates.CLOSED_BOOK_FORMAT!r}'
      )
    fields[name] = store.tokens(rows.ravel(), f'{model}_{name}', max_length=length)
  return fields


def _assemble(
  template: TokenTemplate, fields: dict[str, RaggedTokens], rows: np.ndarray, length: int
) -> PassageInputs:
  passage_mask = rows >= 0
  shows_passages = set(template.fields) != {'query'}
  rendered = template.render(
    fields, length, has_passage=passage_mask.ravel() if shows_passages else None
  )
  mask = np.arange(length) < rendered.lengths[:, None]
  tokens = np.full(mask.shape, template.pad_id, np.int32)
  tokens[mask] = rendered.values
  shape = (*rows.shape, length)
  return PassageInputs(tokens.reshape(shape), mask.reshape(shape), passage_mask)
