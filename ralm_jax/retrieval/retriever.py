"""PassageRetriever: query embeddings to rows of a corpus, filtered."""
from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

from ralm_jax.data import corpus

NO_PASSAGE = -1


class SearchClient(Protocol):
  """What a search backend offers; `RetrievalClient` is one."""

  def search(self, query_embeddings: np.ndarray, k: int, **kwargs):
    """[batch, dim] float32 -> ids, scores [batch, k] and generation."""


@dataclasses.dataclass(frozen=True)
class Retrieved:
  """What a search found.

  Attributes:
    rows: int64 [batch, n_passages], rows of the corpus; -1 where filters left
      too few.
    scores: float32 [batch, n_passages], inner products; -inf at -1.
    generation: of the index that answered.
  """

  rows: np.ndarray
  scores: np.ndarray
  generation: int

  @classmethod
  def none(cls, batch: int) -> Retrieved:
    """One empty slot an example: closed-book."""
    return cls(
        np.full((batch, 1), NO_PASSAGE, np.int64),
        np.full((batch, 1), -np.inf, np.float32), 0,
    )

  def probabilities(self, temperature: float, dim: int) -> np.ndarray:
    """softmax(score / sqrt(dim) / temperature), float32 [batch, n_passages]."""
    logits = self.scores / np.sqrt(dim) / temperature
    best = np.max(logits, axis=-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(best), best, 0.0))
    total = np.sum(weights, axis=-1, keepdims=True)
    return weights / np.maximum(total, 1e-30)


class PassageRetriever:
  """Searches the retrieval process and drops what an example must not see."""

  def __init__(
      self,
      client: SearchClient,
      store: corpus.PassageStore,
      n_passages: int,
      *,
      generation: int | None = None,
  ):
    """Checks that index and corpus belong together.

    Args:
      client: of the retrieval process.
      store: the corpus whose rows are the index's ids.
      n_passages: passages returned for a query.
      generation: search this generation, not the current one.

    Raises:
      ValueError: the index is of another corpus, or has too few passages.
    """
    self.client = client
    self.store = store
    self.n_passages = n_passages
    self.generation = generation
    status = client.status()
    check_index_of_corpus(status.metadata, status.count, store)
    if status.count < n_passages:
      raise ValueError(
          f'The index holds {status.count} passages, fewer than the '
          f'{n_passages} to retrieve; lower n_passages (gin: N_PASSAGES).'
      )
    self.embedding_dim = status.dim

  def search(
      self, query_embeddings: np.ndarray, exclude_rows: np.ndarray | None = None
  ) -> Retrieved:
    """Finds passages.

    Args:
      query_embeddings: float32 [batch, dim].
      exclude_rows: int64 [batch, n], filled with -1; never returned.
    """
    excluded = 0 if exclude_rows is None else exclude_rows.shape[1]
    result = self.client.search(
        np.ascontiguousarray(query_embeddings, np.float32),
        self.n_passages + excluded,
        generation=self.generation,
    )
    rows, scores = result.ids, result.scores
    if excluded:
      dropped = np.any(rows[:, :, None] == exclude_rows[:, None, :], axis=-1)
      order = np.argsort(dropped, axis=-1, kind='stable')
      rows = np.take_along_axis(np.where(dropped, NO_PASSAGE, rows), order, -1)
      scores = np.take_along_axis(np.where(dropped, -np.inf, scores), order, -1)
    return Retrieved(
        rows[:, : self.n_passages].astype(np.int64),
        scores[:, : self.n_passages].astype(np.float32),
        int(result.generation),
    )


def check_index_of_corpus(
    metadata: dict, count: int, store: corpus.PassageStore
) -> None:
  """Raises ValueError unless the index's ids are rows of this corpus."""
  fingerprint = metadata.get('corpus_fingerprint')
  if fingerprint is None:
    raise ValueError(
        'The index does not say of which corpus it is; build it with '
        '`ralm embed`.'
    )
  rows = store.rows_at(fingerprint)
  if rows is None or count > rows:
    raise ValueError(
        f'The index was built of another corpus ({metadata.get("corpus")}) '
        f'than {store.directory}; use the corpus it was built of, or embed '
        'this one with `ralm embed`.'
    )
