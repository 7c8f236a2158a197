"""RetrievalAugmenter: the hook between the data iterator and the train step.

A batch is *submitted* when its queries are encoded with the parameters of the
moment; search and assembly then run in a thread while the device works on the
step before. `result()` gives the assembled batch, `snapshot()` what a
checkpoint needs to assemble it again.
"""
from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import dataclasses
import time
from typing import Any

import jax
import numpy as np

from ralm_jax.data import batches
from ralm_jax.data import ragged
from ralm_jax.models import retrieval_lm
from ralm_jax.retrieval import assembler as assembler_lib
from ralm_jax.retrieval import retriever as retriever_lib
from ralm_jax.training import partitioning

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Shown:
  """What a training example shows in place of what was retrieved.

  Attributes:
    queries: the examples, with their targets.
    rows: int64 [batch, n_passages].
    titles: batch * n_passages titles for the reader; None for the own ones.
  """

  queries: batches.QueryBatch
  rows: np.ndarray
  titles: ragged.RaggedTokens | None = None


# (queries, rows, step) -> what is shown; the same for the same arguments.
Augmentation = Callable[[batches.QueryBatch, np.ndarray, int], Shown]


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
  """A batch ready for the device.

  Attributes:
    queries: the examples.
    retrieved: what was found for them.
    reader_batch: host arrays of the step.
    metrics: of retrieval: recall, search seconds, generation.
  """

  queries: batches.QueryBatch
  retrieved: retriever_lib.Retrieved
  reader_batch: retrieval_lm.ReaderBatch
  metrics: dict[str, float]


class PendingBatch:
  """A batch whose search is under way."""

  def __init__(self, future: futures.Future[PreparedBatch]):
    self._future = future

  def result(self) -> PreparedBatch:
    """Waits for the batch; raises what the search raised."""
    return self._future.result()

  def snapshot(self) -> dict[str, np.ndarray]:
    """Arrays from which `RetrievalAugmenter.resume` assembles it again."""
    prepared = self.result()
    arrays = {
        f'queries/{field.name}': value
        for field in dataclasses.fields(prepared.queries)
        if (value := getattr(prepared.queries, field.name)) is not None
    }
    arrays['rows'] = prepared.retrieved.rows
    arrays['scores'] = prepared.retrieved.scores
    arrays['generation'] = np.asarray(prepared.retrieved.generation, np.int64)
    return arrays


class RetrievalAugmenter:
  """Retrieves and assembles batches, one or more ahead of the step."""

  def __init__(
      self,
      model: retrieval_lm.RetrievalLM,
      partitioner: partitioning.Partitioner,
      assembler: assembler_lib.Assembler,
      retriever: retriever_lib.PassageRetriever | None,
      *,
      augmentation: Augmentation | None = None,
      recall_skip: int = 0,
  ):
    """Compiles nothing yet.

    Args:
      model: encodes the queries.
      partitioner: of the mesh.
      assembler: builds the arrays.
      retriever: searches; None is closed-book.
      augmentation: changes what a training example shows.
      recall_skip: leading target tokens left out of the batch's recall.
    """
    self._model = model
    self._partitioner = partitioner
    self._assembler = assembler
    self._retriever = retriever
    self._augmentation = augmentation
    self._recall_skip = recall_skip
    self._encode = partitioner.partition_rows(model.encode_queries)
    # One thread keeps searches in order, which keeps a run reproducible.
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='retrieval')

  def submit(
      self, params: PyTree, queries: batches.QueryBatch, step: int
  ) -> PendingBatch:
    """Starts retrieval for a batch that step `step` will train on.

    Args:
      params: encode the queries; dispatched before this returns.
      queries: this process's examples.
      step: the step the batch belongs to.
    """
    embeddings = None
    if self._retriever is not None:
      pad_id = self._assembler.tokenizer.retriever_vocabulary.pad_id
      tokens = queries.query_tokens
      tokens, mask = self._partitioner.put_batch((tokens, tokens != pad_id))
      embeddings = self._encode(params, tokens, mask)
    return PendingBatch(
        self._pool.submit(self._search_and_assemble, embeddings, queries, step)
    )

  def resume(self, arrays: dict[str, np.ndarray], step: int) -> PendingBatch:
    """The pending batch of a snapshot: nothing is searched again."""
    queries = batches.QueryBatch(**{
        name.split('/', 1)[1]: value
        for name, value in arrays.items()
        if name.startswith('queries/')
    })
    retrieved = retriever_lib.Retrieved(
        arrays['rows'], arrays['scores'], int(arrays['generation'])
    )
    return PendingBatch(
        self._pool.submit(self._assemble, queries, retrieved, step, 0.0)
    )

  def close(self) -> None:
    self._pool.shutdown(wait=False, cancel_futures=True)

  def _search_and_assemble(
      self, embeddings: jax.Array | None, queries: batches.QueryBatch, step: int
  ) -> PreparedBatch:
    if embeddings is None:
      retrieved = retriever_lib.Retrieved.none(len(queries))
      return self._assemble(queries, retrieved, step, 0.0)
    local = partitioning.local_rows(embeddings)
    start = time.monotonic()
    retrieved = self._retriever.search(local, queries.exclude_rows)
    return self._assemble(queries, retrieved, step, time.monotonic() - start)

  def _assemble(
      self,
      queries: batches.QueryBatch,
      retrieved: retriever_lib.Retrieved,
      step: int,
      search_seconds: float,
  ) -> PreparedBatch:
    shown = Shown(queries, retrieved.rows)
    if self._augmentation is not None:
      shown = self._augmentation(queries, retrieved.rows, step)
    reader_batch = self._assembler.reader_batch(
        shown.queries, shown.rows, titles=shown.titles,
        with_retriever=self._model.distils,
    )
    metrics = {}
    if self._retriever is not None:
      metrics = {
          'retrieval/recall': assembler_lib.answer_recall(
              reader_batch, self._recall_skip),
          'retrieval/search_seconds': search_seconds,
          'retrieval/generation': float(retrieved.generation),
      }
    return PreparedBatch(queries, retrieved, reader_batch, metrics)
