"""PassageRetriever: query embeddings to rows of a corpus, filtered."""

from __future__ import annotations

from collections.abc import Callable
import logging

import numpy as np

from ralm_jax.data import dates
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval.backend import SearchBackend
from ralm_jax.retrieval.filtered_search import FilteredSearch
from ralm_jax.retrieval.retrieved import Retrieved
from ralm_jax.retrieval.search_filter import SearchFilter
from retrieval_service.results import ServerStatus

__all__ = ['NO_DATE_BOUND', 'PassageRetriever', 'Retrieved', 'SearchFilter']

NO_DATE_BOUND = dates.NO_DATE_BOUND
# (status of the index, corpus of the one before) -> corpus of the index.
OpenCorpus = Callable[[ServerStatus, PassageStore], PassageStore]


class PassageRetriever:
  """Searches an index and drops what an example must not see.

  Rows mean passages of one corpus, so that a search is of one index. When the
  process serves another (`ralm swap`), searches raise IndexSwappedError until
  `follow` is called; a retriever without `open_corpus` stays with its index.
  """

  def __init__(
    self,
    client: SearchBackend,
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
      store: the corpus whose rows are the index's ids.
      generation: search this generation, not the current one.
      return_embeddings: also bring the stored embeddings.
      open_corpus: opens the corpus of an index that took this one's place; None does not follow.

    Raises:
      ValueError: the index is of another corpus, or has too few passages; a generation for a
        retriever that follows.
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
    status = client.status()
    self.embedding_dim = status.dim
    self._turn_to(status, store)

  def _turn_to(self, status: ServerStatus, store: PassageStore) -> None:
    """Searches this index from now on; ValueError where that cannot be."""
    check_index_of_corpus(status.metadata, status.next_id, store)
    if status.count < self.n_passages:
      raise ValueError(
        f'The index holds {status.count} passages, fewer than the '
        f'{self.n_passages} to retrieve; lower n_passages (gin: N_PASSAGES).'
      )
    self._searching = FilteredSearch(
      self.client,
      store,
      status,
      self.n_passages,
      self.search_filter,
      return_embeddings=self._return_embeddings,
    )
    self.store = store

  @property
  def index_id(self) -> str:
    return self._searching.index_id

  @property
  def follows(self) -> bool:
    """Whether `follow` can be called."""
    return self._open_corpus is not None

  def follow(self) -> None:
    """Turns to the index that is served now, and to its corpus.

    Raises:
      ValueError: they do not belong together, or cannot be searched as the index before, which
        stays this retriever's.
      FileNotFoundError: the corpus is not there.
    """
    if self._open_corpus is None:
      raise ValueError('This retriever stays with its index.')
    status = self.client.status()
    if status.dim != self.embedding_dim:
      raise ValueError(
        f'The index that is served now ({status.index_directory}) holds embeddings of size '
        f'{status.dim}, the one before of size {self.embedding_dim}: another encoder made them. '
        'Swap it back (`ralm swap`), or embed that corpus with this checkpoint (`ralm embed`).'
      )
    self._turn_to(status, self._open_corpus(status, self.store))
    logging.info(
      f'From now on {status.index_directory} is searched (index {status.index_id}, generation '
      f'{status.generation}) and passages are of {self.store.directory}.'
    )

  def search(
    self,
    query_embeddings: np.ndarray,
    exclude_rows: np.ndarray | None = None,
    max_dates: np.ndarray | None = None,
    exclude_document_keys: np.ndarray | None = None,
  ) -> Retrieved:
    """Finds passages for query embeddings, float32 [b, d].

    Args:
      exclude_rows: int64 [b, …], filled with -1; none of these passages is returned, nor what
        `SearchFilter.by` says of them.
      max_dates: int32 [b], days since 1970-01-01; nothing of a later date is returned, nor what has
        no date. `NO_DATE_BOUND` for no bound.
      exclude_document_keys: int64 [b, …], filled with 0; no passage of these documents
        (`PassageStore.documents`) is returned.

    Raises:
      ValueError: bounds for a corpus without dates, or an index with passages the corpus lacks.
      retrieval_service.results.IndexSwappedError: another index is served.
    """
    queries = np.ascontiguousarray(query_embeddings, np.float32)
    return self._searching.search(
      queries, exclude_rows, max_dates, exclude_document_keys, self.generation
    )


def is_index_of_corpus(metadata: dict, next_id: int, store: PassageStore) -> bool:
  """Whether the index's ids are rows of this corpus; see the check below."""
  fingerprint = metadata.get('corpus_fingerprint', '')
  # Rows never change, so that an index of an earlier state of the corpus fits,
  # and one that was added to by several at once names any of their states.
  fits = lambda: store.rows_at(fingerprint) is not None and next_id <= len(store)
  if not fits():
    store.reload()
  return fits()


def check_index_of_corpus(metadata: dict, next_id: int, store: PassageStore) -> None:
  """Raises ValueError unless the index's ids are rows of this corpus, read again if need be.

  `next_id` is one past the largest id that the index ever had.
  """
  if metadata.get('corpus_fingerprint') is None:
    raise ValueError('The index does not say of which corpus it is; build it with `ralm embed`.')
  if not is_index_of_corpus(metadata, next_id, store):
    raise ValueError(
      f'The index was built of another corpus ({metadata.get("corpus")}) than {store.directory}; '
      'use the corpus it was built of, or embed this one with `ralm embed`.'
    )
