"""Embedding a corpus: every passage once, resumable, into a new generation."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ralm_jax.data.corpus import cut_text
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.data.text_config import TextConfig
from ralm_jax.files import atomic_files, progress as progress_bars
from ralm_jax.models.retrieval_lm import RetrievalLM
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner
from retrieval_service import generation_writer
from retrieval_service.generation_writer import EditBounds
from retrieval_service.generations import GenerationStore
from retrieval_service.options import IndexOptions

PyTree = Any
_PROGRESS = 'embedding.json'
_PARTIAL = 'embedding.float16'


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an encoder's parameters come from, for the record."""

  checkpoint: str = ''
  run: str | os.PathLike[str] | None = None  #: the MODEL_DIR of the run they are of
  step: int | None = None  #: of that run


class PassageEmbedder:
  """Encodes passages in batches of a few static lengths."""

  def __init__(
    self,
    model: RetrievalLM,
    partitioner: Partitioner,
    assembler: Assembler,
    *,
    batch_size: int = 256,
  ):
    """Compiles one program a length, when first needed, of a batch over all devices."""
    self._assembler = assembler
    self._batch_size = batch_size
    self._partitioner = partitioner
    self._encode = partitioner.partition_rows(model.encode_passages)
    limit = assembler.tokenizer.text.retriever_passage_length
    lengths = [limit]
    while lengths[0] > 32:
      lengths.insert(0, (lengths[0] + 1) // 2)
    self._lengths = np.asarray(lengths)

  @property
  def text(self) -> TextConfig:
    return self._assembler.tokenizer.text

  def embed(self, params: PyTree, rows: np.ndarray) -> np.ndarray:
    """Rows of the corpus, int64 [n] -> float32 [n, d]."""
    inputs = self._assembler.passage_inputs(rows)
    tokens, mask = inputs.tokens[:, 0], inputs.mask[:, 0]
    # Sorted by length, so that a batch pads to its own longest passage.
    order = np.argsort(mask.sum(-1), kind='stable')
    pending: list[tuple[np.ndarray, jax.Array]] = []
    for chosen in chunks(order, self._batch_size):
      longest = int(mask[chosen[-1]].sum())
      length = int(self._lengths[np.searchsorted(self._lengths, longest)])
      padded = np.resize(chosen, self._batch_size)
      batch = self._partitioner.put_batch((tokens[padded, :length], mask[padded, :length]))
      embeddings = self._encode(params, *batch)
      # On its way to the host as soon as it is there.
      embeddings.copy_to_host_async()
      pending.append((chosen, embeddings))
    result = np.empty((len(rows), pending[0][1].shape[1]), np.float32)
    for chosen, embeddings in pending:
      result[chosen] = partitioning.local_rows(embeddings)[: len(chosen)]
    return result

  def stream(self, params: PyTree, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """`embed` of one part after another, without a pause of the devices.

    While they work on a part, the host assembles the next. Parts are taken as they are needed.
    """
    pool = futures.ThreadPoolExecutor(2, thread_name_prefix='embedding')
    under_way: collections.deque[futures.Future[np.ndarray]] = collections.deque()
    try:
      for number, part in enumerate(parts):
        under_way.append(pool.submit(self.embed, params, part))
        if not number:
          # Alone, so that two threads do not compile the same program.
          futures.wait(under_way)
        if len(under_way) > 2:
          yield under_way.popleft().result()
      while under_way:
        yield under_way.popleft().result()
    finally:
      pool.shutdown(wait=True, cancel_futures=True)


def build_generation(
  embedder: PassageEmbedder,
  params: PyTree,
  store: PassageStore,
  index: str | os.PathLike[str],
  options: IndexOptions,
  *,
  origin: Origin = Origin(),
  chunk_size: int = 8192,
  progress: bool = True,
) -> int:
  """Embeds a corpus and publishes it as the index's current generation; its number.

  Interrupted, it goes on from the last finished chunk when called again with the same corpus and
  encoder. The INDEX folder is created where missing.

  Raises:
    ValueError: the index is of another corpus.
  """
  folder = GenerationStore(index)
  os.makedirs(index, exist_ok=True)
  # The edits first: whatever they put is in the corpus that is read next.
  edits = EditBounds(applied=folder.edit_log().last)
  store.reload()
  _check_same_corpus(folder, store)
  if note := cut_text.note(store, embedder.text):
    logging.warning('%s', note)
  fingerprint = retriever_fingerprint(params)
  key = {'corpus_fingerprint': store.fingerprint, 'encoder': fingerprint}
  rows = live_rows(store)
  stream = functools.partial(embedder.stream, params)
  embeddings, rate = _embed_all(stream, rows, folder.directory, key, chunk_size, progress)
  metadata = {**describe(store, fingerprint, index, origin), 'passages_per_second': rate}
  dim = embeddings.shape[1]
  with generation_writer.begin(folder, options, dim, metadata, edits=edits) as writer:
    for part, chunk in zip(chunks(rows, 65536), chunks(embeddings, 65536)):
      writer.append(ids_of(part, rows), chunk)
    number = writer.commit()
  del embeddings
  for name in (_PARTIAL, _PROGRESS):
    os.remove(os.path.join(index, name))
  return number


def _embed_all(
  stream: Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]],
  rows: np.ndarray,
  index: str,
  key: dict[str, str],
  chunk_size: int,
  progress: bool,
) -> tuple[np.ndarray, float]:
  """float16 [n, d], in a file that goes on what is there of this `key`; and how many a second."""
  partial, mark = os.path.join(index, _PARTIAL), os.path.join(index, _PROGRESS)
  done, dim = _progress(mark, partial, key)
  start, first_done = time.monotonic(), done
  counted: dict[str, Any] = {'total': len(rows), 'initial': done, 'unit': ' passages'}
  bar = progress_bars.bar(desc='embedding', show=progress, **counted)
  with bar, open(partial, 'r+b' if done else 'wb') as file:
    file.truncate(done * dim * 2)
    file.seek(0, os.SEEK_END)
    parts = list(chunks(rows[done:], chunk_size))
    for part, chunk in zip(parts, stream(parts)):
      embeddings = as_stored(chunk, part)
      dim = embeddings.shape[1]
      file.write(embeddings.tobytes())
      file.flush()
      os.fsync(file.fileno())
      done += len(part)
      atomic_files.write_json(mark, {**key, 'rows': done, 'dim': dim})
      bar.update(len(part))
  seconds = max(time.monotonic() - start, 1e-9)
  embeddings = np.memmap(partial, np.float16, 'r', shape=(len(rows), dim))
  return embeddings, round((len(rows) - first_done) / seconds, 1)


