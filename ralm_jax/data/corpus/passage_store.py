"""PassageStore: a corpus on disk, as text and as tokens of both vocabularies.

A corpus folder holds `manifest.json`, copies of the two vocabularies and
memory-mapped shards (`shards.py`). Passages are addressed by row, 0 to
`len(store) - 1`; row -1 means that there is no passage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus import building, corpus_manifest, shards
from ralm_jax.data.corpus.building import Chunk
from ralm_jax.data.corpus.corpus_manifest import Manifest, Settings, VocabularyEntry
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.data.corpus.shard_set import FoundRows, ShardSet
from ralm_jax.data.corpus.shards import ShardEntry
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import atomic_files, input_files

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int

Path = str | pathlib.Path

DEFAULT_SHARD_SIZE = 65_536


@dataclasses.dataclass(frozen=True)
class StoredPassage(Passage):
  """A passage and its row, -1 with empty texts for none; the date is the last day as YYYY-MM-DD."""

  row: int = dataclasses.field(kw_only=True)


class PassageStore:
  """Reads a corpus folder. Nothing is loaded before it is needed."""

  def __init__(self, directory: pathlib.Path, manifest: Manifest):
    """Use `open`."""
    self.directory = directory
    self._manifest = manifest
    self._history = manifest.history
    self._has_dates = False
    self._shards = ShardSet(directory, manifest.shards, cut=manifest.settings.max_words is not None)

  @classmethod
  def open(cls, directory: Path) -> PassageStore:
    """Opens a corpus folder; FileNotFoundError without one, ValueError where it is damaged."""
    directory = pathlib.Path(directory)
    manifest = Manifest.read(directory)
    manifest.check_sizes(directory)
    return cls(directory, manifest)

  def reload(self) -> None:
    """Takes notice of passages that were appended since."""
    manifest = Manifest.read(self.directory)
    if self.fingerprint not in manifest.history:
      raise ValueError(f'{self.directory}: the corpus was replaced by another one; open it anew')
    manifest.check_sizes(self.directory)
    # The fingerprint last: who sees it finds the passages too.
    self._shards = self._shards.grown(manifest.shards)
    self._manifest, self._history = manifest, manifest.history

  def verify(self) -> None:
    """Compares every shard with its checksum; ValueError names a bad one."""
    for entry in self._manifest.shards:
      if not building.is_intact(self.directory, entry):
        raise ValueError(
          f'{self.directory / entry.file}: damaged: its checksum is not '
          f'{entry.sha256}; build the corpus again or restore the file'
        )

  def __len__(self) -> int:
    return len(self._shards)

  @property
  def fingerprint(self) -> str:
    """Identifies every passage and token; appending changes it."""
    return list(self._history)[-1]

  def rows_at(self, fingerprint: str) -> int | None:
    """Rows that an index of this fingerprint is valid for (they never change); None for others."""
    return self._history.get(fingerprint)

  @property
  def max_words(self) -> int | None:
    """The limit long passages were cut to."""
    return self._manifest.settings.max_words

  @functools.cached_property
  def reader_vocabulary(self) -> Vocabulary:
    return self._manifest.settings.vocabularies['reader'].load(self.directory)

  @functools.cached_property
  def retriever_vocabulary(self) -> Vocabulary:
    return self._manifest.settings.vocabularies['retriever'].load(self.directory)

  def passage(self, row: int) -> StoredPassage:
    """The texts of one row; IndexError if there is no such row."""
    return self.passages(np.array([row]))[0]

  def passages(self, rows: Sequence[int] | np.ndarray) -> list[StoredPassage]:
    """The texts of rows [N] int, in their order."""
    rows = self._shards.checked(rows)
    nothing = dict.fromkeys(shards.TEXT_COLUMNS, '')
    return [
      StoredPassage(**(fields or nothing), row=row)
      for row, fields in zip(rows.tolist(), self._shards.fields(rows))
    ]

  def rows_of(self, ids: Sequence[str], unknown: int | None = None) -> Int[np.ndarray, ' n']:
    """Newest rows of the users' own ids; `unknown` stands for others, else they are a KeyError."""
    ids = list(ids)
    rows = self._shards.newest_rows(ids)
    absent = np.flatnonzero(rows < 0)
    if len(absent) and unknown is None:
      raise KeyError(
        f'{self.directory}: no passage with id {ids[absent[0]]!r}'
        + (f' (nor {len(absent) - 1} others)' if len(absent) > 1 else '')
      )
    rows[absent] = -1 if unknown is None else unknown
    return rows

  def find(self, ids: Sequence[str]) -> FoundRows:
    """Every row of the ids, each given once: all parts, and all they were before."""
    return self._shards.find(list(ids))

  def superseded(self) -> Int[np.ndarray, ' n']:
    """Rows of passages as they were before they were replaced, ascending."""
    return self._shards.superseded()

  def sources(self, rows: Int[np.ndarray, '*b']) -> Int[np.ndarray, '*b']:
    """Keys of the passages that rows belong to: one for all parts and versions; 0 for row -1."""
    return self._shards.keys(rows, 'source_key')

  def documents(self, rows: Int[np.ndarray, '*b']) -> Int[np.ndarray, '*b']:
    """Keys of source documents (`Passage.source_document`); 0 where a row is -1."""
    return self._shards.keys(rows, 'document_key')

  def dates(self, rows: Int[np.ndarray, '*b']) -> Int[np.ndarray, '*b']:
    """The last day that a passage's date allows, since 1970-01-01, or `dates.NO_DATE`."""
    return self._shards.keys(rows, 'date')

  def count_empty(self) -> int:
    """Passages with neither text nor title."""
    count = 0
    for index in range(len(self._shards.entries)):
      columns = [self._shards.shard(index).token_column(f'reader_{n}') for n in ('title', 'text')]
      count += int(np.sum(np.diff(columns[0][1]) + np.diff(columns[1][1]) == 0))
    return count

  def has_dates(self) -> bool:
    if not self._has_dates:  # Passages may have been added since.
      self._has_dates = any(
        (self._shards.shard(index).key_column('date') != dates.NO_DATE).any()
        for index in range(len(self._shards.entries))
      )
    return self._has_dates

  def tokens(
    self, rows: Sequence[int] | np.ndarray, column: str, *, max_length: int | None = None
  ) -> RaggedTokens:
    """Stored tokens of passages, without special tokens; none where a row is -1.

    Args:
      column: one of `reader_title`, `reader_text`, `retriever_title`, `retriever_text`. Titles are
        merged: `title: section`. As they begin a text, where its first word has other ids:
        `reader_title_start`, `retriever_title_start`.

    Raises:
      IndexError: a row the store does not have.
      ValueError: unknown column, or one that this corpus was built without.
    """
    if column not in (*shards.TOKEN_COLUMNS, *shards.START_COLUMNS):
      raise ValueError(f'no token column {column!r}; there are: {", ".join(shards.TOKEN_COLUMNS)}')
    return self._shards.tokens(self._shards.checked(rows), column, max_length)

  def token_counts(
    self, column: str, rows: Int[np.ndarray, ' n'] | None = None
  ) -> Int[np.ndarray, ' n']:
    """How many tokens rows have in a column of `tokens`; of all rows nothing but that is read."""
    if rows is not None:
      return self.tokens(rows, column).lengths
    shards_of = map(self._shards.shard, range(len(self._shards.entries)))
    offsets = [shard.token_column(column)[1].astype(np.int64) for shard in shards_of]
    return np.concatenate([np.diff(one) for one in offsets])


