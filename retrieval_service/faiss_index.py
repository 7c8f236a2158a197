"""Searching FAISS indexes, and plain arrays exactly.

An index holds row numbers 0..n-1; what id a row has is known to `generation.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable
import concurrent.futures
import math

import faiss
import numpy as np

# Keeps an exact index's candidates a superset of its best k when float32
# summation order (which FAISS varies with the batch size) reorders near-ties.
EXACT_MARGIN = 16


def read_index(path: str) -> faiss.Index:
  """Maps an index into memory; it must never be added to (FAISS aborts)."""
  # The IFC variant maps flat indexes too, where the plain one reads them whole.
  return faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)


def write_index(index: faiss.Index, write: Callable[[bytes], int]) -> None:
  """Hands the index's bytes to `write`, part by part."""
  faiss.write_index(index, faiss.PyCallbackIOWriter(write))


def set_threads(threads: int) -> None:
  """Sets OpenMP's number, which belongs to the calling thread."""
  faiss.omp_set_num_threads(threads)


def threads() -> int:
  """As many as FAISS would use by itself."""
  return faiss.omp_get_max_threads()


def inverted_lists(index: faiss.Index) -> faiss.IndexIVF | None:
  """The IVF index inside, whatever is wrapped around it, or None."""
  try:
    return faiss.extract_index_ivf(index)
  except RuntimeError:
    return None


def default_nprobe(nlist: int) -> int:
  """Visited lists: sqrt growth keeps recall flat as the corpus grows."""
  return min(nlist, max(16, round(2 * math.sqrt(nlist))))


def num_candidates(index: faiss.Index, rerank: int | None, k: int) -> int:
  """How many rows FAISS is asked for when the best `k` are wanted."""
  if rerank is not None:
    wanted = max(rerank, k)
  elif type(faiss.downcast_index(index)) in (faiss.IndexFlat, faiss.IndexFlatIP):
    wanted = k + EXACT_MARGIN
  else:
    wanted = max(4 * k, 100)
  return min(wanted, index.ntotal)


def find_candidates(
  index: faiss.Index, queries: np.ndarray, num: int, least: int
) -> tuple[np.ndarray, np.ndarray]:
  """Scores and rows [b, num] that the index itself finds best; -1 pads rows.

  Where the visited lists hold fewer than `least` rows for some query, that query visits more.
  """
  scores, rows = index.search(queries, num)
  ivf = inverted_lists(index)
  nprobe = ivf.nprobe if ivf is not None else 0
  short = np.flatnonzero(rows[:, least - 1] < 0)
  while len(short) and ivf is not None and nprobe < ivf.nlist:
    nprobe = min(ivf.nlist, 4 * nprobe)
    parameters = _search_parameters(index, nprobe)
    scores[short], rows[short] = index.search(queries[short], num, params=parameters)
    short = short[rows[short, least - 1] < 0]
  return scores, rows


