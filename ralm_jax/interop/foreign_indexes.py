"""Indexes of other programs as ours: Atlas's folders, Contriever's and DPR's files.

An Atlas folder becomes a corpus and an index, since it holds the passages; its shards are read one
after the other, and no more than one is in memory. Files of embeddings alone become the index of a
corpus that exists, by its ids. Pickles are read by `restricted_pickle`, torch files by
`torch_archive`: nothing in them is ever executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import os
import re

import numpy as np

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.text.vocabularies import Vocabulary
from ralm_jax.files import input_files, progress as progress_lib
from ralm_jax.interop import atlas_passages
from ralm_jax.interop.atlas_passages import CorpusOptions, Shard
from ralm_jax.interop.files import embedding_files
from ralm_jax.interop.files.embedding_files import RowFinder
from ralm_jax.interop.files.torch_archive import StoredTensor, TorchArchive
from ralm_jax.retrieval import embedding
from ralm_jax.retrieval.embedding import Origin
from retrieval_service import generation_writer
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class ConvertedIndex:
  """What a conversion made."""

  generation: int
  passages: int
  dim: int


def convert_atlas_index(
  directory: PathLike,
  corpus_directory: PathLike,
  index_directory: PathLike,
  reader_vocabulary: PathLike | Vocabulary,
  retriever_vocabulary: PathLike | Vocabulary,
  options: IndexOptions = IndexOptions(),
  corpus_options: CorpusOptions = CorpusOptions(),
  *,
  progress: bool = True,
) -> ConvertedIndex:
  """Makes a corpus and an index of an Atlas index folder.

  Row i of the corpus is the i-th passage of the folder, shard after shard. Interrupted, it goes on
  when called again: finished shards of the corpus are kept, the index is written anew.

  Args:
    directory: with `embeddings.{i}.pt` (float16 [dim, n]) and `passages.{i}.pt`
      (a pickled list of dicts), i from 0.
    options: of the FAISS index; Atlas's own (`*.faiss`) is not read.

  Raises:
    FileNotFoundError: a file is missing.
    FileExistsError: the index folder holds an index, or the corpus folder another corpus.
    ValueError: a file is truncated or of another kind, a shard's passages and
      embeddings differ in number, an id is missing or repeats, or a passage is
      malformed (the message names file and position).
  """
  shards = _atlas_shards(os.fspath(directory))
  _check_empty(index_directory)
  passages = [Shard(shard.passages, shard.rows) for shard in shards]
  vocabularies = reader_vocabulary, retriever_vocabulary
  store = atlas_passages.build_corpus(
    passages, corpus_directory, *vocabularies, corpus_options, progress=progress
  )

  def embeddings() -> Iterator[tuple[str, np.ndarray, None]]:
    for shard in shards:
      yield shard.embeddings, _read_embeddings(shard), None

  source = os.fspath(directory)
  return _write_index(embeddings(), store, index_directory, options, source, progress)


def convert_embeddings(
  files: PathLike | Iterable[PathLike],
  corpus: PathLike,
  index_directory: PathLike,
  options: IndexOptions = IndexOptions(),
  *,
  id_prefix: str = '',
  allow_missing: bool = False,
  allow_unused: bool = False,
  progress: bool = True,
) -> ConvertedIndex:
  """Makes an index of a corpus from embeddings that another program made.

  One file is in memory at a time. Embeddings in the order of the corpus make
  the more compact index.

  Args:
    files: paths or globs of Contriever's (`passages_00`: a pickled pair of ids
      and array [n, dim]) or DPR's (a pickled list of (id, vector)).
    id_prefix: what the ids in the files begin with and those of the corpus do not (DPR's `wiki:`).
    allow_missing: passages of the corpus may have no embedding; no search finds them.
    allow_unused: embeddings whose id the corpus does not have are left out.

  Raises:
    FileNotFoundError: a file is missing.
    FileExistsError: the index folder holds an index.
    ValueError: a file is truncated or of another kind; an id is unknown or
      comes twice; a passage has no embedding; dimensions differ, or float16
      cannot hold a value. The message names the file.
  """
  paths = input_files.expand_inputs(files)
  _check_empty(index_directory)
  store = PassageStore.open(os.fspath(corpus))
  finder = RowFinder(store, id_prefix, allow_unused)

  def embeddings() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    yield from embedding_files.read_files(paths, finder)
    if not allow_missing:
      finder.check_complete()

  source = paths[0] + (f' and {len(paths) - 1} other files' if len(paths) > 1 else '')
  return _write_index(embeddings(), store, index_directory, options, source, progress)


def _check_empty(index: PathLike) -> None:
  numbers = GenerationStore(index).numbers()
  if numbers:
    raise FileExistsError(
      f'{os.fspath(index)} holds an index already (generation {numbers[-1]}); '
      'name another folder, or remove it first.'
    )


def _write_index(
  parts: Iterator[tuple[str, np.ndarray, np.ndarray | None]],
  store: PassageStore,
  index: PathLike,
  options: IndexOptions,
  source: str,
  progress: bool,
) -> ConvertedIndex:
  """Writes (file, embeddings [n, dim], rows or None) as the first generation."""
  os.makedirs(index, exist_ok=True)
  folder = GenerationStore(index)
  origin = Origin(f'made by another program: {source}')
  metadata = embedding.describe(store, '', index, origin)
  writer, dim = None, 0
  bar = progress_lib.bar(total=len(store), unit=' embeddings', desc='index', show=progress)
  with bar, contextlib.ExitStack() as stack:
    for file, embeddings, rows in parts:
      if writer is None:
        dim = embeddings.shape[1]
        beginning = generation_writer.begin(folder, options, dim, metadata, progress=progress)
        writer = stack.enter_context(beginning)
      for start in range(0, len(embeddings), embedding_files.PIECE):
        chosen = slice(start, start + embedding_files.PIECE)
        try:
          writer.append(None if rows is None else rows[chosen], embeddings[chosen])
        except ValueError as e:
          raise ValueError(f'{file}: {e}') from e
        bar.update(len(embeddings[chosen]))
      # Or it stays until the next one is there as well.
      del embeddings, rows
    if writer is None:
      raise ValueError(f'{source}: none of the embeddings is of a passage of {store.directory}.')
    passages = writer.count
    number = writer.commit()
  return ConvertedIndex(number, passages, dim)


@dataclasses.dataclass(frozen=True)
class _AtlasShard:
  """Two files of an Atlas folder and what the embeddings' header says."""

  passages: str
  embeddings: str
  dim: int
  rows: int


def _atlas_shards(directory: str) -> list[_AtlasShard]:
  """All shards in order; reads no passage and no embedding."""
  if not os.path.isdir(directory):
    raise FileNotFoundError(
      f'{directory} is not a folder; give that of an '
      'Atlas index (embeddings.0.pt, passages.0.pt, …).'
    )
  shards: list[_AtlasShard] = []
  names = set(os.listdir(directory))
  pattern = re.compile(r'(?:embeddings|passages)\.(\d+)\.pt')
  numbers = {int(match[1]) for name in names if (match := pattern.fullmatch(name))}
  if not numbers:
    raise FileNotFoundError(
      f'{directory} holds no embeddings.0.pt and passages.0.pt; found '
      f'{sorted(names)[:8]}. Is it the folder of an Atlas index?'
    )
  for number in range(max(numbers) + 1):
    paths = [f'{kind}.{number}.pt' for kind in ('passages', 'embeddings')]
    for name in paths:
      if name not in names:
        raise FileNotFoundError(
          f'{directory} has no {name}, but files up to {max(numbers)}; the download is incomplete.'
        )
    passages, embeddings = (os.path.join(directory, name) for name in paths)
    shape = _header(embeddings).shape
    if len(shape) != 2:
      raise ValueError(f'{embeddings} holds a tensor of shape {shape}, expected [dim, passages].')
    shards.append(_AtlasShard(passages, embeddings, *shape))
    if shape[0] != shards[0].dim:
      raise ValueError(
        f'{embeddings} has embeddings of size {shape[0]}, {shards[0].embeddings} of size '
        f'{shards[0].dim}; they are of two indexes.'
      )
  return shards


def _header(path: str) -> StoredTensor:
  value = TorchArchive(path).value
  if not isinstance(value, StoredTensor):
    raise ValueError(f'{path} holds a {type(value).__name__}, expected one tensor [dim, passages].')
  if value.info.dtype.kind not in 'fV':  # bfloat16 counts as void.
    raise ValueError(f'{path} holds a tensor of {value.info.dtype}, expected float16.')
  return value


def _read_embeddings(shard: _AtlasShard) -> np.ndarray:
  """[n, dim], a view of what the file has."""
  archive = TorchArchive(shard.embeddings)
  tensor = archive.read(archive.value)
  if tensor.size and not tensor.any():
    raise ValueError(
      f'{shard.embeddings} holds nothing but zeros: it was saved before the index was built.'
    )
  return tensor.T