def build_corpus(
  inputs: Path | Iterable[Path],
  output: Path,
  reader_vocabulary: Path | Vocabulary,
  retriever_vocabulary: Path | Vocabulary,
  *,
  max_words: int | None = None,
  n_workers: int | None = None,
  shard_size: int = DEFAULT_SHARD_SIZE,
  resume: bool = True,
  progress: bool = True,
) -> PassageStore:
  """Builds a corpus folder from passage files.

  Started again after an interruption it keeps every shard that is finished, intact, and of the same
  input and options. On a finished corpus it repairs damaged shards and otherwise changes nothing.

  Args:
    inputs: files or globs of Atlas jsonl or DPR tsv, plain or gzipped.
    max_words: cuts longer texts into equal parts (`passages.split_long`).
    n_workers: processes; None for one a core. Scripts need `if __name__ == '__main__'`.

  Raises:
    FileNotFoundError: a missing file, or a glob that matches nothing.
    FileExistsError: the folder holds a finished corpus of something else.
    ValueError: bad input, with file and line (`passages`).
  """
  if n_workers is None:
    n_workers = os.cpu_count() or 1
  counts = {'shard_size': shard_size, 'max_words': max_words, 'n_workers': n_workers}
  for name, count in counts.items():
    if count is not None and count < 1:
      raise ValueError(f'{name} must be at least 1, found {count}')
  paths = input_files.expand_inputs(inputs)
  by_role = {
    role: vocabularies.load_vocabulary(v)
    for role, v in (('reader', reader_vocabulary), ('retriever', retriever_vocabulary))
  }
  settings = Settings({role: VocabularyEntry.of(role, v) for role, v in by_role.items()}, max_words)
  directory = pathlib.Path(output)
  directory.mkdir(parents=True, exist_ok=True)
  with corpus_manifest.writing(directory):
    if not resume:
      building.discard(directory)
    atomic_files.remove_unfinished(directory)
    before = None
    if (directory / corpus_manifest.FILE_NAME).exists():
      before = Manifest.read(directory)
      settings = dataclasses.replace(settings, provenance=before.settings.provenance)
    other = FileExistsError(
      f'{directory}: holds a finished corpus of other passages, vocabularies '
      'or options; name another folder, or start over with --restart (in Python: resume=False)'
    )
    if before and before.settings != settings:
      raise other
    built = [s for s in before.shards if s.source] if before else []
    appended = [s for s in before.shards if not s.source] if before else []

    def known_entry(chunk: Chunk) -> ShardEntry | None:
      if before is None:
        return building.read_receipt(directory, settings, chunk.index)
      if chunk.index >= len(built) or built[chunk.index].source != chunk.source:
        raise other
      return built[chunk.index]

    for role, entry in settings.vocabularies.items():
      by_role[role].save(directory, pathlib.Path(entry.file).stem)
    entries = building.build_shards(
      paths,
      directory,
      settings,
      shard_size=shard_size,
      n_workers=n_workers,
      known_entry=known_entry,
      progress=progress,
    )
    if before and len(entries) != len(built):
      raise other
    manifest = Manifest(settings, (*entries, *appended))
    if manifest != before:
      manifest.write(directory)
    building.remove_leftovers(directory, manifest)
  return PassageStore.open(directory)


