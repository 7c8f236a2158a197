"""One generation of the index with its edits, on the devices of a mesh."""

from __future__ import annotations

import dataclasses

import numpy as np

from ralm_jax.retrieval.device.search import Best, DeviceSearch, Rows, TopK
from retrieval_service import checks
from retrieval_service.live import LiveView
from retrieval_service.results import SearchResult

_LEAST_BATCH = 8
_LEAST_K = 16


@dataclasses.dataclass(frozen=True)
class DeviceView:
  """What a search is answered from; it never changes."""

  live: LiveView  #: on the host: the generation, its stored embeddings, and the edits
  base: Rows
  added: Rows  #: the spare rows, with the vectors that came by edits
  blocks: tuple[int, int]  #: that each device scores, of `base` and of `added`

  @classmethod
  def load(cls, search: DeviceSearch, live: LiveView) -> DeviceView:
    """Puts a generation on the devices, one device's share after the other."""
    stored = live.generation.embeddings
    layout = search.layout(len(stored))
    base = search.put(layout, stored, _living(len(stored), live.overlay.dead_rows))
    added, blocks = _put_added(search, live)
    return cls(live, base, added, (layout.blocks, blocks))

  def moved_to(self, search: DeviceSearch, live: LiveView) -> DeviceView:
    """The same generation, its embeddings not copied, after other edits."""
    mask = self.base.live
    dead = live.overlay.dead_rows
    if not np.array_equal(dead, self.live.overlay.dead_rows):
      living = np.zeros(mask.shape, bool)
      count = live.generation.count
      living[:count] = _living(count, dead)
      mask = search.put_mask(living)
    added, blocks = _put_added(search, live)
    return DeviceView(live, Rows(self.base.embeddings, mask), added, (self.blocks[0], blocks))

  def delete(self) -> None:
    """Frees the devices' memory."""
    for array in (*self.base, *self.added):
      array.delete()

  def check(self, queries: np.ndarray, k: int) -> None:
    """Raises ValueError for a search that cannot be answered."""
    live = self.live
    checks.check_search(queries, k, number=live.number, dim=live.dim, count=live.count)

  def search(
    self, search: DeviceSearch, queries: np.ndarray, k: int, approximate: bool
  ) -> StartedSearch:
    """Dispatches a search of this process's queries, for k passages and some more."""
    self.check(queries, k)
    array, own = search.put_queries(queries)
    wanted = TopK(round_k(k), self.blocks, approximate)
    return StartedSearch(self, search.search(array, self.base, self.added, wanted=wanted), own)

  def ids(self, rows: np.ndarray) -> np.ndarray:
    """Rows of the devices to ids, int64."""
    base, added, is_added = self._split(rows)
    stored = self.live.generation.ids
    ids = base if stored is None else stored[base]
    if is_added.any():
      ids = np.where(is_added, self.live.overlay.ids[added], ids)
    return ids.astype(np.int64)

  def embeddings(self, rows: np.ndarray) -> np.ndarray:
    """Rows of the devices [...] to what is stored, float16 [..., dim]."""
    base, added, is_added = self._split(rows)
    found = self.live.generation.embeddings[base]
    found[is_added] = self.live.overlay.vectors[added[is_added]]
    return found

  def _split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in `base` and in `added`, 0 where it is the other, and which."""
    first_added = self.base.live.size
    is_added = rows >= first_added
    return (np.where(is_added, 0, rows), np.where(is_added, rows - first_added, 0), is_added)


@dataclasses.dataclass(frozen=True)
class StartedSearch:
  """A search under way for the queries of all processes; `own` are this one's."""

  view: DeviceView
  best: Best
  own: slice | np.ndarray

  def is_full(self, k: int) -> bool:
    """Waits; whether k rows were found for every query of every process."""
    return bool(np.isfinite(np.asarray(self.best.scores)[:, :k]).all())

  def result(self, batch: int, k: int, return_embeddings: bool) -> SearchResult:
    """Waits for the answers to this process's first queries; ValueError if one is not finite."""
    scores = np.asarray(self.best.scores)[self.own][:batch]
    rows = np.asarray(self.best.rows)[self.own][:batch].astype(np.int64)
    found = np.isfinite(scores)
    if not found[:, :k].all():
      raise ValueError('a score is beyond what float32 can hold: check the query encoder')
    rows[~found] = 0  # padding, beyond k
    ids = self.view.ids(rows)
    best = np.lexsort((ids, -scores))[:, :k]
    rows = np.take_along_axis(rows, best, axis=1)
    return SearchResult(
      ids=np.take_along_axis(ids, best, axis=1),
      scores=np.take_along_axis(scores, best, axis=1),
      generation=self.view.live.number,
      embeddings=self.view.embeddings(rows) if return_embeddings else None,
      edits=self.view.live.edits,
    )


def pad_batch(queries: np.ndarray) -> np.ndarray:
  """Repeats rows up to a power of two, so that few programs are compiled."""
  size = max(_LEAST_BATCH, 1 << (len(queries) - 1).bit_length())
  return np.resize(queries, (size, queries.shape[1]))


def round_k(k: int) -> int:
  """Likewise; what is found beyond k also orders most ties for the last place by id."""
  return max(_LEAST_K, 1 << (k - 1).bit_length())


def _living(count: int, dead: np.ndarray) -> np.ndarray:
  living = np.ones(count, bool)
  living[dead] = False
  return living


def _put_added(search: DeviceSearch, live: LiveView) -> tuple[Rows, int]:
  """The rows and their blocks; room doubles, so that few programs are compiled."""
  overlay, spare_rows = live.overlay, search.options.spare_rows
  while spare_rows < len(overlay.ids):
    spare_rows *= 2
  layout = search.layout(spare_rows)
  living = _living(len(overlay.ids), overlay.dead_slots)
  return search.put(layout, overlay.vectors, living), layout.blocks
