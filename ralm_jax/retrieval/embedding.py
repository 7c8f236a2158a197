"""Embedding a corpus: every passage once, resumable, into a new generation."""
from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
import os
import time
from typing import Any

import jax
import numpy as np

from ralm_jax import progress as progress_lib
from ralm_jax.data import corpus as corpus_lib
from ralm_jax.models import retrieval_lm
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.training import partitioning
from retrieval_service import generations
from retrieval_service import options as options_lib

PyTree = Any
_PROGRESS = 'embedding.json'
_PARTIAL = 'embedding.float16'


class PassageEmbedder:
  """Encodes passages in batches of a few static lengths."""

  def __init__(
      self,
      model: retrieval_lm.RetrievalLM,
      partitioner: partitioning.Partitioner,
      assembler: assembler_lib.Assembler,
      *,
      batch_size: int = 256,
  ):
    """Compiles one program a length, when first needed.

    Args:
      model: with the passage encoder.
      partitioner: of the mesh.
      assembler: makes the encoder's inputs.
      batch_size: passages at a time, over all devices.
    """
    self._assembler = assembler
    self._batch_size = batch_size
    self._partitioner = partitioner
    self._encode = partitioner.partition_rows(model.encode_passages)
    limit = assembler.tokenizer.text.retriever_passage_length
    lengths = [limit]
    while lengths[0] > 32:
      lengths.insert(0, (lengths[0] + 1) // 2)
    self._lengths = np.asarray(lengths)

  def embed(self, params: PyTree, rows: np.ndarray) -> np.ndarray:
    """rows: int64 [n] of the corpus -> float32 [n, dim]."""
    inputs = self._assembler.passage_inputs(rows)
    tokens, mask = inputs.tokens[:, 0], inputs.mask[:, 0]
    # Sorted by length, so that a batch pads to its own longest passage.
    order = np.argsort(mask.sum(-1), kind='stable')
    pending: list[tuple[np.ndarray, jax.Array]] = []
    result: np.ndarray | None = None
    for first in range(0, len(order), self._batch_size):
      chosen = order[first : first + self._batch_size]
      longest = int(mask[chosen[-1]].sum())
      length = int(self._lengths[np.searchsorted(self._lengths, longest)])
      padded = np.resize(chosen, self._batch_size)
      batch = self._partitioner.put_batch(
          (tokens[padded, :length], mask[padded, :length])
      )
      pending.append((chosen, self._encode(params, *batch)))
    for chosen, embeddings in pending:
      host = partitioning.local_rows(embeddings)[: len(chosen)]
      if result is None:
        result = np.empty((len(rows), host.shape[1]), np.float32)
      result[chosen] = host
    assert result is not None
    return result


def build_generation(
    embedder: PassageEmbedder,
    params: PyTree,
    store: corpus_lib.PassageStore,
    index: str | os.PathLike[str],
    options: options_lib.IndexOptions,
    *,
    checkpoint: str = '',
    chunk_size: int = 8192,
    progress: bool = True,
) -> int:
  """Embeds a corpus and publishes it as the index's current generation.

  Interrupted, it goes on from the last finished chunk when called again with
  the same corpus and encoder.

  Args:
    embedder: encodes.
    params: of the model.
    store: the corpus.
    index: the INDEX folder, created where missing.
    options: of the FAISS index.
    checkpoint: where the parameters come from, for the record.
    chunk_size: passages between two marks of progress.
    progress: show a progress bar.

  Returns:
    The generation's number.
  """
  fingerprint = retriever_fingerprint(params)
  os.makedirs(index, exist_ok=True)
  key = {'corpus_fingerprint': store.fingerprint, 'encoder': fingerprint}
  partial = os.path.join(index, _PARTIAL)
  mark = os.path.join(index, _PROGRESS)
  done, dim = _progress(mark, partial, key)
  start, first_done = time.monotonic(), done
  with progress_lib.bar(
      total=len(store), initial=done, unit=' passages', desc='embedding',
      show=progress,
  ) as bar:
    mode = 'r+b' if done else 'wb'
    with open(partial, mode) as file:
      if done:
        file.truncate(done * dim * 2)
        file.seek(0, os.SEEK_END)
      while done < len(store):
        rows = np.arange(done, min(done + chunk_size, len(store)))
        embeddings = embedder.embed(params, rows).astype(np.float16)
        if not np.all(np.isfinite(embeddings)):
          raise ValueError(
              f'The passage encoder gives values beyond float16 for rows '
              f'{rows[0]} to {rows[-1]}; is the checkpoint a retriever?'
          )
        dim = embeddings.shape[1]
        file.write(embeddings.tobytes())
        file.flush()
        os.fsync(file.fileno())
        done = int(rows[-1]) + 1
        _write_json(mark, {**key, 'rows': done, 'dim': dim})
        bar.update(len(rows))
  seconds = max(time.monotonic() - start, 1e-9)
  metadata = {
      'corpus': os.path.abspath(store.directory),
      'corpus_relative': os.path.relpath(store.directory, index),
      'corpus_fingerprint': store.fingerprint,
      'checkpoint': checkpoint,
      'encoder_fingerprint': fingerprint,
      'passages_per_second': round((len(store) - first_done) / seconds, 1),
  }
  embeddings = np.memmap(partial, np.float16, 'r', shape=(len(store), dim))
  with generations.GenerationStore(index).begin(
      options, dim, metadata
  ) as writer:
    for chunk in _chunks(embeddings, 65536):
      writer.append(None, chunk)
    number = writer.commit()
  del embeddings
  os.remove(partial)
  os.remove(mark)
  return number


def _chunks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
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


def _write_json(path: str, value: dict[str, Any]) -> None:
  with open(path + '.tmp', 'w', encoding='utf-8') as file:
    json.dump(value, file)
  os.replace(path + '.tmp', path)


def retriever_fingerprint(params: PyTree) -> str:
  """A digest of the passage encoder's parameters."""
  tower = params['retriever']
  tower = tower.get('passage_encoder', tower)
  digest = hashlib.blake2b(digest_size=16)
  for path, leaf in sorted(
      jax.tree_util.tree_leaves_with_path(tower), key=lambda x: str(x[0])
  ):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
  return digest.hexdigest()
