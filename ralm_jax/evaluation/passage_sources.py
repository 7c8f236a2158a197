"""Where the passages of questions come from: an index, their own file, nowhere."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data.batches import QueryBatch
from ralm_jax.data.questions.file_passages import FilePassages
from ralm_jax.data.questions.reading import FilePassage, Question
from ralm_jax.evaluation.searched_corpus import SearchedCorpus
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.retriever import PassageRetriever, Retrieved
from ralm_jax.training import partitioning
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.results import IndexSwappedError

PyTree = Any
SOURCES = ('index', 'file', 'none')
_SEARCH_ATTEMPTS = 5


class PassageSource(Protocol):
  """Finds passages for a batch of questions.

  Attributes:
    name: of what passages are taken from, as it is now.
    store: whose rows the passages found last are; None for closed-book.
    assembler: builds the reader's arrays of them.
  """

  name: str
  store: Any
  assembler: Assembler

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """Passages of a batch; rows beyond the questions are those of padding."""


class NoPassages:
  """Closed-book."""

  name = 'none'
  store = None

  def __init__(self, spec: Specification, size: int):
    self.assembler = Assembler(spec.tokenizer, None)
    self._size = size

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """One empty slot a question."""
    del params, questions
    return Retrieved.none(self._size)


class FileSource:
  """The passages that the questions bring along, scored by the retriever.

  They stay in the order of the file, as Atlas's `use_file_passages` has them,
  but a question's exclusions hold. They have no dates, so that a question's does
  not bound them.
  """

  name = 'file'

  def __init__(
    self,
    spec: Specification,
    partitioner: Partitioner,
    size: int,
    n_passages: int,
    *,
    excludes: bool = True,
  ):
    """Compiles nothing yet.

    Args:
      spec: the model and its texts.
      partitioner: of the mesh.
      size: questions of a batch.
      n_passages: read of each question, the first ones.
      excludes: whether what a question excludes is left out.
    """
    self._spec = spec
    self._partitioner = partitioner
    self._size, self._n_passages = size, n_passages
    self._excludes = excludes
    self._score = partitioner.partition_rows(spec.model.retriever_scores)
    self._use([])

  def _use(self, passages: Sequence[FilePassage]) -> None:
    tokenizer = self._spec.tokenizer
    self.store = FilePassages(passages, tokenizer.reader_vocabulary, tokenizer.retriever_vocabulary)
    self.assembler = Assembler(tokenizer, self.store)

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """The first passages of each question."""
    rows = np.full((self._size, self._n_passages), -1, np.int64)
    passages: list[FilePassage] = []
    for i, question in enumerate(questions):
      shown = [
        passage
        for passage in getattr(question, 'passages', ())
        if not self._excludes or passage.id not in question.exclude_passage_ids
      ][: self._n_passages]
      rows[i, : len(shown)] = len(passages) + np.arange(len(shown))
      passages += shown
    self._use(passages)
    queries = self._spec.tokenizer.batch(list(map(question_text, questions)), size=self._size)
    batch = self.assembler.reader_batch(queries, rows)
    scores = partitioning.local_rows(self._score(params, self._partitioner.put_batch(batch)))
    # As a search's inner products are: before any scaling.
    model = self._spec.model
    scores = scores * (model.score_divisor / model.temperature_score)
    return Retrieved(rows, np.where(rows >= 0, scores, -np.inf).astype(np.float32), 0)


class IndexSource:
  """Searches an index, re-ranks if asked to, and follows swaps of the index."""

  def __init__(
    self,
    spec: Specification,
    partitioner: Partitioner,
    retriever: PassageRetriever,
    size: int,
    *,
    rerank_to: int | None = None,
    rerank_chunk: int | None = None,
  ):
    """Compiles nothing yet; arguments as for `evaluator.Evaluator`."""
    self._spec = spec
    self._partitioner = partitioner
    self._retriever = retriever
    self._size = size
    self._agreement = Agreement()
    self._searched = SearchedCorpus(spec.tokenizer, retriever.store)
    self._encode = partitioner.partition_rows(spec.model.encode_queries)
    self._rerank = None
    if rerank_to is not None:

      def rerank(params, candidates):
        reranked = spec.model.rerank(params, candidates, rerank_to, chunk=rerank_chunk)
        return reranked.chosen, reranked.scores

      self._rerank = partitioner.partition_rows(rerank)

  @property
  def name(self) -> str:
    status = self._retriever.client.status()
    return (
      f'{getattr(status, "index_id", "")} generation '
      f'{getattr(status, "generation", "")} with '
      f'{getattr(status, "edits", 0)} edits'
    )

  @property
  def store(self) -> Any:
    return self._searched.store

  @property
  def assembler(self) -> Assembler:
    return self._searched.assembler

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """The best passages that each question may see."""
    tokenizer = self._spec.tokenizer
    queries = tokenizer.batch(list(map(question_text, questions)), size=self._size)
    mask = queries.query_tokens != tokenizer.retriever_vocabulary.pad_id
    batch = self._partitioner.put_batch((queries.query_tokens, mask))
    embeddings = partitioning.local_rows(self._encode(params, *batch))
    # A search that fails on one host must not leave the others waiting.
    with self._agreement.together():
      retrieved = self._search(embeddings, questions)
    if self._rerank is None:
      return retrieved
    return self._choose(params, queries, retrieved)

  def _search(self, embeddings: np.ndarray, questions: Sequence[Question | str]) -> Retrieved:
    """Searches the index that is served, from the beginning where it changes."""
    for attempt in range(_SEARCH_ATTEMPTS):
      # Also where another evaluator has had the retriever follow.
      if self._searched.store is not self._retriever.store:
        self._searched = SearchedCorpus(self._spec.tokenizer, self._retriever.store)
      bounds = self._searched.bounds(questions, len(embeddings))
      try:
        return self._retriever.search(embeddings, bounds.exclude_rows, bounds.max_dates)
      except IndexSwappedError:
        if not self._retriever.follows or attempt == _SEARCH_ATTEMPTS - 1:
          raise
        self._retriever.follow()
    raise AssertionError('unreachable')

  def _choose(self, params: PyTree, queries: QueryBatch, retrieved: Retrieved) -> Retrieved:
    """The candidates that are best by the encoders of now."""
    candidates = self.assembler.reader_batch(queries, retrieved.rows)
    chosen, scores = (
      partitioning.local_rows(array)
      for array in self._rerank(params, self._partitioner.put_batch(candidates))
    )
    return dataclasses.replace(
      retrieved,
      rows=np.take_along_axis(retrieved.rows, chosen, axis=1),
      scores=scores,
      embeddings=None,
    )


def question_text(question: Question | str) -> str:
  """What is asked."""
  return question if isinstance(question, str) else question.question


def per_process(batch_size: int, partitioner: Partitioner) -> int:
  """Questions of a batch that each process answers.

  Raises:
    ValueError: processes or data partitions do not divide the batch.
  """
  if batch_size < 1:
    raise ValueError(f'The evaluation batch size must be at least 1, not {batch_size}.')
  if batch_size % jax.process_count():
    raise ValueError(
      f'The evaluation batch size {batch_size} must be a multiple of the '
      f'number of processes, {jax.process_count()}.'
    )
  shards = partitioner.mesh.shape[partitioning.DATA]
  if jax.process_count() > 1 and batch_size % shards:
    raise ValueError(
      f'On several processes the evaluation batch size {batch_size} must '
      f'be a multiple of the {shards} data partitions (gin: '
      'EVAL_BATCH_SIZE).'
    )
  return batch_size // jax.process_count()