def _check_same_corpus(folder: GenerationStore, store: PassageStore) -> None:
  """Raises ValueError where edits and generations name rows of another corpus."""
  served = folder.open_current(verify_checksums=False)
  metadata = served.manifest.metadata if served else {}
  fingerprint = metadata.get('corpus_fingerprint')
  if fingerprint and store.rows_at(fingerprint) is None:
    raise ValueError(
      f'{folder.directory} is an index of another corpus ({metadata.get("corpus")}) than '
      f'{store.directory}; choose another folder for it, or remove that index first.'
    )


def live_rows(store: PassageStore) -> np.ndarray:
  """int64 [n], rows of the corpus that belong into an index, ascending."""
  return np.setdiff1d(np.arange(len(store), dtype=np.int64), store.superseded(), assume_unique=True)


def ids_of(part: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
  """The ids of a part of `rows`; None where ids are row numbers throughout."""
  return None if not len(rows) or rows[-1] == len(rows) - 1 else part


def as_stored(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
  """float [n, d] of these rows -> float16, or ValueError where that cannot be."""
  with np.errstate(over='ignore'):
    stored = embeddings.astype(np.float16)
  if not np.all(np.isfinite(stored)):
    raise ValueError(
      f'The passage encoder gives NaN or values beyond float16 for rows {rows[0]} '
      f'to {rows[-1]}; is the checkpoint a retriever?'
    )
  return stored


def describe(
  store: PassageStore,
  fingerprint: str,
  index: str | os.PathLike[str] | None = None,
  origin: Origin = Origin(),
) -> dict[str, Any]:
  """What an index, in a folder on this machine, says of how its encoder embedded it."""
  metadata: dict[str, Any] = {
    'corpus': os.path.abspath(store.directory),
    'corpus_fingerprint': store.fingerprint,
    'encoder_fingerprint': fingerprint,
    'checkpoint': origin.checkpoint,
  }
  if index is not None:
    metadata['corpus_relative'] = os.path.relpath(store.directory, index)
  if origin.run is not None:
    metadata |= {'run': os.path.realpath(origin.run), 'step': origin.step}
  return metadata


def chunks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
  """Consecutive parts of an array, the last one maybe smaller."""
  for first in range(0, len(array), size):
    yield array[first : first + size]


def _progress(mark: str, partial: str, key: dict[str, str]) -> tuple[int, int]:
  """Rows already embedded of the same corpus by the same encoder, and dim."""
  try:
    with open(mark, encoding='utf-8') as file:
      found = json.load(file)
    rows, dim = int(found['rows']), int(found['dim'])
    same = all(found.get(name) == value for name, value in key.items())
    whole = os.path.getsize(partial) >= rows * dim * 2
  except (OSError, ValueError, KeyError):
    return 0, 0
  return (rows, dim) if same and whole else (0, 0)


def is_of(metadata: dict[str, Any], store: PassageStore, fingerprint: str) -> bool:
  """Whether an index says it is of this corpus and the passage encoder of this fingerprint."""
  found = metadata.get('corpus_fingerprint'), metadata.get('encoder_fingerprint')
  return found == (store.fingerprint, fingerprint)


def gathered_retriever(params: PyTree) -> PyTree:
  """`{'retriever': ...}`, whole on every process; all of them call it."""
  params = {'retriever': params['retriever']}
  if jax.process_count() == 1:
    return params
  return multihost_utils.process_allgather(params, tiled=True)


def retriever_fingerprint(params: PyTree) -> str:
  """A digest of the passage encoder's parameters."""
  tower = params['retriever']
  return fingerprint(tower.get('passage_encoder', tower))


def fingerprint(params: PyTree) -> str:
  """A digest of parameters by their names."""
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(jax.tree_util.tree_leaves_with_path(params), key=lambda x: str(x[0])):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()
