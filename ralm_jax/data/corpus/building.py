"""Passage files into shards: in parallel, and never twice.

The input is cut into chunks of `shard_size` lines, in order; each becomes one shard with a receipt
beside it that names the checksum of its lines and of the settings. A build that was killed reads
its input again, and keeps every shard whose receipt still tells the truth.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import threading

import numpy as np

from ralm_jax.data.corpus import corpus_manifest, identifiers, passages, shards
from ralm_jax.data.corpus.corpus_manifest import Manifest, Settings
from ralm_jax.data.corpus.identifiers import HashSet
from ralm_jax.data.corpus.passages import Line, LineReader, ParseTable, Passage
from ralm_jax.data.corpus.shard_set import ShardSet
from ralm_jax.data.corpus.shards import Shard, ShardEntry
from ralm_jax.data.text import vocabularies
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import atomic_files, checksums, progress as bars


@dataclasses.dataclass(frozen=True)
class Segment:
  """Consecutive lines of one file."""

  path: str
  first_number: int
  contents: list[bytes]
  parse: Callable[[Line], Passage]

  @property
  def layout(self) -> str:
    """As checksums of a corpus's lines have it."""
    if not isinstance(self.parse, ParseTable):
      return 'parse_jsonl'
    return 'parse_tsv' if self.parse == ParseTable() else f'parse_tsv {self.parse!r}'

  def lines(self) -> Iterator[Line]:
    number = self.first_number
    for content in self.contents:
      yield Line(self.path, number, content, self.parse)
      number += self.lines_of(content)

  @staticmethod
  def lines_of(content: bytes) -> int:
    """How many lines a record takes: those of a table may hold line breaks."""
    return max(content.count(b'\n'), 1)


@dataclasses.dataclass(frozen=True)
class Chunk:
  """The lines of one shard."""

  index: int
  segments: list[Segment]
  source: str  # Checksum of the lines.
  position: int  # Bytes of all files read when the chunk was complete.


def shard_path(directory: pathlib.Path, index: int) -> pathlib.Path:
  return directory / f'shard-{index:05d}.arrow'


def receipt_path(directory: pathlib.Path, index: int) -> pathlib.Path:
  """The receipt of a shard, until the manifest takes its place."""
  return directory / f'shard-{index:05d}.receipt.json'


def read_chunks(paths: Sequence[str], shard_size: int) -> Iterator[Chunk]:
  """Cuts files into chunks of `shard_size` lines; a chunk may span files."""
  finished, position = 0, 0

  def lines() -> Iterator[Line]:
    nonlocal finished, position
    for path in paths:
      reader = LineReader(path)
      for count, line in enumerate(reader):
        if count % 1024 == 0:
          position = finished + reader.position
        yield line
      finished += os.path.getsize(path)
      position = finished

  stream = lines()
  for index in itertools.count():
    segments: list[Segment] = []
    following = 0
    for line in itertools.islice(stream, shard_size):
      # A header that is there once more is left out.
      if not segments or segments[-1].path != line.path or line.number != following:
        segments.append(Segment(line.path, line.number, [], line.parse))
      segments[-1].contents.append(line.content)
      following = line.number + Segment.lines_of(line.content)
    if not segments:
      return
    digest = hashlib.sha256()
    for segment in segments:
      digest.update(f'{segment.layout} {len(segment.contents)}\n'.encode())
      digest.update(b''.join(segment.contents))
    yield Chunk(index, segments, digest.hexdigest(), position)


def build_shard(directory: pathlib.Path, settings: Settings, chunk: Chunk) -> ShardEntry:
  """Parses, cuts, tokenises and writes one chunk, then its receipt."""
  parts = split_all(
    (line.passage() for segment in chunk.segments for line in segment.lines()), settings.max_words
  )
  reader, retriever = (
    _load_vocabulary(directory / entry.file, entry.extra_ids)
    for entry in (settings.vocabularies['reader'], settings.vocabularies['retriever'])
  )
  entry = shards.write_shard(
    shard_path(directory, chunk.index),
    parts,
    shards.tokenise(parts, reader, retriever),
    {'reader': reader.vocab_size, 'retriever': retriever.vocab_size},
    chunk.source,
    settings.provenance,
  )
  receipt = {'settings': settings.fingerprint, 'shard': dataclasses.asdict(entry)}
  atomic_files.write_json(receipt_path(directory, chunk.index), receipt)
  return entry


def split_all(whole: Iterable[Passage], max_words: int | None) -> list[Passage]:
  """Cuts the texts that are too long, see `passages.split_long`."""
  return [part for passage in whole for part in passages.split_long(passage, max_words)]


# A worker builds many shards but needs each vocabulary once.
@functools.lru_cache(maxsize=2)
def _load_vocabulary(path: pathlib.Path, extra_ids: int) -> Vocabulary:
  return vocabularies.load_vocabulary(path, extra_ids)


def read_receipt(directory: pathlib.Path, settings: Settings, index: int) -> ShardEntry | None:
  """The receipt of a shard, if there is one and it is of these settings."""
  try:
    content = json.loads(receipt_path(directory, index).read_bytes())
    if content['settings'] == settings.fingerprint:
      return ShardEntry(**content['shard'])
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    pass
  return None


def is_intact(directory: pathlib.Path, entry: ShardEntry) -> bool:
  """Whether a shard's file is what its entry says."""
  path = directory / entry.file
  return (
    path.exists()
    and path.stat().st_size == entry.bytes
    and checksums.sha256_of(path) == entry.sha256
  )


