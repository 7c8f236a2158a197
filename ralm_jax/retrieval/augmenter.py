"""RetrievalAugmenter: the hook between the data iterator and the train step.

A batch is *submitted* when its queries are encoded with the parameters of the moment; search and
assembly then run in a thread while the device works on the step before. `result()` gives the
assembled batch, `snapshot()` what a checkpoint needs to assemble it again.
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
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.ragged import RaggedTokens
from ralm_jax.models.retrieval_lm import ReaderBatch, RetrievalLM
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.retriever import PassageRetriever, Retrieved
from ralm_jax.retrieval.staleness import GenerationSteps
from ralm_jax.training import partitioning
from ralm_jax.training.partitioning import Partitioner

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Shown:
  """What a training example shows in place of what was retrieved."""

  queries: QueryBatch
  rows: np.ndarray  #: [b, k]
  titles: RaggedTokens | None = None  #: b * k that the reader sees; None for the passages' own


# (queries, rows, step) -> what is shown; the same for the same arguments.
Augmentation = Callable[[QueryBatch, np.ndarray, int], Shown]


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
  """A batch ready for the device."""

  queries: QueryBatch
  retrieved: Retrieved
  reader_batch: ReaderBatch  #: host arrays of the step
  metrics: dict[str, float]  #: of retrieval: recall, search seconds, generation, staleness
  generation_step: int | None = None  #: whose parameters embedded the generation; None if unknown


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """How batches are made of what is retrieved."""

  augmentation: Augmentation | None = None  #: changes what a training example shows
  recall_skip: int = 0  #: leading target tokens left out of the batch's recall
  n_passages: int | None = None  #: that a step trains on; None for all that are retrieved


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
    retrieved = prepared.retrieved
    arrays = {f'queries/{name}': value for name, value in vars(prepared.queries).items()}
    arrays |= {name: getattr(retrieved, name) for name in ('rows', 'scores', 'embeddings')}
    arrays |= {'generation': retrieved.generation, 'generation_step': prepared.generation_step}
    return {name: np.asarray(value) for name, value in arrays.items() if value is not None}


class RetrievalAugmenter:
  """Retrieves and assembles batches, one or more ahead of the step."""

  def __init__(
    self,
    model: RetrievalLM,
    partitioner: Partitioner,
    assembler: Assembler,
    retriever: PassageRetriever | None,
    options: BatchOptions = BatchOptions(),
    *,
    generation_steps: GenerationSteps | None = None,
    before_search: Callable[[], None] = lambda: None,
  ):
    """Compiles nothing yet.

    Args:
      retriever: None is closed-book. What it finds beyond `BatchOptions.n_passages` are candidates
        to be re-ranked.
      generation_steps: tells how stale a generation is.
    """
    self._model = model
    self._partitioner = partitioner
    self._assembler = assembler
    self._retriever = retriever
    self._options = options
    self._generation_steps = generation_steps
    self._before_search = before_search
    n_passages = options.n_passages
    reranks = retriever is not None and n_passages is not None and retriever.n_passages > n_passages
    self._with_retriever = model.scores_passages or reranks
    self._encode = partitioner.partition_rows(model.encode_queries)
    # One thread keeps searches in order, which keeps a run reproducible.
    self._pool = futures.ThreadPoolExecutor(1, thread_name_prefix='retrieval')

  def submit(self, params: PyTree, queries: QueryBatch, step: int) -> PendingBatch:
    """Starts retrieval for this process's examples of a step; encoding is dispatched by then."""
    embeddings = None
    if self._retriever is not None:
      pad_id = self._assembler.tokenizer.retriever_vocabulary.pad_id
      tokens = queries.query_tokens
      tokens, mask = self._partitioner.put_batch((tokens, tokens != pad_id))
      embeddings = self._encode(params, tokens, mask)
    return PendingBatch(self._pool.submit(self._search_and_assemble, embeddings, queries, step))

  def resume(self, arrays: dict[str, np.ndarray], step: int) -> PendingBatch:
    """The pending batch of a snapshot: nothing is searched again."""
    prefix = 'queries/'
    queries = QueryBatch(
      **{name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}
    )
    width = arrays['rows'].shape[1]
    if self._retriever is not None:
      width = self._retriever.n_passages
    retrieved = Retrieved(
      _widened(arrays['rows'], width, batches.NO_PASSAGE),
      _widened(arrays['scores'], width, -np.inf),
      int(arrays['generation']),
      _widened(arrays['embeddings'], width, 0) if 'embeddings' in arrays else None,
      '' if self._retriever is None else self._retriever.index_id,
    )
    if self._model.uses_stored_embeddings and retrieved.embeddings is None:
      raise ValueError(
        "The checkpoint holds no stored embeddings for its next batch, which query_side = 'stored' "
        'trains on; start another MODEL_DIR from its parameters (INITIAL_CHECKPOINT_PATH).'
      )
    if self._generation_steps is not None and 'generation_step' in arrays:
      self._generation_steps.tell(retrieved.generation, int(arrays['generation_step']))
    return PendingBatch(self._pool.submit(self._assemble, queries, retrieved, step, 0.0))

  def close(self) -> None:
    self._pool.shutdown(wait=False, cancel_futures=True)

  def _search_and_assemble(
    self, embeddings: jax.Array | None, queries: QueryBatch, step: int
  ) -> PreparedBatch:
    if embeddings is None:
      return self._assemble(queries, Retrieved.none(len(queries)), step, 0.0)
    assert self._retriever is not None
    local = partitioning.local_rows(embeddings)
    start = time.monotonic()
    self._before_search()
    retrieved = self._retriever.search(
      local, queries.exclude_rows, queries.max_dates, queries.exclude_document_keys
    )
    store = self._retriever.store
    if np.max(retrieved.rows, initial=-1) >= len(store):
      store.reload()  # a passage that was added to corpus and index just now
    return self._assemble(queries, retrieved, step, time.monotonic() - start)

  def _assemble(
    self, queries: QueryBatch, retrieved: Retrieved, step: int, search_seconds: float
  ) -> PreparedBatch:
    shown = Shown(queries, retrieved.rows)
    if self._options.augmentation is not None:
      shown = self._options.augmentation(queries, retrieved.rows, step)
    if self._model.uses_stored_embeddings:
      reader_batch = self._with_stored_embeddings(shown, retrieved)
    else:
      reader_batch = self._assembler.reader_batch(
        shown.queries, shown.rows, titles=shown.titles, with_retriever=self._with_retriever
      )
    generation_step, metrics = None, {}
    if self._retriever is not None:
      metrics = {
        **self._recall(reader_batch),
        'retrieval/search_seconds': search_seconds,
        'retrieval/generation': float(retrieved.generation),
      }
      if self._generation_steps is not None:
        generation_step = self._generation_steps.step_of(retrieved.generation)
      if generation_step is not None:
        metrics['retrieval/staleness'] = float(step - generation_step)
    return PreparedBatch(queries, retrieved, reader_batch, metrics, generation_step)

  def _with_stored_embeddings(self, shown: Shown, retrieved: Retrieved) -> ReaderBatch:
    """The passages' embeddings as the index holds them, not their tokens."""
    if not np.array_equal(shown.rows, retrieved.rows):
      raise ValueError(
        'The augmentation shows other passages than were retrieved, whose embeddings query_side = '
        "'stored' does not have; use query_side = 'frozen'."
      )
    return self._assembler.reader_batch(
      shown.queries, shown.rows, titles=shown.titles, passage_embeddings=retrieved.embeddings
    )

  def _recall(self, batch: ReaderBatch) -> dict[str, float]:
    """Of the passages that would be trained on, and of all candidates."""
    skip, n_passages = self._options.recall_skip, self._options.n_passages
    if n_passages is None or n_passages >= batch.reader_tokens.shape[1]:
      return {'retrieval/recall': self._assembler.answer_recall(batch, skip)}
    tokens, mask = batch.reader_tokens[:, :n_passages], batch.passage_mask[:, :n_passages]
    first = dataclasses.replace(batch, reader_tokens=tokens, passage_mask=mask)
    return {
      'retrieval/recall': self._assembler.answer_recall(first, skip),
      'retrieval/candidate_recall': self._assembler.answer_recall(batch, skip),
    }


def _widened(array: np.ndarray, width: int, fill: float) -> np.ndarray:
  """[b, k, ...] -> [b, width, ...]: a resumed run may retrieve more."""
  missing = max(0, width - array.shape[1])
  padding = [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]
  return np.pad(array[:, :width], padding, constant_values=fill)
