"""ShardSet: a corpus's shards one after the other, addressed by row; -1 is no passage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data import dates, ragged
from ralm_jax.data.corpus import identifiers
from ralm_jax.data.corpus.shards import Shard, ShardEntry
from ralm_jax.data.ragged import RaggedTokens

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Bool, Int

# What a key column says of no passage.
_MISSING = {'source_key': 0, 'document_key': 0, 'date': dates.NO_DATE}


@dataclasses.dataclass(frozen=True)
class FoundRows:
  """Rows of passages that were looked up by id.

  A passage has a row for each part, and for each version: 0 as it is now, 1 as it was before it was
  replaced, and so on. Positions tell which of the ids asked for.
  """

  positions: Int[np.ndarray, ' m']
  rows: Int[np.ndarray, ' m']
  versions: Int[np.ndarray, ' m']

  @property
  def is_newest(self) -> Bool[np.ndarray, ' m']:
    """False for what was replaced since."""
    return self.versions == 0


class ShardSet:
  """Gathers columns and finds ids over all shards; never changes."""

  def __init__(
    self,
    directory: pathlib.Path,
    entries: Sequence[ShardEntry],
    *,
    cut: bool,
    opened: Mapping[str, Shard] | None = None,
  ):
    """Opens nothing yet; `cut` tells whether the corpus cuts long passages."""
    self.directory = directory
    self.entries = tuple(entries)
    self._cut = cut
    self._opened = dict(opened or {})
    # first_rows[i] is the row that shard i starts with.
    self.first_rows = ragged.offsets_of(np.array([entry.rows for entry in self.entries], np.int64))

  def __len__(self) -> int:
    return int(self.first_rows[-1])

  def grown(self, entries: Sequence[ShardEntry]) -> ShardSet:
    return ShardSet(self.directory, entries, cut=self._cut, opened=self._opened)

  def shard(self, index: int) -> Shard:
    """One shard, mapped when first needed."""
    name = self.entries[index].file
    if name not in self._opened:
      self._opened[name] = Shard(self.directory / name, cut=self._cut)
    return self._opened[name]

  def checked(self, rows: Sequence[int] | np.ndarray) -> Int[np.ndarray, ' n']:
    """Rows as int64; ValueError or IndexError if they are none."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
      raise ValueError(f'expected integer rows [N], found {rows.dtype} {rows.shape}')
    rows = rows.astype(np.int64, copy=False)
    if rows.size and (rows.min() < -1 or rows.max() >= len(self)):
      wrong = rows[(rows < -1) | (rows >= len(self))][0]
      raise IndexError(f'{self.directory}: no row {wrong}; the store has {len(self):,} passages')
    return rows

  def shard_indices(self, rows: Int[np.ndarray, ' n']) -> Int[np.ndarray, ' n']:
    """The shard of each row; -1 where there is no passage."""
    return np.searchsorted(self.first_rows, rows, 'right') - 1

  def fields(self, rows: Int[np.ndarray, ' n']) -> list[dict[str, str]]:
    """`Shard.fields` of rows; nothing where a row is -1."""
    return [
      {} if row < 0 else self.shard(index).fields(row - int(self.first_rows[index]))
      for row, index in zip(rows.tolist(), self.shard_indices(rows).tolist())
    ]

  def keys(self, rows: Int[np.ndarray, '*b'], name: str) -> Int[np.ndarray, '*b']:
    """One of `shards.KEY_COLUMNS`."""
    shape = np.shape(rows)
    rows = self.checked(np.ravel(rows))
    missing = _MISSING[name]
    result = np.full(len(rows), missing, np.int32 if name == 'date' else np.int64)
    shards = self.shard_indices(rows)
    for index in np.unique(shards[shards >= 0]).tolist():
      here = shards == index
      result[here] = self.shard(index).key_column(name)[rows[here] - self.first_rows[index]]
    return result.reshape(shape)

  def tokens(
    self, rows: Int[np.ndarray, ' n'], column: str, max_length: int | None = None
  ) -> RaggedTokens:
    """A token column; see `PassageStore.tokens`."""
    shards = self.shard_indices(rows)
    # Shard after shard, then back into the order asked for.
    order = np.argsort(shards, kind='stable')
    indices, counts = np.unique(shards, return_counts=True)
    pieces, lengths = [], np.zeros(len(rows), np.int64)
    start = 0
    for index, count in zip(indices.tolist(), counts.tolist()):
      if index >= 0:
        values, offsets = self.shard(index).token_column(column)
        local = rows[order[start : start + count]] - self.first_rows[index]
        starts = offsets[local].astype(np.int64)
        kept = offsets[local + 1] - starts
        if max_length is not None:
          kept = np.minimum(kept, max_length)
        lengths[start : start + count] = kept
        pieces.append(ragged.gather(values, starts, kept).values)
      start += count
    if not pieces:
      return RaggedTokens.empty(len(rows))
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    if len(pieces) == 1:
      # Nothing but missing rows and one shard: already in order.
      return RaggedTokens(pieces[0], ragged.offsets_of(lengths[inverse]))
    return RaggedTokens(np.concatenate(pieces), ragged.offsets_of(lengths)).take(inverse)

  def newest_rows(self, ids: Sequence[str]) -> Int[np.ndarray, ' n']:
    """The last row of each id itself; -1 where there is none."""
    rows = np.full(len(ids), -1, np.int64)
    for index, positions, found in self._matches(ids):
      rows[positions] = self.first_rows[index] + found
    return rows

  def find(self, ids: Sequence[str]) -> FoundRows:
    """Every row of ids: all parts of a passage, and all it was before."""
    version = np.full(len(ids), -1, np.int64)
    pieces = [np.zeros((3, 0), np.int64)]
    for index, *first_parts in self._matches(ids):
      version[first_parts[0]] += 1
      for positions, found in self._with_parts(index, ids, *first_parts):
        pieces.append(np.stack([positions, self.first_rows[index] + found, version[positions]]))
    positions, rows, versions = np.concatenate(pieces, axis=1)
    return FoundRows(positions, rows, version[positions] - versions)

  def superseded(self) -> Int[np.ndarray, ' m']:
    """Rows of what was replaced since, ascending."""
    ids = []
    for index, entry in enumerate(self.entries):
      if not entry.source:  # Appended: only these can replace.
        ids += self.shard(index).ids()
    found = self.find(list(dict.fromkeys(ids)))
    return np.unique(found.rows[~found.is_newest])

  def _matches(self, ids: Sequence[str]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(shard, positions in ids, rows in the shard), shard after shard."""
    hashes = identifiers.hash_ids(ids)
    for index in range(len(self.entries)):
      shard = self.shard(index)
      positions, rows = shard.find(hashes)
      same = [
        shard.id_of(row) == ids[position]
        for position, row in zip(positions.tolist(), rows.tolist())
      ]
      if any(same):
        yield index, positions[same], rows[same]

  def _with_parts(
    self, index: int, ids: Sequence[str], positions: np.ndarray, rows: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions and rows of the passages, then of their second parts, …"""
    shard = self.shard(index)
    keys = shard.key_column('source_key')
    sources = keys[rows]
    number = 0
    while len(rows):
      yield positions, rows
      # Parts follow each other; the ids tell a part from a namesake.
      number += 1
      rows = rows + 1
      same = rows < len(shard)
      same[same] = keys[rows[same]] == sources[same]
      positions, rows, sources = positions[same], rows[same], sources[same]
      pairs = zip(positions.tolist(), rows.tolist())
      of_id = [shard.id_of(row) == f'{ids[position]}#{number}' for position, row in pairs]
      same = np.array(of_id, bool)
      positions, rows, sources = positions[same], rows[same], sources[same]
