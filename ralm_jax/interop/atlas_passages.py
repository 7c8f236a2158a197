"""The passages of an Atlas index folder as a corpus, a shard at a time.

`passages.{i}.pt` is a pickled list of dicts, as Atlas read them from jsonl, but
with the section already in the title.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import Any

from ralm_jax.data.corpus import building, corpus_manifest, passage_store, passages as passages_lib
from ralm_jax.data.corpus.building import Chunk, DuplicateFinder, Segment
from ralm_jax.data.corpus.corpus_manifest import Manifest, Settings, VocabularyEntry
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.corpus.shards import ShardEntry
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import atomic_files, progress as progress_lib
from ralm_jax.interop.files import restricted_pickle

PathLike = str | os.PathLike[str]
_FIELDS = ('title', 'section', 'text', 'document', 'date')


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of passages."""

  path: str
  rows: int  # How many passages it must hold.


@dataclasses.dataclass(frozen=True)
class CorpusOptions:
  """How passages become a corpus."""

  # Keep the ids of the passages. False names each by its row, for folders whose ids are missing or
  # repeat.
  own_ids: bool = True
  # Processes that tokenise; None for one a core. Scripts need `if __name__ == '__main__'`.
  n_workers: int | None = None
  shard_size: int = passage_store.DEFAULT_SHARD_SIZE  # Passages a shard of the corpus.


def build_corpus(
  shards: Sequence[Shard],
  output: PathLike,
  reader_vocabulary: PathLike | Vocabulary,
  retriever_vocabulary: PathLike | Vocabulary,
  options: CorpusOptions = CorpusOptions(),
  *,
  progress: bool = True,
) -> PassageStore:
  """Builds a corpus folder, in the order of the passages.

  Started again after an interruption it keeps every shard that is finished and intact.

  Raises:
    FileExistsError: the folder holds a finished corpus of something else.
    ValueError: a damaged file, another number of passages, a malformed
      passage, or an id that repeats.
  """
  loaded = {
    role: v if isinstance(v, Vocabulary) else vocabularies.load_vocabulary(os.fspath(v))
    for role, v in (('reader', reader_vocabulary), ('retriever', retriever_vocabulary))
  }
  settings = Settings(
    {role: VocabularyEntry.of(role, v) for role, v in loaded.items()}, max_words=None
  )
  directory = pathlib.Path(output)
  directory.mkdir(parents=True, exist_ok=True)
  with corpus_manifest.writing(directory):
    atomic_files.remove_unfinished(directory)
    known = _Known(directory, settings)
    for role, entry in settings.vocabularies.items():
      loaded[role].save(directory, pathlib.Path(entry.file).stem)
    known.finish(_build_shards(shards, known, options, progress))
  return PassageStore.open(directory)


class _Known:
  """What an earlier call has built in a folder: all of the corpus, or some shards."""

  def __init__(self, directory: pathlib.Path, settings: Settings):
    self.directory, self.settings = directory, settings
    self._before: Manifest | None = None
    if (directory / corpus_manifest.FILE_NAME).exists():
      self._before = Manifest.read(directory)
      self._check(self._before.settings == settings)

  def _check(self, same: bool) -> None:
    if not same:
      raise FileExistsError(
        f'{self.directory}: holds a finished corpus of other passages, vocabularies '
        'or options; name another folder, or remove it first.'
      )

  def entry(self, index: int, source: str) -> ShardEntry | None:
    """The shard of a chunk, where it is there."""
    if self._before is None:
      found = building.read_receipt(self.directory, self.settings, index)
      return found if found and found.source == source else None
    shards = self._before.shards
    self._check(index < len(shards) and shards[index].source == source)
    return shards[index]

  def finish(self, entries: Sequence[ShardEntry]) -> None:
    """Makes a corpus of the shards."""
    manifest = Manifest(self.settings, tuple(entries))
    if self._before is not None:
      self._check(len(entries) == len(self._before.shards))
    if manifest != self._before:
      manifest.write(self.directory)
    building.remove_leftovers(self.directory, manifest)


