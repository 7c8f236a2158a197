"""One generation of the index, opened for searching; it never changes."""

from __future__ import annotations

import concurrent.futures
import os

import numpy as np

from retrieval_service import checks, faiss_index, manifest
from retrieval_service.manifest import Manifest
from retrieval_service.overlay import Overlay
from retrieval_service.results import SearchResult


class Generation:
  """A searchable generation: a FAISS index and the exact embeddings.

  Safe to search from several threads at once. Files are memory-mapped, so that opening is quick,
  memory is shared with other processes, and a folder removed meanwhile stays readable until the
  last user lets go.
  """

  embeddings: np.ndarray  #: [count, dim] float16
  ids: np.ndarray | None  #: [count] int64; None when row i has id i

  def __init__(
    self,
    folder: str,
    *,
    verify_checksums: bool = True,
    nprobe: int | None = None,
    rerank: int | None = None,
    threads: int | None = None,
  ):
    """Opens a generation.

    Args:
      verify_checksums: reads every byte once; sizes are checked always.
      nprobe: in place of the value in its options, as is `rerank`.
      threads: for re-ranking; FAISS's own number belongs to the calling thread
        (`faiss_index.set_threads`).

    Raises:
      FileNotFoundError: no manifest.
      ValueError: damaged, naming the file.
    """
    self.folder = folder
    self.manifest = Manifest.read(folder)
    self.manifest.check_files(folder, checksums=verify_checksums)
    self.embeddings = self._map(manifest.EMBEDDINGS, np.float16).reshape(self.count, self.dim)
    self.ids = None
    if manifest.IDS in self.manifest.files:
      self.ids = self._map(manifest.IDS, np.int64)
    self.index = faiss_index.read_index(os.path.join(folder, manifest.INDEX))
    self._id_order: tuple[np.ndarray, np.ndarray | None] | None = None
    options = self.manifest.options
    self._rerank = options.rerank if rerank is None else rerank
    ivf = faiss_index.inverted_lists(self.index)
    if ivf is not None:
      nprobe = nprobe or options.nprobe
      ivf.nprobe = min(ivf.nlist, nprobe or faiss_index.default_nprobe(ivf.nlist))
    self._pool = None
    if threads and threads > 1:
      self._pool = concurrent.futures.ThreadPoolExecutor(threads, 'rerank')

  def _map(self, name: str, dtype) -> np.ndarray:
    mapped = np.memmap(os.path.join(self.folder, name), dtype, mode='r')
    return np.asarray(mapped)  # memmap's own class makes each slice slower

  @property
  def number(self) -> int:
    return self.manifest.generation

  @property
  def count(self) -> int:
    return self.manifest.count

  @property
  def dim(self) -> int:
    return self.manifest.dim

  @property
  def next_id(self) -> int:
    """One past the largest id of this and, if recorded, earlier generations."""
    if self.manifest.next_id:
      return self.manifest.next_id
    return self.count if self.ids is None else int(self.ids.max()) + 1

  def rows_of(self, ids: np.ndarray) -> np.ndarray:
    """The rows of passages, of the shape of `ids`, -1 for none; the first call sorts the ids."""
    if self.ids is None:
      return np.where((ids >= 0) & (ids < self.count), ids, -1)
    if self._id_order is None:
      order = None
      if (self.ids[1:] <= self.ids[:-1]).any():
        order = np.argsort(self.ids, kind='stable')
      self._id_order = (self.ids if order is None else self.ids[order], order)
    rising, order = self._id_order
    at = np.minimum(np.searchsorted(rising, ids), self.count - 1)
    rows = at if order is None else order[at]
    return np.where(rising[at] == ids, rows, -1)

  def search(
    self,
    queries: np.ndarray,
    k: int,
    return_embeddings: bool = False,
    overlay: Overlay | None = None,
  ) -> SearchResult:
    """The k passages of largest inner product for each query, or ValueError.

    The index proposes candidates; their scores are computed anew from the stored embeddings in
    float32, unless re-ranking is off. Vectors that edits put on top are searched exactly.
    """
    overlay = overlay or Overlay.empty(self.dim)
    live = self.count - len(overlay.dead_rows)
    queries = np.ascontiguousarray(queries, np.float32)
    checks.check_queries(queries, k)
    count = live + overlay.count
    checks.check_search(queries, k, number=self.number, dim=self.dim, count=count)
    rows, scores = self._candidates(queries, min(k, live), overlay.dead_rows)
    ids = np.where(rows < 0, -1, rows if self.ids is None else self.ids[rows])
    if overlay.count:
      slots, more = overlay.candidates(queries, min(k, overlay.count), self._pool)
      ids = np.concatenate([ids, overlay.ids[slots]], axis=1)
      scores = np.concatenate([scores, more], axis=1)
      rows = np.concatenate([rows, self.count + slots], axis=1)
    best = np.lexsort((ids, -scores))[:, :k]
    embeddings = None
    if return_embeddings:
      embeddings = self._gather(np.take_along_axis(rows, best, axis=1), overlay)
    ids, scores = (np.take_along_axis(array, best, axis=1) for array in (ids, scores))
    return SearchResult(ids, scores, self.number, embeddings)

  def _candidates(
    self, queries: np.ndarray, k: int, dead_rows: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows [batch, n] int64 with the live best `k` among them, and scores."""
    if not k:
      none = np.zeros((len(queries), 0))
      return none.astype(np.int64), none.astype(np.float32)
    num = min(faiss_index.num_candidates(self.index, self._rerank, k), self.count - len(dead_rows))
    scores, rows = faiss_index.find_live_candidates(self.index, queries, num, k, dead_rows)
    misses = (rows[:, k - 1] < 0).any()  # a graph index may
    if misses:
      _, rows = faiss_index.exact_search(self.embeddings, queries, k, dead=dead_rows)
    if self._rerank != 0 or misses:
      scores = faiss_index.exact_scores(self.embeddings, queries, rows, self._pool)
    return rows, scores

  def _gather(self, rows: np.ndarray, overlay: Overlay) -> np.ndarray:
    """float16 [batch, k, dim]; rows from `count` on are the overlay's slots."""
    above = rows >= self.count
    embeddings = self.embeddings[np.where(above, 0, rows)]
    if above.any():
      embeddings[above] = overlay.vectors[rows[above] - self.count]
    return embeddings