def find_live_candidates(
  index: faiss.Index, queries: np.ndarray, num: int, least: int, dead: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """`find_candidates` without rows that no longer count, `dead` (rising).

  FAISS is asked for more than `num`, and for more again where too many of what it found are dead.
  Where there are fewer than `least` the index cannot find more.
  """
  if not len(dead):
    return find_candidates(index, queries, num, least)
  scores = np.full((len(queries), num), -np.inf, np.float32)
  rows = np.full((len(queries), num), -1, np.int64)
  pending = np.arange(len(queries))
  ask, demand = min(index.ntotal, num + min(num, len(dead))), least
  while True:
    found_scores, found = find_candidates(index, queries[pending], ask, demand)
    live = (found >= 0) & ~is_among(dead, found)
    counts = live.sum(axis=1)
    first = np.argsort(~live, axis=1, kind='stable')[:, :num]
    kept = np.take_along_axis(live, first, axis=1)
    rows[pending] = np.where(kept, np.take_along_axis(found, first, axis=1), -1)
    scores[pending] = np.where(kept, np.take_along_axis(found_scores, first, axis=1), -np.inf)
    # Padding shows that the visited lists held no more.
    done = (counts >= num) | ((found[:, -1] < 0) & (counts >= least))
    pending = pending[~done]
    if not len(pending) or demand == index.ntotal:
      return scores, rows
    ask = demand = min(index.ntotal, 4 * ask)


def is_among(rising: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Which values occur in a rising array; of the shape of `values`."""
  if not len(rising):
    return np.zeros(values.shape, bool)
  at = np.searchsorted(rising, values)
  return rising[np.minimum(at, len(rising) - 1)] == values


def _search_parameters(index: faiss.Index, nprobe: int):
  """Per-call parameters: the served index itself is never changed."""
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    return faiss.SearchParametersPreTransform(index_params=_search_parameters(index.index, nprobe))
  if isinstance(index, faiss.IndexRefine):
    base = _search_parameters(index.base_index, nprobe)
    return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
  if isinstance(index, faiss.IndexIVFPQ):
    return faiss.IVFPQSearchParameters(nprobe=nprobe)
  return faiss.SearchParametersIVF(nprobe=nprobe)


def exact_scores(
  embeddings: np.ndarray,
  queries: np.ndarray,
  rows: np.ndarray,
  pool: concurrent.futures.Executor | None = None,
) -> np.ndarray:
  """Inner products with stored vectors, float32 [b, num]; -inf at row -1.

  One query at a time: its candidates stay in the processor's cache, and its
  scores do not depend, to the last bit, on the rest of the batch or on the
  number of threads (BLAS would make them). A pool shares the queries.
  """
  scores = np.empty(rows.shape, np.float32)

  def score(i: int) -> None:
    candidates = embeddings[rows[i]].astype(np.float32)
    np.einsum('nd,d->n', candidates, queries[i], out=scores[i])

  share = pool.map if pool is not None and len(queries) > 1 else map
  for _ in share(score, range(len(queries))):
    pass
  scores[rows < 0] = -np.inf
  return scores


def exact_search(
  embeddings: np.ndarray,
  queries: np.ndarray,
  k: int,
  *,
  dead: np.ndarray | None = None,
  chunk_rows: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
  """Brute force over all rows: scores and rows [b, k], best first, equal ones by row.

  The embeddings may be memory-mapped; `dead` rows (rising) do not count, and k must be left.
  """
  scores = np.empty((len(queries), 0), np.float32)
  rows = np.empty((len(queries), 0), np.int64)
  for begin in range(0, len(embeddings), chunk_rows):
    chunk = np.asarray(embeddings[begin : begin + chunk_rows], np.float32)
    found = queries @ chunk.T
    if dead is not None:
      within = slice(*np.searchsorted(dead, (begin, begin + len(chunk))))
      found[:, dead[within] - begin] = -np.inf
    columns = _best_columns(found, k)
    found = np.where(columns < 0, -np.inf, np.take_along_axis(found, columns, axis=1))
    scores = np.concatenate([scores, found], axis=1)
    rows = np.concatenate([rows, columns + begin], axis=1)
    best = np.lexsort((rows, -scores))[:, :k]
    scores = np.take_along_axis(scores, best, axis=1)
    rows = np.take_along_axis(rows, best, axis=1)
  return scores, rows


def _best_columns(scores: np.ndarray, k: int) -> np.ndarray:
  """Columns of each row's k best and all equal to the last of them, rising; -1 pads: [b, n]."""
  if scores.shape[1] <= k:
    return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
  last = np.partition(scores, -k, axis=1)[:, [-k]]
  chosen = scores >= last
  counts = chosen.sum(axis=1)
  columns = np.argsort(~chosen, axis=1, kind='stable')[:, : counts.max()]
  return np.where(np.arange(columns.shape[1]) < counts[:, None], columns, -1)