def _build_shards(
  shards: Sequence[Shard], known: _Known, options: CorpusOptions, progress: bool
) -> list[ShardEntry]:
  duplicates = DuplicateFinder(known.directory)
  entries: dict[int, ShardEntry] = {}
  total = sum(shard.rows for shard in shards)
  bar = progress_lib.bar(total=total, unit=' passages', desc='corpus', show=progress)

  def finish(chunk: Chunk, entry: ShardEntry) -> None:
    repeated = duplicates.add(chunk.index)
    if repeated is not None:
      raise ValueError(
        f'{chunk.segments[0].path}: the id {repeated!r} is that of two '
        'passages; ids must be unique in a corpus. Name the passages by '
        'their rows instead (own_ids=False, or ralm convert --row_ids).'
      )
    entries[chunk.index] = entry
    bar.update(entry.rows)

  def missing() -> Iterator[Chunk]:
    for chunk in _read_chunks(shards, options.shard_size, options.own_ids):
      entry = known.entry(chunk.index, chunk.source)
      if entry is not None and building.is_intact(known.directory, entry):
        finish(chunk, entry)
      else:
        yield chunk

  with bar:
    n_workers = options.n_workers or os.cpu_count() or 1
    build = functools.partial(building.build_shard, known.directory, known.settings)
    # pylint: disable-next=protected-access
    for chunk, entry in building._parallel_map(build, missing(), n_workers):
      finish(chunk, entry)
  if not entries:
    raise passages_lib.empty_error([shard.path for shard in shards])
  return [entries[index] for index in range(len(entries))]


def _read_chunks(shards: Sequence[Shard], shard_size: int, own_ids: bool) -> Iterator[Chunk]:
  """What becomes one shard of the corpus each; none spans two files."""
  index = row = 0
  for shard in shards:
    passages = restricted_pickle.load_plain(shard.path)
    if not isinstance(passages, list):
      raise ValueError(
        f'{shard.path} holds a {type(passages).__name__}, expected a list of passages.'
      )
    if len(passages) != shard.rows:
      raise ValueError(
        f'{shard.path} holds {len(passages):,} passages, but the file of their embeddings '
        f'{shard.rows:,}; they are of two indexes, or one is old.'
      )
    for start in range(0, len(passages), shard_size):
      contents = [
        _line(passage, None if own_ids else row + i, shard.path, i)
        for i, passage in enumerate(passages[start : start + shard_size], start)
      ]
      digest = hashlib.sha256(b''.join(contents)).hexdigest()
      segment = Segment(shard.path, start + 1, contents, passages_lib.parse_jsonl)
      yield Chunk(index, [segment], digest, 0)
      index += 1
    row += len(passages)
    del passages  # Or it stays until the next one is there as well.


def _line(passage: Any, row: int | None, path: str, position: int) -> bytes:
  """A passage as the jsonl it was; its parser checks the fields."""
  where = f'{path}:{position + 1}'
  if not isinstance(passage, dict):
    raise ValueError(f'{where}: expected a dict with id and text, found {passage!r:.60}')
  fields = {name: passage[name] for name in _FIELDS if passage.get(name) is not None}
  if row is not None:
    fields['id'] = str(row)
  elif passage.get('id') is None:
    raise ValueError(
      f'{where}: a passage without id; name the passages by their rows '
      '(own_ids=False, or ralm convert --row_ids).'
    )
  else:
    fields['id'] = passage['id']
  title, section = fields.get('title'), fields.get('section')
  if isinstance(title, str) and isinstance(section, str) and section:
    # Ours is put there whenever it is needed.
    fields['title'] = title.removesuffix(f': {section}')
  try:
    return json.dumps(fields).encode() + b'\n'
  except (TypeError, ValueError) as e:
    raise ValueError(f'{where}: a passage that is no JSON: {e}') from e
