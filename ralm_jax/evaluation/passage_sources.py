"""Where the passages of questions come from: an index, their own file, nowhere."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol, cast

import jax
import numpy as np

from ralm_jax.checkpoints.specification import Specification
from ralm_jax.data import dates
from ralm_jax.data.corpus.passage_ids import RowsOfIds
from ralm_jax.data.corpus.passage_store import PassageStore, StoredPassage
from ralm_jax.data.questions.file_passages import FilePassages
from ralm_jax.data.questions.reading import FilePassage, Question
from ralm_jax.evaluation.task import PassageOptions
from ralm_jax.losses.array_types import Int
from ralm_jax.models.reader_batch import ReaderBatch
from ralm_jax.retrieval import prompt_assembler
from ralm_jax.retrieval.assembler import Assembler
from ralm_jax.retrieval.retriever import PassageRetriever, Retrieved
from ralm_jax.training import partitioning
from ralm_jax.training.multihost import Agreement
from ralm_jax.training.partitioning import Partitioner
from retrieval_service.results import IndexSwappedError

PyTree = Any
_SEARCH_ATTEMPTS = 5


class PassageSource(Protocol):
  """Finds passages for a batch of questions.

  `name` says what they are taken from now, `store` whose rows those found last are (None
  for closed-book), and `assembler` builds the reader's arrays of them.
  """

  @property
  def name(self) -> str: ...
  @property
  def store(self) -> Any: ...
  @property
  def assembler(self) -> Assembler: ...

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """Passages of a batch; rows beyond the questions are those of padding."""

  def unknown_gold(self, question: Question | str) -> tuple[str, ...]:
    """Ids of gold passages that are not among the passages there are."""

  def gold_passages(self, questions: Sequence[Question]) -> list[list[StoredPassage]]:
    """Those of each that a corpus has, of a long one's parts those that hold an answer first."""


def _assembler_of(
  spec: Specification, store: PassageStore | None, size: int, kept: int | None = None
) -> Assembler:
  # Several processes compile one program for all, and so do single questions one after another.
  compact = jax.process_count() == 1 and size > jax.device_count()
  return prompt_assembler.assembler_of(spec, store, compact=compact, kept=kept)


class NoPassages:
  """Closed-book."""

  name = 'none'
  store = None

  def __init__(self, spec: Specification, size: int):
    self.assembler = _assembler_of(spec, None, size)
    self._size = size

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """One empty slot a question."""
    del params, questions
    return Retrieved.none(self._size)

  def unknown_gold(self, question: Question | str) -> tuple[str, ...]:
    del question
    return ()

  def gold_passages(self, questions: Sequence[Question]) -> list[list[StoredPassage]]:
    return [[] for _ in questions]


class PassagesOfFile:
  """The passages that the questions bring along, scored by the retriever.

  They stay in the order of the file, as Atlas's `use_file_passages` has them, but a question's
  exclusions hold. They have no dates, so that a question's does not bound them.
  """

  name = 'file'

  def __init__(
    self, spec: Specification, partitioner: Partitioner, size: int, options: PassageOptions
  ):
    self._spec, self._partitioner = spec, partitioner
    self._size, self._n_passages = size, options.count(spec.text)
    self._excludes = options.search_filter != 'none'
    self._score = partitioner.partition_rows(spec.model.retriever_scores)
    self._use([])

  def _use(self, passages: Sequence[FilePassage]) -> None:
    tokenizer = self._spec.tokenizer
    store = FilePassages(passages, tokenizer.reader_vocabulary, tokenizer.retriever_vocabulary)
    self.store = cast(Any, store)  # It stands in for a PassageStore.
    self.assembler = _assembler_of(self._spec, self.store, self._size)

  def retrieve(self, params: PyTree, questions: Sequence[Question | str]) -> Retrieved:
    """The first passages of each question."""
    rows = np.full((self._size, self._n_passages), -1, np.int64)
    passages: list[FilePassage] = []
    for i, question in enumerate(questions):
      if isinstance(question, str):
        continue
      hidden = question.exclude_passage_ids if self._excludes else ()
      shown = [one for one in question.passages if one.id not in hidden][: self._n_passages]
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

  def unknown_gold(self, question: Question | str) -> tuple[str, ...]:
    if isinstance(question, str):
      return ()
    brought = {one.id for one in question.passages}
    return tuple(one for one in question.gold_passage_ids if one not in brought)

  def gold_passages(self, questions: Sequence[Question]) -> list[list[StoredPassage]]:
    """There is no corpus."""
    return [[] for _ in questions]


