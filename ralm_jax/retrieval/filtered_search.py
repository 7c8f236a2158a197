"""FilteredSearch: deeper and deeper, where a filter left too few passages."""

from __future__ import annotations

import logging
import math

import numpy as np

from ralm_jax.data.corpus.passage_ids import NO_PASSAGE
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.retrieval.backend import SearchBackend
from ralm_jax.retrieval.lockstep import Lockstep
from ralm_jax.retrieval.retrieved import Retrieved
from ralm_jax.retrieval.search_filter import Hidden, SearchFilter
from retrieval_service.results import SearchResult, ServerStatus

_ATTEMPTS = 5


class _GenerationGone(LookupError):
  """The generation of a search was removed before a deeper one."""


class FilteredSearch:
  """Searches one index, and leaves out what is hidden from each query."""

  def __init__(
    self,
    client: SearchBackend,
    store: PassageStore,
    status: ServerStatus,
    n_passages: int,
    search_filter: SearchFilter,
    *,
    return_embeddings: bool,
  ):
    self.index_id = status.index_id
    self._client = client
    self._store = store
    self._count = status.count
    self._n_passages = n_passages
    self._filter = search_filter
    self._return_embeddings = return_embeddings
    self._lockstep = Lockstep(client.needs_strict_order)
    self._warned = False

  def search(
    self,
    queries: np.ndarray,
    exclude_rows: np.ndarray | None,
    max_dates: np.ndarray | None,
    exclude_document_keys: np.ndarray | None,
    generation: int | None,
  ) -> Retrieved:
    """See `PassageRetriever.search`."""
    with self._lockstep.failing_together():
      hidden = self._filter.hidden(self._store, exclude_rows, max_dates, exclude_document_keys)
    for _ in range(_ATTEMPTS - 1):
      try:
        return self._deepen(queries, hidden, generation)
      except _GenerationGone:
        pass  # All are searched anew, in the generation that came after.
    return self._deepen(queries, hidden, generation)

  def _deepen(
    self, queries: np.ndarray, hidden: Hidden | None, wanted_generation: int | None
  ) -> Retrieved:
    """Searches, deeper and deeper for the queries that are left short."""
    best = _Best(len(queries), self._n_passages, queries.shape[1] if self._return_embeddings else 0)
    asking = np.arange(len(queries))
    generation = wanted_generation
    ratio = 1.0 if hidden is None else self._filter.overretrieve_ratio
    depth = self._possible(math.ceil(self._n_passages * ratio))
    while True:
      try:
        found = self._at_most(queries[asking], depth, generation)
      except LookupError as error:
        if generation == wanted_generation:
          raise
        raise _GenerationGone(str(error)) from error
      # One answer for the batch: deeper searches stay with its generation.
      generation = int(found.generation)
      with self._lockstep.failing_together():
        self._take_notice(found.ids)
      keep = found.ids >= 0
      if hidden is not None:
        keep &= ~hidden.among(found.ids, asking)
      best.put(asking, found, keep)
      short = asking[keep.sum(-1) < self._n_passages]
      goes_on = len(short) > 0 and hidden is not None and found.ids.shape[1] == depth
      if not self._lockstep.maximum(goes_on):
        break
      deeper = self._possible(2 * depth)
      if deeper <= depth:
        self._warn_of_limit(depth)
        break
      depth = deeper
      if not self._lockstep.together:
        asking = short
    embeddings = best.embeddings if self._return_embeddings else None
    return Retrieved(best.rows, best.scores, generation, embeddings, self.index_id)

  def _possible(self, depth: int) -> int:
    """How deep a search goes that would like to go so deep."""
    limit = self._filter.max_candidates
    if limit is not None:
      depth = min(depth, max(limit, self._n_passages))
    depth = self._lockstep.maximum(depth)
    if depth > self._count or self._lockstep.together:
      # Passages may have been added since.
      self._count = self._client.status().count
    return self._lockstep.minimum(max(1, min(depth, self._count)))

  def _warn_of_limit(self, depth: int) -> None:
    """Says once that a search ended before the index did."""
    if depth < self._count and not self._warned:
      self._warned = True
      logging.warning(
        f'For some questions fewer than {self._n_passages} of the {depth} best passages are '
        'allowed; no deeper search is made (SearchFilter.max_candidates).'
      )

  def _at_most(self, queries: np.ndarray, k: int, generation: int | None) -> SearchResult:
    """The k best, or all where the index holds fewer."""
    if self._lockstep.together:  # An error of one stops them all.
      return self._ask(queries, k, generation)
    try:
      return self._ask(queries, k, generation)
    except ValueError as e:
      error = e
    # Passages were deleted meanwhile.
    self._count = self._client.status().count
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

  def _ask(self, queries: np.ndarray, k: int, generation: int | None) -> SearchResult:
    return self._client.search(
      queries,
      k,
      return_embeddings=self._return_embeddings,
      generation=generation,
      index_id=self.index_id,
    )

  def _take_notice(self, ids: np.ndarray) -> None:
    """Reads the corpus again where the index has passages added since."""
    if ids.size and ids.max() >= len(self._store):
      self._store.reload()
      if ids.max() >= len(self._store):
        raise ValueError(
          f'The index has a passage {ids.max()}, the corpus {self._store.directory} only '
          f'{len(self._store)}; it is a copy older than the one that was added to.'
        )


class _Best:
  """The best allowed passages of each query so far."""

  def __init__(self, batch: int, n_passages: int, dim: int):
    """Nothing is found yet; `dim` is 0 where embeddings are not asked for."""
    self.rows = np.full((batch, n_passages), NO_PASSAGE, np.int64)
    self.scores = np.full((batch, n_passages), -np.inf, np.float32)
    self.embeddings = np.zeros((batch, n_passages, dim), np.float16)

  def put(self, asking: np.ndarray, found: SearchResult, keep: np.ndarray) -> None:
    """Replaces the answers to queries `asking` by those of `found` to keep."""
    best = np.argsort(~keep, axis=-1, kind='stable')[:, : self.rows.shape[1]]
    width = best.shape[1]
    kept = np.take_along_axis(keep, best, -1)
    # An answer may be narrower than the one before, after deletions.
    self.rows[asking, width:], self.scores[asking, width:] = NO_PASSAGE, -np.inf
    self.rows[asking, :width] = np.where(kept, np.take_along_axis(found.ids, best, -1), NO_PASSAGE)
    scores = np.take_along_axis(found.scores, best, -1)
    self.scores[asking, :width] = np.where(kept, scores, -np.inf)
    if found.embeddings is not None:
      self.embeddings[asking, width:] = 0
      embeddings = np.take_along_axis(found.embeddings, best[..., None], 1)
      self.embeddings[asking, :width] = np.where(kept[..., None], embeddings, 0)
