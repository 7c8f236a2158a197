"""PassageStore: a corpus on disk, as text and as tokens of both vocabularies.

A corpus folder holds `manifest.json`, copies of the two vocabularies and
memory-mapped shards (`shards.py`). Passages are addressed by row, 0 to
`len(store) - 1`; row -1 means that there is no passage.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ralm_jax.data import atomic_files
from ralm_jax.data import corpus_building
from ralm_jax.data import identifiers
from ralm_jax.data import manifest as manifest_lib
from ralm_jax.data import passages as passages_lib
from ralm_jax.data import ragged
from ralm_jax.data import shards as shards_lib
from ralm_jax.data import vocabularies

Path = str | pathlib.Path

DEFAULT_SHARD_SIZE = 65_536


@dataclasses.dataclass(frozen=True)
class StoredPassage(passages_lib.Passage):
  """A passage and where it is stored.

  Attributes:
    row: in the store; -1 with empty texts where there is no passage.
  """

  row: int


@dataclasses.dataclass(frozen=True)
class PassageChunk:
  """Consecutive passages as tokens.

  Attributes:
    rows: [N] int64.
    tokens: for each column asked for, the tokens of the N passages.
  """

  rows: np.ndarray
  tokens: dict[str, ragged.RaggedTokens]


class PassageStore:
  """Reads a corpus folder. Nothing is loaded before it is needed."""

  def __init__(self, directory: pathlib.Path, manifest: manifest_lib.Manifest):
    """Use `open`."""
    self.directory = directory
    self._shards: dict[str, shards_lib.Shard] = {}
    self._set_manifest(manifest)

  @classmethod
  def open(cls, directory: Path) -> 'PassageStore':
    """Opens a corpus folder.

    Raises:
      FileNotFoundError: there is no finished corpus.
      ValueError: the manifest is damaged, or a shard has not its full size.
    """
    directory = pathlib.Path(directory)
    manifest = manifest_lib.Manifest.read(directory)
    manifest.check_sizes(directory)
    return cls(directory, manifest)

  def reload(self) -> None:
    """Takes notice of passages that were appended since."""
    manifest = manifest_lib.Manifest.read(self.directory)
    if self.fingerprint not in manifest.history:
      raise ValueError(
          f'{self.directory}: the corpus was replaced by another one; open it anew')
    manifest.check_sizes(self.directory)
    self._set_manifest(manifest)

  def verify(self) -> None:
    """Compares every shard with its checksum; ValueError names a bad one."""
    for entry in self._manifest.shards:
      if not corpus_building.is_intact(self.directory, entry):
        raise ValueError(
            f'{self.directory / entry.file}: damaged: its checksum is not '
            f'{entry.sha256}; build the corpus again or restore the file')

  def _set_manifest(self, manifest: manifest_lib.Manifest) -> None:
    self._manifest = manifest
    self._history = manifest.history
    # first_rows[i] is the row that shard i starts with.
    self._first_rows = ragged.offsets_of(
        np.array([entry.rows for entry in manifest.shards], np.int64))

  def __len__(self) -> int:
    return int(self._first_rows[-1])

  @property
  def fingerprint(self) -> str:
    """Identifies every passage and token; appending changes it."""
    return list(self._history)[-1]

  def rows_at(self, fingerprint: str) -> int | None:
    """Number of rows when the store had this fingerprint.

    None if it never had, so that the store is not one that grew from that
    corpus. Rows never change: an index of that fingerprint is valid for them.
    """
    return self._history.get(fingerprint)

  @property
  def max_words(self) -> int | None:
    """The limit long passages were cut to."""
    return self._manifest.settings.max_words

  @functools.cached_property
  def reader_vocabulary(self) -> vocabularies.Vocabulary:
    """The reader's vocabulary, from its copy in the folder."""
    return self._manifest.settings.vocabularies['reader'].load(self.directory)

  @functools.cached_property
  def retriever_vocabulary(self) -> vocabularies.Vocabulary:
    """The retriever's vocabulary, from its copy in the folder."""
    return self._manifest.settings.vocabularies['retriever'].load(self.directory)

  def passage(self, row: int) -> StoredPassage:
    """The texts of one row; IndexError if there is no such row."""
    return self.passages(np.array([row]))[0]

  def passages(self, rows: Sequence[int] | np.ndarray) -> list[StoredPassage]:
    """The texts of rows [N] int, in their order."""
    rows = self._checked_rows(rows)
    shards = self._shard_indices(rows)
    result = []
    for row, index in zip(rows.tolist(), shards.tolist()):
      if row < 0:
        texts = dict.fromkeys(shards_lib.TEXT_COLUMNS, '')
      else:
        texts = self._shard(index).texts(row - int(self._first_rows[index]))
      result.append(StoredPassage(row=row, **texts))
    return result

  def rows_of(self, ids: Sequence[str],
              unknown: int | None = None) -> np.ndarray:
    """Rows of the users' own ids.

    Args:
      ids: N passage ids.
      unknown: row of an id the corpus does not have; None raises instead.

    Returns:
      [N] int64.

    Raises:
      KeyError: an id is unknown.
    """
    ids = list(ids)
    hashes = identifiers.hash_ids(ids)
    rows = np.full(len(ids), -1, np.int64)
    for index, first_row in enumerate(self._first_rows[:-1]):
      shard = self._shard(index)
      for position, row in zip(*shard.find(hashes)):
        if shard.id_of(int(row)) == ids[position]:
          rows[position] = first_row + row
    absent = np.flatnonzero(rows < 0)
    if len(absent) and unknown is None:
      raise KeyError(
          f'{self.directory}: no passage with id {ids[absent[0]]!r}'
          + (f' (nor {len(absent) - 1} others)' if len(absent) > 1 else ''))
    rows[absent] = -1 if unknown is None else unknown
    return rows

  def tokens(self, rows: Sequence[int] | np.ndarray, column: str, *,
             max_length: int | None = None) -> ragged.RaggedTokens:
    """Stored tokens of passages, without special tokens.

    Args:
      rows: [N] int; -1 gives no tokens.
      column: one of `reader_title`, `reader_text`, `retriever_title`,
        `retriever_text`. Titles are merged: `title: section`.
      max_length: reads no more tokens of a passage than this.

    Returns:
      N sequences.

    Raises:
      IndexError: a row the store does not have.
      ValueError: unknown column.
    """
    if column not in shards_lib.TOKEN_COLUMNS:
      raise ValueError(
          f'no token column {column!r}; there are: '
          f'{", ".join(shards_lib.TOKEN_COLUMNS)}')
    rows = self._checked_rows(rows)
    shards = self._shard_indices(rows)
    # Shard after shard, then back into the order asked for.
    order = np.argsort(shards, kind='stable')
    indices, counts = np.unique(shards, return_counts=True)
    pieces, lengths = [], np.zeros(len(rows), np.int64)
    start = 0
    for index, count in zip(indices.tolist(), counts.tolist()):
      if index >= 0:
        values, offsets = self._shard(index).token_column(column)
        local = rows[order[start:start + count]] - self._first_rows[index]
        starts = offsets[local].astype(np.int64)
        kept = offsets[local + 1] - starts
        if max_length is not None:
          kept = np.minimum(kept, max_length)
        lengths[start:start + count] = kept
        pieces.append(ragged.gather(values, starts, kept).values)
      start += count
    if not pieces:
      return ragged.RaggedTokens.empty(len(rows))
    if len(pieces) == 1:
      # Nothing but missing rows and one shard: already in order.
      in_order = np.empty_like(lengths)
      in_order[order] = lengths
      return ragged.RaggedTokens(pieces[0], ragged.offsets_of(in_order))
    sorted_tokens = ragged.RaggedTokens(
        np.concatenate(pieces), ragged.offsets_of(lengths))
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return sorted_tokens.take(inverse)

  def iterate(self, columns: Sequence[str], chunk_size: int, *, start: int = 0,
              stop: int | None = None) -> Iterator[PassageChunk]:
    """Tokens of consecutive passages, for embedding a whole corpus.

    Args:
      columns: token columns (`tokens`).
      chunk_size: passages a chunk; the last may be smaller.
      start: first row.
      stop: row after the last; None for the end of the store.
    """
    stop = len(self) if stop is None else min(stop, len(self))
    for first in range(start, stop, chunk_size):
      rows = np.arange(first, min(first + chunk_size, stop))
      yield PassageChunk(rows, {name: self.tokens(rows, name) for name in columns})

  def _shard(self, index: int) -> shards_lib.Shard:
    name = self._manifest.shards[index].file
    if name not in self._shards:
      self._shards[name] = shards_lib.Shard(self.directory / name)
    return self._shards[name]

  def _checked_rows(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
      raise ValueError(f'expected integer rows [N], found {rows.dtype} {rows.shape}')
    rows = rows.astype(np.int64, copy=False)
    if rows.size and (rows.min() < -1 or rows.max() >= len(self)):
      wrong = rows[(rows < -1) | (rows >= len(self))][0]
      raise IndexError(
          f'{self.directory}: no row {wrong}; the store has {len(self):,} passages')
    return rows

  def _shard_indices(self, rows: np.ndarray) -> np.ndarray:
    """The shard of each row; -1 where there is no passage."""
    return np.searchsorted(self._first_rows, rows, 'right') - 1


def build_corpus(
    inputs: Path | Iterable[Path], output: Path,
    reader_vocabulary: Path | vocabularies.Vocabulary,
    retriever_vocabulary: Path | vocabularies.Vocabulary, *,
    max_words: int | None = None, n_workers: int | None = None,
    shard_size: int = DEFAULT_SHARD_SIZE, resume: bool = True,
    progress: bool = True) -> PassageStore:
  """Builds a corpus folder from passage files.

  Started again after an interruption it keeps every shard that is finished,
  intact, and of the same input and options. On a finished corpus it repairs
  damaged shards and otherwise changes nothing.

  Args:
    inputs: files or globs of Atlas jsonl or DPR tsv, plain or gzipped.
    output: the corpus folder.
    reader_vocabulary: file or object; tokenises for the reader.
    retriever_vocabulary: file or object; tokenises for the retriever.
    max_words: cuts longer texts into equal parts (`passages.split_long`).
    n_workers: processes; None for one a core. A corpus of one shard is built
      without others. Scripts need `if __name__ == '__main__'`.
    shard_size: input lines a shard.
    resume: False discards whatever corpus the folder holds.
    progress: show a progress bar on stderr.

  Returns:
    The open store.

  Raises:
    FileNotFoundError: a missing file, or a glob that matches nothing.
    FileExistsError: the folder holds a finished corpus of something else.
    ValueError: bad input, with file and line (`passages`).
  """
  if shard_size < 1:
    raise ValueError(f'shard_size must be at least 1, found {shard_size}')
  if max_words is not None and max_words < 1:
    raise ValueError(f'max_words must be at least 1, found {max_words}')
  if n_workers is None:
    n_workers = os.cpu_count() or 1
  if n_workers < 1:
    raise ValueError(f'n_workers must be at least 1, found {n_workers}')
  paths = passages_lib.expand_inputs(inputs)
  by_role = {
      role: (v if isinstance(v, vocabularies.Vocabulary)
             else vocabularies.load_vocabulary(v))
      for role, v in (('reader', reader_vocabulary),
                      ('retriever', retriever_vocabulary))}
  settings = manifest_lib.Settings(
      {role: manifest_lib.VocabularyEntry.of(role, v)
       for role, v in by_role.items()}, max_words)
  directory = pathlib.Path(output)
  directory.mkdir(parents=True, exist_ok=True)
  with manifest_lib.writing(directory):
    if not resume:
      corpus_building.discard(directory)
    atomic_files.remove_unfinished(directory)
    before = None
    if (directory / manifest_lib.FILE_NAME).exists():
      before = manifest_lib.Manifest.read(directory)
    other = FileExistsError(
        f'{directory}: holds a finished corpus of other passages, vocabularies '
        'or options; name another folder, or start over with resume=False')
    if before and before.settings != settings:
      raise other
    built = [s for s in before.shards if s.source] if before else []
    appended = [s for s in before.shards if not s.source] if before else []

    def known_entry(chunk: corpus_building.Chunk) -> shards_lib.ShardEntry | None:
      if before is None:
        return corpus_building.read_receipt(directory, settings, chunk.index)
      if chunk.index >= len(built) or built[chunk.index].source != chunk.source:
        raise other
      return built[chunk.index]

    for role, entry in settings.vocabularies.items():
      _copy(by_role[role].path, directory / entry.file)
    entries = corpus_building.build_shards(
        paths, directory, settings, shard_size=shard_size, n_workers=n_workers,
        known_entry=known_entry, progress=progress)
    if before and len(entries) != len(built):
      raise other
    manifest = manifest_lib.Manifest(settings, (*entries, *appended))
    if manifest != before:
      manifest.write(directory)
    corpus_building.remove_leftovers(directory, manifest)
  return PassageStore.open(directory)


def append_passages(directory: Path,
                    passages: Iterable[passages_lib.Passage]) -> np.ndarray:
  """Adds passages to a corpus, as one shard; existing rows stay as they are.

  Stores that are open see them after `reload`. Each call adds a file, so many
  passages are better added at once. Texts longer than the corpus's own
  `max_words` are cut, so there may be more rows than passages.

  Args:
    directory: the corpus folder.
    passages: what to add.

  Returns:
    [N] int64, the new rows.

  Raises:
    ValueError: an id is taken, occurs twice or is empty.
  """
  directory = pathlib.Path(directory)
  with manifest_lib.writing(directory):
    atomic_files.remove_unfinished(directory)
    store = PassageStore.open(directory)
    manifest = manifest_lib.Manifest.read(directory)
    parts = [part for passage in passages
             for part in passages_lib.split_long(passage, store.max_words)]
    if not parts:
      return np.zeros(0, np.int64)
    seen = set()
    taken = store.rows_of([part.id for part in parts], unknown=-1)
    for part, row in zip(parts, taken.tolist()):
      if not part.id:
        raise ValueError(f'a passage without id: {part.text!r:.40}')
      if row >= 0:
        raise ValueError(
            f'{directory}: duplicate id {part.id!r}, already in row {row}')
      if part.id in seen:
        raise ValueError(f'duplicate id {part.id!r} among the passages to add')
      seen.add(part.id)
    reader, retriever = store.reader_vocabulary, store.retriever_vocabulary
    entry = shards_lib.write_shard(
        corpus_building.shard_path(directory, len(manifest.shards)), parts,
        shards_lib.tokenise(parts, reader, retriever),
        {'reader': reader.vocab_size, 'retriever': retriever.vocab_size})
    dataclasses.replace(manifest, shards=(*manifest.shards, entry)).write(directory)
  return np.arange(len(store), len(store) + len(parts))


def _copy(source: pathlib.Path, target: pathlib.Path) -> None:
  if target.exists() and os.path.samefile(source, target):
    return
  with atomic_files.replacing(target) as aside:
    shutil.copyfile(source, aside)
