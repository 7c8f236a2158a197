"""One shard of a corpus: a memory-mapped Arrow file of passages.

Columns, in row order: `id`, `title`, `section`, `text` (strings), and `reader_title`,
`reader_text`, `retriever_title`, `retriever_text` (lists of uint16 token ids, uint32 for
vocabularies of more than 65,536); for a vocabulary whose `first_word_differs` also
`reader_title_start` or `retriever_title_start`, the title as it begins a text. Two more hold the
way from id to row: `id_hash`, sorted, and `id_row`, the row in the shard that each hash belongs to.
Provenance decides what an example must not see: `document` (string, as the user wrote it), `date`
(int32, `Passage.last_day`), and int64 hashes of the ids before long passages were cut
(`source_key`) and of the source documents (`document_key`). Shards of older corpora have none of
the four. A shard is one record batch, so that a column is one piece of memory.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib

import numpy as np
import pyarrow as pa

from ralm_jax.data import dates
from ralm_jax.data.corpus import identifiers, passages
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import atomic_files, checksums

TOKEN_COLUMNS = ('reader_title', 'reader_text', 'retriever_title', 'retriever_text')
# Titles that begin a text; only of vocabularies whose first word differs.
START_COLUMNS = ('reader_title_start', 'retriever_title_start')
TEXT_COLUMNS = ('id', 'title', 'section', 'text')
KEY_COLUMNS = ('source_key', 'document_key', 'date')

# Arrow's lists and strings count in 32 bits.
_COLUMN_LIMIT = 2**31 - 1

_SLICE = 4096  # Texts tokenised at a time.


@dataclasses.dataclass(frozen=True)
class ShardEntry:
  """What a manifest says about a shard; the source is its input's checksum, '' if appended."""

  file: str
  rows: int
  bytes: int
  sha256: str
  source: str = ''


def tokenise(
  parts: Sequence[Passage], reader: Vocabulary, retriever: Vocabulary
) -> dict[str, RaggedTokens]:
  """The token columns of passages, without special tokens."""
  titles, texts = [p.merged_title for p in parts], [p.text for p in parts]

  def of(vocabulary: Vocabulary) -> dict[str, RaggedTokens]:
    columns = {
      'title': _encoded(titles, vocabulary.encode_batch),
      'text': _encoded(texts, vocabulary.encode_batch),
    }
    if vocabulary.first_word_differs:
      columns['title_start'] = _encoded(titles, vocabulary.encode_start_batch)
    return columns

  ours = of(reader)
  theirs = ours if retriever.fingerprint == reader.fingerprint else of(retriever)
  return {
    f'{model}_{name}': tokens
    for model, columns in (('reader', ours), ('retriever', theirs))
    for name, tokens in columns.items()
  }


def _encoded(
  values: Sequence[str], encode_batch: Callable[[Sequence[str]], Iterable[Sequence[int]]]
) -> RaggedTokens:
  # Slices, since lists of Python integers take ten times the memory.
  return RaggedTokens.from_lists(
    itertools.chain.from_iterable(
      encode_batch(values[start : start + _SLICE]) for start in range(0, len(values), _SLICE)
    )
  )


def token_type(vocab_size: int) -> type[np.unsignedinteger]:
  """The smallest type that holds every id of a vocabulary."""
  return np.uint16 if vocab_size <= 2**16 else np.uint32


def write_shard(
  path: pathlib.Path,
  parts: Sequence[Passage],
  tokens: Mapping[str, RaggedTokens],
  vocab_sizes: Mapping[str, int],
  source: str = '',
  provenance: bool = True,
) -> ShardEntry:
  """Writes a shard, atomically; the same passages give the same bytes.

  The tokens are `TOKEN_COLUMNS` of the passages, and what they have of
  `START_COLUMNS`; `source` is the checksum of the lines that they come from.

  Raises:
    ValueError: a column passes Arrow's 2 GB, or a date is none.
  """
  columns: dict[str, pa.Array] = {}
  for name in (*TEXT_COLUMNS, 'document') if provenance else TEXT_COLUMNS:
    values = [getattr(part, name) for part in parts]
    column = pa.array(values, pa.string())
    if isinstance(column, pa.ChunkedArray):
      raise _too_large(path, name)
    columns[name] = column
  for name in (*TOKEN_COLUMNS, *(c for c in START_COLUMNS if c in tokens)):
    column = tokens[name]
    if column.offsets[-1] > _COLUMN_LIMIT:
      raise _too_large(path, name)
    dtype = token_type(vocab_sizes[name.split('_')[0]])
    columns[name] = pa.ListArray.from_arrays(
      pa.array(column.offsets.astype(np.int32)), pa.array(column.values.astype(dtype))
    )
  hashes = identifiers.hash_ids(part.id for part in parts)
  order = np.argsort(hashes, kind='stable')
  columns['id_hash'] = pa.array(hashes[order])
  columns['id_row'] = pa.array(order.astype(np.uint32))
  if provenance:
    keys = {**_keys(parts), 'date': np.array([p.last_day for p in parts], np.int32)}
    columns.update({name: pa.array(keys[name]) for name in KEY_COLUMNS})
  batch = pa.record_batch(list(columns.values()), names=list(columns))
  with atomic_files.replacing(path) as aside:
    with pa.OSFile(str(aside), 'wb') as file:
      with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    entry = ShardEntry(
      path.name, len(parts), aside.stat().st_size, checksums.sha256_of(aside), source
    )
  return entry