def append_passages(
  directory: Path, passages: Iterable[Passage], *, replace: bool = False
) -> Int[np.ndarray, ' n']:
  """Adds passages to a corpus, as one shard; existing rows stay as they are.

  Open stores see them after `reload`; each call adds a file. Texts are cut as the corpus's own are,
  so there may be more rows than passages. With `replace` an id may be taken: its newest row is then
  the one that `PassageStore.rows_of` finds. Returns the new rows.

  Raises:
    ValueError: an id is taken, occurs twice or is empty, or a date is none.
  """
  directory = pathlib.Path(directory)
  with corpus_manifest.writing(directory):
    atomic_files.remove_unfinished(directory)
    store = PassageStore.open(directory)
    manifest = Manifest.read(directory)
    parts = building.split_all(passages, store.max_words)
    if not parts:
      return np.zeros(0, np.int64)
    building.check_new_ids(store._shards, parts, replace)  # pylint: disable=protected-access
    reader, retriever = store.reader_vocabulary, store.retriever_vocabulary
    entry = shards.write_shard(
      building.shard_path(directory, len(manifest.shards)),
      parts,
      shards.tokenise(parts, reader, retriever),
      {'reader': reader.vocab_size, 'retriever': retriever.vocab_size},
    )
    dataclasses.replace(manifest, shards=(*manifest.shards, entry)).write(directory)
  return np.arange(len(store), len(store) + len(parts))