class PassagesOfIndex:
  """Searches an index, re-ranks if asked to, and follows swaps of the index."""

  def __init__(
    self,
    spec: Specification,
    partitioner: Partitioner,
    size: int,
    options: PassageOptions,
    retriever: PassageRetriever,
  ):
    self._spec, self._partitioner = spec, partitioner
    self._retriever, self._size = retriever, size
    self._agreement = Agreement()
    self._kept = options.count(spec.text) if options.n_candidates else None
    self._use(retriever.store)
    self._encode = partitioner.partition_rows(spec.model.encode_queries)

    def rerank(params: PyTree, candidates: ReaderBatch) -> tuple[jax.Array, jax.Array]:
      count = self._kept or candidates.passage_mask.shape[1]
      reranked = spec.model.rerank(params, candidates, count, chunk=options.rerank_chunk)
      return reranked.chosen, reranked.scores

    self._rerank = partitioner.partition_rows(rerank) if options.n_candidates else None

  @property
  def name(self) -> str:
    status = self._retriever.client.status()
    return f'{status.index_id} generation {status.generation} with {status.edits} edits'

  def _use(self, store: PassageStore) -> None:
    """Has rows mean this corpus; ValueError if it was tokenised with other vocabularies."""
    self.assembler = _assembler_of(self._spec, store, self._size, self._kept)
    self.store = store
    self._rows_of = RowsOfIds(store)

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
    candidates = self.assembler.reader_batch(queries, retrieved.rows)
    # Those that are best by the encoders of now.
    chosen, scores = map(
      partitioning.local_rows, self._rerank(params, self._partitioner.put_batch(candidates))
    )
    rows = np.take_along_axis(retrieved.rows, chosen, axis=1)
    return dataclasses.replace(retrieved, rows=rows, scores=scores, embeddings=None)

  def _search(self, embeddings: np.ndarray, questions: Sequence[Question | str]) -> Retrieved:
    """Searches the index that is served, from the beginning where it changes."""
    for attempt in range(_SEARCH_ATTEMPTS):
      # Also where another evaluator has had the retriever follow.
      if self.store is not self._retriever.store:
        self._use(self._retriever.store)
      try:
        return self._retriever.search(embeddings, *self._bounds(questions))
      except IndexSwappedError:
        if not self._retriever.follows or attempt == _SEARCH_ATTEMPTS - 1:
          raise
        self._retriever.follow()
    raise AssertionError('unreachable')

  def _bounds(
    self, questions: Sequence[Question | str]
  ) -> tuple[Int[np.ndarray, 'b n'] | None, Int[np.ndarray, ' b']]:
    """Rows that a batch excludes, filled with -1 (None for none), and its last dates."""
    exclude_ids: list[Sequence[str]] = [()] * self._size
    max_dates = np.full(self._size, dates.NO_DATE_BOUND, np.int32)
    for i, question in enumerate(questions):
      if not isinstance(question, str):
        exclude_ids[i], max_dates[i] = question.exclude_passage_ids, question.max_date
    return self._rows_of(exclude_ids), max_dates

  def unknown_gold(self, question: Question | str) -> tuple[str, ...]:
    return () if isinstance(question, str) else self._rows_of.unknown(question.gold_passage_ids)

  def gold_passages(self, questions: Sequence[Question]) -> list[list[StoredPassage]]:
    # Only demonstrations show their gold passages.
    rows_of = RowsOfIds(self.store, 'demonstrations', 'these are shown with what is retrieved')
    rows = rows_of([one.gold_passage_ids for one in questions])
    if rows is None:
      return [[] for _ in questions]
    found = []
    for question, own in zip(questions, rows):
      shown = self.store.passages(own[own >= 0])
      holds = [any(answer in one.text for answer in question.answers) for one in shown]
      found.append(
        [one for is_first in (True, False) for one, h in zip(shown, holds) if h == is_first]
      )
    return found


def question_text(question: Question | str) -> str:
  """What is asked."""
  return question if isinstance(question, str) else question.question
