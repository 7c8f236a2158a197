"""PassageRetriever: query embeddings to rows of a corpus, filtered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import logging
import math
from typing import Any, Protocol

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval import search_filter as search_filter_lib
from ralm_jax.retrieval.search_filter import Hidden

NO_PASSAGE = -1
NO_DATE_BOUND = dates.NO_DATE_BOUND
SearchFilter = search_filter_lib.SearchFilter
_ATTEMPTS = 5
# (status of the index, corpus of the one before) -> corpus of the index.
OpenCorpus = Callable[[Any, PassageStore], PassageStore]


class SearchClient(Protocol):
  """What a search backend offers; `RetrievalClient` is one."""

  def search(self, query_embeddings: np.ndarray, k: int, **kwargs):
    """[batch, dim] float32 -> ids, scores [batch, k] and generation."""

  def status(self):
    """Metadata, count, next_id and dim of what is served; index_id, if any."""


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """What a search found.

  Attributes:
    rows: int64 [batch, n_passages], rows of the corpus; -1 where filters left
      too few.
    scores: float32 [batch, n_passages], inner products; -inf at -1.
    generation: of the index that answered.
    embeddings: float16 [batch, n_passages, dim] as the index holds them, zeros
      at -1; None where not asked for.
    index_id: which index it is a generation of; '' where that is not known.
  """

  rows: np.ndarray
  scores: np.ndarray
  generation: int
  embeddings: np.ndarray | None = None
  index_id: str = ''

  @classmethod
  def none(cls, batch: int) -> Retrieved:
    """One empty slot an example: closed-book."""
    return cls(
      np.full((batch, 1), NO_PASSAGE, np.int64), np.full((batch, 1), -np.inf, np.float32), 0
    )

  def probabilities(self, divisor: float) -> np.ndarray:
    """softmax(score / divisor), float32 [batch, n_passages]."""
    logits = self.scores / divisor
    best = np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(best), best, 0.0))
    total = np.sum(weights, axis=-1, keepdims=True)
    return weights / np.maximum(total, 1e-30)


class PassageRetriever:
  """Searches the retrieval process and drops what an example must not see.

  Rows mean passages of one corpus, so that a search is of one index. When the
  process serves another (`ralm swap`), searches raise IndexSwappedError until
  `follow` is called; a retriever without `open_corpus` stays with its index.

  Attributes:
    client: of the retrieval process.
    store: the corpus whose rows are the index's ids.
    n_passages: returned for a query.
    generation: searched; None for the current one.
    search_filter: what is dropped.
    index_id: of the index; '' where the client does not tell.
    embedding_dim: of the index.
  """

  def __init__(
    self,
    client: SearchClient,
    store: PassageStore,
    n_passages: int,
    *,
    generation: int | None = None,
    search_filter: SearchFilter = SearchFilter(),
    return_embeddings: bool = False,
    open_corpus: OpenCorpus | None = None,
  ):
    """Checks that index and corpus belong together.

    Args:
      client: of the retrieval process.
      store: the corpus whose rows are the index's ids.
      n_passages: passages returned for a query.
      generation: search this generation, not the current one.
      search_filter: what is dropped.
      return_embeddings: also bring the stored embeddings.
      open_corpus: opens the corpus of an index that took this one's place; None
        does not follow.

    Raises:
      ValueError: the index is of another corpus, or has too few passages; a
        generation for a retriever that follows.
    """
    if open_corpus is not None and generation is not None:
      raise ValueError(
        f'Generation {generation} means nothing in another index; either '
        'search that or follow swaps of the index.'
      )
    self.client = client
    self.n_passages = n_passages
    self.generation = generation
    self.search_filter = search_filter
    self._return_embeddings = return_embeddings
    self._open_corpus = open_corpus
    self.store = store
    status = client.status()
    self._check(status, store)
    self.embedding_dim = status.dim
    self.index_id = getattr(status, 'index_id', '')
    self._count = status.count
    self._warned = False
    # An index on the devices of several processes is searched by all at once,
    # equally deep and with as many queries each.
    self._together = bool(getattr(client, 'needs_strict_order', False))

  def _check(self, status: Any, store: PassageStore) -> None:
    """Raises ValueError unless an index can be searched."""
    check_index_of_corpus(status.metadata, status.next_id, store)
    if status.count < self.n_passages:
      raise ValueError(
        f'The index holds {status.count} passages, fewer than the '
        f'{self.n_passages} to retrieve; lower n_passages (gin: N_PASSAGES).'
      )

  @property
  def follows(self) -> bool:
    """Whether `follow` can be called."""
    return self._open_corpus is not None

  def follow(self) -> None:
    """Turns to the index that is served now, and to its corpus.

    Raises:
      ValueError: they do not belong together, or cannot be searched as the
        index before; that one stays this retriever's.
      FileNotFoundError: the corpus is not there.
    """
    status = self.client.status()
    if status.dim != self.embedding_dim:
      raise ValueError(
        f'The index that is served now ({status.index_directory}) holds '
        f'embeddings of size {status.dim}, the one before of size '
        f'{self.embedding_dim}: another encoder made them. Swap it back '
        '(`ralm swap`), or embed that corpus with this checkpoint '
        '(`ralm embed`).'
      )
    store = self._open_corpus(status, self.store)
    self._check(status, store)
    logging.info(
      'From now on %s is searched (index %s, generation %d) and passages are of %s.',
      status.index_directory,
      status.index_id,
      status.generation,
      store.directory,
    )
    self.store, self._count = store, status.count
    self.index_id = status.index_id
    self._warned = False

  def search(
    self,
    query_embeddings: np.ndarray,
    exclude_rows: np.ndarray | None = None,
    max_dates: np.ndarray | None = None,
    exclude_document_keys: np.ndarray | None = None,
  ) -> Retrieved:
    """Finds passages.

    Args:
      query_embeddings: float32 [batch, dim].
      exclude_rows: int64 [batch, n], filled with -1; none of these passages
        is returned, nor what `SearchFilter.by` says of them.
      max_dates: int32 [batch], days since 1970-01-01; nothing of a later date
        is returned, nor what has no date. `NO_DATE_BOUND` for no bound.
      exclude_document_keys: int64 [batch, n], filled with 0; no passage of
        these documents (`PassageStore.documents`) is returned.

    Raises:
      ValueError: bounds for a corpus without dates, or an index that has
        passages which the corpus lacks.
      retrieval_service.results.IndexSwappedError: another index is served.
    """
    queries = np.ascontiguousarray(query_embeddings, np.float32)
    with self._stopping_all():
      hidden = self.search_filter.hidden(self.store, exclude_rows, max_dates, exclude_document_keys)
    for _ in range(_ATTEMPTS - 1):
      try:
        return self._search(queries, hidden)
      except _GenerationGone:
        pass  # All are searched anew, in the generation that came after.
    return self._search(queries, hidden)

  def _search(self, queries: np.ndarray, hidden: Hidden | None) -> Retrieved:
    """Searches, deeper and deeper for the examples that are left short."""
    batch, wanted = len(queries), self.n_passages
    rows = np.full((batch, wanted), NO_PASSAGE, np.int64)
    scores = np.full((batch, wanted), -np.inf, np.float32)
    embeddings = None
    if self._return_embeddings:
      embeddings = np.zeros((batch, wanted, queries.shape[1]), np.float16)
    asking = np.arange(batch)
    generation = self.generation
    ratio = 1.0 if hidden is None else self.search_filter.overretrieve_ratio
    depth = self._possible(math.ceil(wanted * ratio))
    while True:
      try:
        found = self._at_most(queries[asking], depth, generation)
      except LookupError as error:
        if generation == self.generation:
          raise
        raise _GenerationGone(str(error)) from error
      # One answer for the batch: deeper searches stay with its generation.
      generation = int(found.generation)
      with self._stopping_all():
        self._take_notice(found.ids)
      keep = found.ids >= 0
      if hidden is not None:
        keep &= ~hidden.among(found.ids, asking)
      best = np.argsort(~keep, axis=-1, kind='stable')[:, :wanted]
      width = best.shape[1]
      kept = np.take_along_axis(keep, best, -1)
      # An answer may be narrower than the one before, after deletions.
      rows[asking, width:], scores[asking, width:] = NO_PASSAGE, -np.inf
      rows[asking, :width] = np.where(kept, np.take_along_axis(found.ids, best, -1), NO_PASSAGE)
      scores[asking, :width] = np.where(kept, np.take_along_axis(found.scores, best, -1), -np.inf)
      if embeddings is not None:
        embeddings[asking, width:] = 0
        embeddings[asking, :width] = np.where(
          kept[..., None], np.take_along_axis(found.embeddings, best[..., None], 1), 0
        )
      short = asking[keep.sum(-1) < wanted]
      goes_on = len(short) > 0 and hidden is not None and found.ids.shape[1] == depth
      if not self._largest(goes_on):
        break
      deeper = self._possible(2 * depth)
      if deeper <= depth:
        self._warn_of_limit(depth)
        break
      depth = deeper
      if not self._together:
        asking = short
    return Retrieved(rows, scores, generation, embeddings, self.index_id)

  def _possible(self, depth: int) -> int:
    """How deep a search goes that would like to go so deep."""
    limit = self.search_filter.max_candidates
    if limit is not None:
      depth = min(depth, max(limit, self.n_passages))
    depth = self._largest(depth)
    if depth > self._count or self._together:
      # Passages may have been added since.
      self._count = int(self.client.status().count)
    depth = max(1, min(depth, self._count))
    return -self._largest(-depth)

  @contextlib.contextmanager
  def _stopping_all(self) -> Iterator[None]:
    """Where processes search together, an error of one is one of all."""
    error = None
    try:
      yield
    except Exception as e:  # pylint: disable=broad-except
      error = e
    if self._largest(error is not None):
      raise error or RuntimeError('The search of another process has failed.')

  def _largest(self, value: int) -> int:
    """The largest value of all processes, where they search together."""
    if not self._together:
      return int(value)
    from jax.experimental import multihost_utils

    values = multihost_utils.process_allgather(np.asarray(value, np.int32))
    return int(np.max(values))

  def _warn_of_limit(self, depth: int) -> None:
    """Says once that a search ended before the index did."""
    if depth < self._count and not self._warned:
      self._warned = True
      logging.warning(
        'For some questions fewer than %d of the %d best passages are '
        'allowed; no deeper search is made (SearchFilter.max_candidates).',
        self.n_passages,
        depth,
      )

  def _at_most(self, queries: np.ndarray, k: int, generation: int | None):
    """The k best, or all where the index holds fewer."""
    if self._together:  # An error of one stops them all.
      return self._ask(queries, k, generation)
    try:
      return self._ask(queries, k, generation)
    except ValueError as e:
      error = e
    # Passages were deleted meanwhile.
    self._count = int(self.client.status().count)
    if 0 < self._count < k:
      try:
        return self._ask(queries, self._count, generation)
      except ValueError:
        pass
    # Or an older generation has fewer: how many only trying tells.
    enough, too_many, result = 0, k, None
    while too_many - enough > 1:
      middle = (enough + too_many) // 2
      try:
        result, enough = self._ask(queries, middle, generation), middle
      except ValueError:
        too_many = middle
    if result is None:
      raise error
    return result

  def _ask(self, queries: np.ndarray, k: int, generation: int | None):
    options = {'return_embeddings': True} if self._return_embeddings else {}
    if self.index_id:
      options['index_id'] = self.index_id
    return self.client.search(queries, k, generation=generation, **options)

  def _take_notice(self, ids: np.ndarray) -> None:
    """Reads the corpus again where the index has passages added since."""
    if ids.size and ids.max() >= len(self.store):
      self.store.reload()
      if ids.max() >= len(self.store):
        raise ValueError(
          f'The index has a passage {ids.max()}, the corpus '
          f'{self.store.directory} only {len(self.store)}; it is a copy '
          'older than the one that was added to.'
        )


class _GenerationGone(LookupError):
  """The generation of a search was removed before a deeper one."""


def is_index_of_corpus(metadata: dict, next_id: int, store: PassageStore) -> bool:
  """Whether the index's ids are rows of this corpus; see the check below."""
  fingerprint = metadata.get('corpus_fingerprint')
  # Rows never change, so that an index of an earlier state of the corpus fits,
  # and one that was added to by several at once names any of their states.
  fits = lambda: store.rows_at(fingerprint) is not None and next_id <= len(store)
  if not fits():
    store.reload()
  return fits()


def check_index_of_corpus(metadata: dict, next_id: int, store: PassageStore) -> None:
  """Raises ValueError unless the index's ids are rows of this corpus.

  Args:
    metadata: of the index.
    next_id: one past the largest id that it ever had.
    store: the corpus; read again if it was added to.
  """
  if metadata.get('corpus_fingerprint') is None:
    raise ValueError('The index does not say of which corpus it is; build it with `ralm embed`.')
  if not is_index_of_corpus(metadata, next_id, store):
    raise ValueError(
      f'The index was built of another corpus ({metadata.get("corpus")}) '
      f'than {store.directory}; use the corpus it was built of, or embed '
      'this one with `ralm embed`.'
    )