def keys_of(names: Iterable[str]) -> np.ndarray:
  """[N] int64 hashes of ids or documents, as the key columns hold them."""
  return identifiers.hash_ids(names).view(np.int64)


def _keys(parts: Sequence[Passage]) -> dict[str, np.ndarray]:
  return {
    'source_key': keys_of(part.source_id for part in parts),
    'document_key': keys_of(part.source_document for part in parts),
  }


def _too_large(path: pathlib.Path, column: str) -> ValueError:
  return ValueError(
    f'{path}: column {column!r} passes 2 GB; build the corpus with a smaller shard_size'
  )


class Shard:
  """Reads a shard through a memory map; opening it reads a few kilobytes."""

  def __init__(self, path: pathlib.Path, *, cut: bool = False):
    """Maps a shard; ValueError if it is none. If its corpus cuts passages, `id#1` may be a part."""
    self.path = path
    self._cut = cut
    try:
      mapped = pa.memory_map(str(path))
      self._batch = pa.ipc.open_file(mapped).get_batch(0)
    except (pa.ArrowInvalid, IndexError) as error:
      raise ValueError(
        f'{path}: not a shard of a corpus: {error}; build the corpus again'
      ) from error
    # The map lives on without its file descriptor, of which there may be fewer than shards.
    mapped.close()
    self._has_provenance = KEY_COLUMNS[0] in self._batch.schema.names

  def __len__(self) -> int:
    return self._batch.num_rows

  def token_column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Views of a token column: values [total], offsets [rows + 1] int32; ValueError without."""
    if name not in self._token_columns:
      raise ValueError(
        f'{self.path}: no column {name!r}, which a format that begins with {{title}} needs with '
        'this vocabulary; build the corpus again with `ralm corpus`'
      )
    return self._token_columns[name]

  @functools.cached_property
  def _token_columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = [n for n in (*TOKEN_COLUMNS, *START_COLUMNS) if n in self._batch.schema.names]
    columns = {name: self._batch.column(name) for name in names}
    return {n: (c.values.to_numpy(), c.offsets.to_numpy()) for n, c in columns.items()}

  def key_column(self, name: str) -> np.ndarray:
    """[rows] of `KEY_COLUMNS`: int64 keys or int32 dates."""
    return self._key_columns[name]

  @functools.cached_property
  def _key_columns(self) -> dict[str, np.ndarray]:
    if self._has_provenance:
      return {name: self._batch.column(name).to_numpy() for name in KEY_COLUMNS}
    # An older corpus: made once, of ids and titles, and kept in memory.
    parts = [
      Passage(id_, title, '', '', part_of=passages.source_id(id_) if self._cut else '')
      for id_, title in zip(self.ids(), self._batch.column('title').to_pylist())
    ]
    return {**_keys(parts), 'date': np.full(len(self), dates.NO_DATE, np.int32)}

  def fields(self, row: int) -> dict[str, str]:
    """The fields of the `Passage` in a row; its date is the last day."""
    names = (*TEXT_COLUMNS, 'document') if self._has_provenance else TEXT_COLUMNS
    result = {name: self._batch.column(name)[row].as_py() for name in names}
    if self._has_provenance:
      result['date'] = dates.text_of(int(self.key_column('date')[row]))
      if keys_of([result['id']])[0] != self.key_column('source_key')[row]:
        result['part_of'] = passages.source_id(result['id'])
    elif self._cut:
      result['part_of'] = passages.source_id(result['id'])
    if result.get('part_of') == result['id']:
      del result['part_of']
    return result

  def ids(self) -> list[str]:
    return self._batch.column('id').to_pylist()

  def id_of(self, row: int) -> str:
    return self._batch.column('id')[row].as_py()

  def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose id has a hash: positions in `hashes` [M], rows [M] int64."""
    run = self._batch.column('id_hash').to_numpy()
    positions, found = identifiers.find_sorted(run, hashes)
    rows = self._batch.column('id_row').to_numpy()[found]
    return positions, rows.astype(np.int64)