def check_new_ids(known: ShardSet, parts: Sequence[Passage], replace: bool) -> None:
  """Raises ValueError for ids that are taken; `replace` lets them take the place of those."""
  seen = set()
  taken = known.newest_rows([part.id for part in parts])
  sources = known.keys(taken, 'source_key')
  own = shards.keys_of(part.source_id for part in parts)
  for part, row, same in zip(parts, taken.tolist(), sources == own):
    if not part.id:
      raise ValueError(f'a passage without id: {part.text!r:.40}')
    if part.id in seen:
      raise ValueError(f'duplicate id {part.id!r} among the passages to add')
    seen.add(part.id)
    if row >= 0 and not replace:
      raise ValueError(
        f'{known.directory}: duplicate id {part.id!r}, already in row {row}; '
        'replace that passage, or choose another id'
      )
    if row >= 0 and not same:
      # One of the two is a part of a long passage, the other is not.
      raise ValueError(
        f'{known.directory}: id {part.id!r} belongs to another passage, in '
        f'row {row}: replace that one as a whole, or choose another id'
      )


class DuplicateFinder:
  """Finds ids that occur in more than one place, over all shards."""

  def __init__(self, directory: pathlib.Path):
    self._directory = directory
    self._seen = HashSet()

  def add(self, index: int) -> str | None:
    """Takes in the ids of a shard; returns one that occurred before."""
    shard = self._shard(index)
    rows = np.arange(len(shard))
    hashes = identifiers.hash_ids(shard.ids())
    base = index << 32
    self._seen.add(hashes, base | rows)
    positions, numbers = self._seen.find(hashes)
    others = numbers != base | positions  # Every id also finds itself.
    for position, number in zip(positions[others], numbers[others]):
      other = self._shard(int(number) >> 32).id_of(int(number) & 0xFFFFFFFF)
      if other == shard.id_of(int(position)):
        return other
    return None

  def _shard(self, index: int) -> Shard:
    return Shard(shard_path(self._directory, index))


def build_shards(
  paths: Sequence[str],
  directory: pathlib.Path,
  settings: Settings,
  *,
  shard_size: int,
  n_workers: int,
  known_entry: Callable[[Chunk], ShardEntry | None],
  progress: bool,
) -> list[ShardEntry]:
  """Makes every shard that is not there yet; returns the entries of all, in order.

  Raises:
    ValueError: a bad line, a duplicate id or no passage at all.
    RuntimeError: a worker process died.
  """
  duplicates = DuplicateFinder(directory)
  entries: dict[int, ShardEntry] = {}
  bar = bars.bar(
    total=sum(map(os.path.getsize, paths)), unit='B', unit_scale=True, desc='corpus', show=progress
  )

  def finish(chunk_index: int, position: int, entry: ShardEntry):
    repeated = duplicates.add(chunk_index)
    if repeated is not None:
      places = passages.find_lines(paths, repeated, settings.max_words)
      raise passages.duplicate_error(repeated, *places[:2])
    entries[chunk_index] = entry
    bar.update(max(0, position - bar.n))
    bar.set_postfix(passages=f'{sum(e.rows for e in entries.values()):,}')

  def missing() -> Iterator[Chunk]:
    for chunk in read_chunks(paths, shard_size):
      entry = known_entry(chunk)
      if entry is not None and entry.source == chunk.source and is_intact(directory, entry):
        finish(chunk.index, chunk.position, entry)
      else:
        yield chunk

  with bar:
    build = functools.partial(build_shard, directory, settings)
    for chunk, entry in _parallel_map(build, missing(), n_workers):
      finish(chunk.index, chunk.position, entry)
  if not entries:
    raise passages.empty_error(paths)
  return [entries[index] for index in range(len(entries))]


def _parallel_map(
  build: Callable[[Chunk], ShardEntry], chunks: Iterable[Chunk], n_workers: int
) -> Iterator[tuple[Chunk, ShardEntry]]:
  """Pairs of chunk and entry, as they are finished."""
  chunks = iter(chunks)
  first = list(itertools.islice(chunks, 2))
  chunks = itertools.chain(first, chunks)
  if n_workers == 1 or len(first) < 2:
    for chunk in chunks:
      yield chunk, build(chunk)
    return
  pool = concurrent.futures.ProcessPoolExecutor(
    n_workers, multiprocessing.get_context('spawn'), initializer=_start_worker
  )
  try:
    pending: dict[concurrent.futures.Future, Chunk] = {}
    while True:
      # One chunk waits for each worker that may fall idle, no more: chunks hold their lines.
      for chunk in itertools.islice(chunks, n_workers + 1 - len(pending)):
        pending[pool.submit(build, chunk)] = chunk
      if not pending:
        return
      done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
      for future in done:
        yield pending.pop(future), future.result()
  except concurrent.futures.process.BrokenProcessPool as error:
    raise RuntimeError(
      'a worker process of the corpus build died (out of memory, or a script '
      "without `if __name__ == '__main__'`); finished shards are kept: run it "
      'again, with fewer workers or smaller shards'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
  # An interrupt ends the parent, which lets its workers finish their shards.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # One worker is one core; the WordPiece library would start threads.
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'
  parent = multiprocessing.parent_process()
  if parent is None:
    return

  def end_with_parent():
    # A parent that was killed cannot tell its workers to end.
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


def discard(directory: pathlib.Path) -> None:
  """Removes a corpus; the manifest first, so that it is never half there."""
  (directory / corpus_manifest.FILE_NAME).unlink(missing_ok=True)
  remove_leftovers(directory)


def remove_leftovers(directory: pathlib.Path, manifest: Manifest | None = None) -> None:
  """Removes receipts, and shards that are not of the manifest."""
  named = {shard.file for shard in manifest.shards} if manifest else ()
  for pattern in ('shard-*.arrow', 'shard-*.receipt.json'):
    for path in directory.glob(pattern):
      if path.name not in named:
        path.unlink()
