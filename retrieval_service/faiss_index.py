"""FAISS indexes: resolving options, training, adding, searching, re-ranking.

Everything here works on plain arrays. An index holds row numbers 0..n-1; what
id a row has is known to `generations.py` alone.
"""

import concurrent.futures
import dataclasses
import logging
import math
import sys
from collections.abc import Callable

import faiss
import numpy as np
import tqdm

from retrieval_service.options import IndexOptions

logger = logging.getLogger(__name__)

# An 8-bit codebook has 256 entries and FAISS refuses to train it on fewer.
PQ_CENTROIDS = 256
# FAISS's own rule for a sound k-means.
POINTS_PER_LIST = 39
# FAISS samples no more than this for a product quantiser.
PQ_TRAIN_SIZE = PQ_CENTROIDS * 256
# Keeps an exact index's candidates a superset of its best k when float32
# summation order (which FAISS varies with the batch size) reorders near-ties.
EXACT_MARGIN = 16


@dataclasses.dataclass(frozen=True)
class IndexPlan:
  """What the options come to for one corpus.

  Attributes:
    factory: The FAISS factory string.
    train_size: Vectors to train on.
    fallback: Whether the corpus is too small for the index asked for, so that
      a flat one stands in.
  """
  factory: str
  train_size: int
  fallback: bool = False


def plan_index(options: IndexOptions, dim: int, count: int) -> IndexPlan:
  """Turns options into a factory string for `count` vectors of `dim`.

  Raises:
    ValueError: The options do not fit the dimension or the count.
  """
  if count < 1:
    raise ValueError('an index needs at least 1 vector, found 0')
  kind = options.index_type
  train_size = min(count, options.train_size or count)
  if kind == 'flat':
    return IndexPlan('Flat', 0)
  if not options.is_friendly:
    return IndexPlan(kind, min(
        train_size, options.train_size or max(PQ_TRAIN_SIZE, 256 * 1024)))
  if kind in ('pq', 'ivf_pq') and train_size < PQ_CENTROIDS:
    logger.warning(
        'index type %s needs at least %d training vectors and has %d: an exact '
        'flat index stands in', kind, PQ_CENTROIDS, train_size)
    return IndexPlan('Flat', 0, fallback=True)
  parts = []
  codes = 'Flat'
  if kind in ('pq', 'ivf_pq'):
    # `np`: no polysemous training, which costs 30 times the time for no recall.
    codes = f'PQ{options.bytes_per_vector}np'
    if options.opq:
      parts.append(_rotation(options.bytes_per_vector, dim))
    elif dim % options.bytes_per_vector:
      raise ValueError(
          f'bytes_per_vector={options.bytes_per_vector} does not divide the '
          f'dimension {dim}; use one of {_divisors(dim)}, or opq=True')
  wanted = PQ_TRAIN_SIZE
  if kind in ('ivf_flat', 'ivf_pq'):
    nlist = options.nlist or max(1, min(
        round(4 * math.sqrt(count)), train_size // POINTS_PER_LIST))
    if nlist > train_size:
      raise ValueError(
          f'nlist={nlist} needs at least as many training vectors and there '
          f'are {train_size}; use nlist <= '
          f'{max(1, train_size // POINTS_PER_LIST)}')
    wanted = max(wanted, 64 * nlist)
    parts.append(f'IVF{nlist}')
  return IndexPlan(','.join(parts + [codes]),
                   min(train_size, options.train_size or wanted))


def _rotation(num_bytes: int, dim: int) -> str:
  if num_bytes > dim:
    raise ValueError(f'bytes_per_vector={num_bytes} exceeds the dimension {dim}')
  reduced = num_bytes * min(4, dim // num_bytes)
  return f'OPQ{num_bytes}_{reduced}'


def _divisors(dim: int) -> str:
  return ', '.join(str(n) for n in range(1, dim + 1)
                   if dim % n == 0 and n <= 256)


def new_index(factory: str, dim: int) -> faiss.Index:
  """An empty, untrained inner-product index.

  Raises:
    ValueError: FAISS cannot make such an index of this dimension.
  """
  try:
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
  except RuntimeError as error:
    raise ValueError(
        f'index_type {factory!r} is not a FAISS factory string for inner '
        f'product over {dim} dimensions: {_reason(error)}') from error
  _quieten(index)
  return index


def _reason(error: RuntimeError) -> str:
  """The end of a FAISS message, where the cause stands."""
  return str(error).splitlines()[0].rsplit('.cpp:', 1)[-1].partition(': ')[2]


def _quieten(index: faiss.Index) -> None:
  """Stops FAISS from printing a line for each small k-means it runs.

  `build_index` logs the shortage once instead.
  """
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    for position in range(index.chain.size()):
      transform = faiss.downcast_VectorTransform(index.chain.at(position))
      if isinstance(transform, faiss.OPQMatrix):
        quantizer = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
        quantizer.cp.min_points_per_centroid = 1
        transform.pq = quantizer
        transform.referenced_objects = [quantizer]  # FAISS keeps no reference
        index.referenced_objects = getattr(
            index, 'referenced_objects', []) + [quantizer]
    index = faiss.downcast_index(index.index)
  for holder in (index, getattr(index, 'pq', None)):
    if hasattr(holder, 'cp'):
      holder.cp.min_points_per_centroid = 1


def build_index(
    embeddings: np.ndarray,
    options: IndexOptions,
    *,
    chunk_rows: int = 8192,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> tuple[faiss.Index, IndexPlan]:
  """Trains an index and adds every row, a chunk at a time.

  Args:
    embeddings: [count, dim] float16 or float32; may be memory-mapped.
    options: What to build.
    chunk_rows: Rows converted to float32 at once.
    progress: Shows a bar on stderr.
    check: Called between chunks; raises to end the build.

  Raises:
    ValueError: The options do not fit the vectors.
  """
  count, dim = embeddings.shape
  plan = plan_index(options, dim, count)
  index = new_index(plan.factory, dim)
  if not index.is_trained:
    _train(index, embeddings, plan)
  check()
  add_vectors(index, embeddings, chunk_rows=chunk_rows, progress=progress,
              check=check)
  return index, plan


def _train(index: faiss.Index, embeddings: np.ndarray, plan: IndexPlan) -> None:
  """Trains on an evenly drawn sample, the same one every time."""
  count = len(embeddings)
  rows = np.arange(count)
  if plan.train_size < count:
    rows = np.sort(np.random.default_rng(0).choice(
        count, plan.train_size, replace=False))
  ivf = inverted_lists(index)
  if ivf is not None and ivf.nlist * POINTS_PER_LIST > len(rows):
    logger.warning(
        '%d training vectors are few for %d inverted lists (%d a list are '
        'sound): recall may suffer', len(rows), ivf.nlist, POINTS_PER_LIST)
  if 'PQ' in plan.factory and len(rows) < POINTS_PER_LIST * PQ_CENTROIDS:
    logger.warning(
        '%d training vectors are few for a product quantiser (%d are sound): '
        'recall without re-ranking may suffer', len(rows),
        POINTS_PER_LIST * PQ_CENTROIDS)
  logger.info('training %s on %d of %d vectors', plan.factory, len(rows), count)
  try:
    index.train(np.asarray(embeddings[rows], dtype=np.float32))
  except RuntimeError as error:
    raise ValueError(
        f'{len(rows)} vectors cannot train the index {plan.factory!r}: '
        f'{_reason(error)}. Use more vectors, a smaller index or '
        "index_type='flat'") from error


def add_vectors(
    index: faiss.Index,
    embeddings: np.ndarray,
    *,
    start: int = 0,
    chunk_rows: int = 8192,
    progress: bool = False,
    check: Callable[[], None] = lambda: None,
) -> None:
  """Adds rows `start` onwards to a trained index that lives in memory."""
  with tqdm.tqdm(total=len(embeddings) - start, desc='adding vectors',
                 unit='vector', unit_scale=True, file=sys.stderr,
                 disable=None if progress else True, leave=False) as bar:
    for begin in range(start, len(embeddings), chunk_rows):
      check()
      chunk = np.asarray(embeddings[begin:begin + chunk_rows], np.float32)
      index.add(chunk)
      bar.update(len(chunk))


def read_index(path: str, *, memory_map: bool = True) -> faiss.Index:
  """Reads an index; a memory-mapped one must never be added to (it aborts)."""
  # The IFC variant maps flat indexes too, where the plain one reads them whole.
  return faiss.read_index(
      path, faiss.IO_FLAG_MMAP_IFC if memory_map else 0)


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
  if rerank == 0:
    wanted = k
  elif rerank is not None:
    wanted = max(rerank, k)
  elif type(faiss.downcast_index(index)) in (faiss.IndexFlat,
                                             faiss.IndexFlatIP):
    wanted = k + EXACT_MARGIN
  else:
    wanted = max(4 * k, 100)
  return min(wanted, index.ntotal)


def find_candidates(
    index: faiss.Index, queries: np.ndarray, num: int, least: int,
) -> tuple[np.ndarray, np.ndarray]:
  """The index's own best rows.

  Where the visited lists hold fewer than `least` rows for some query, that
  query visits more.

  Args:
    index: A filled index.
    queries: [batch, dim] float32.
    num: Rows to ask for.
    least: Rows that every query must get; at most `index.ntotal`.

  Returns:
    scores [batch, num] float32 and rows [batch, num] int64; -1 pads rows.
  """
  scores, rows = index.search(queries, num)
  ivf = inverted_lists(index)
  nprobe = ivf.nprobe if ivf is not None else 0
  short = np.flatnonzero(rows[:, least - 1] < 0)
  while len(short) and ivf is not None and nprobe < ivf.nlist:
    nprobe = min(ivf.nlist, 4 * nprobe)
    scores[short], rows[short] = index.search(
        queries[short], num, params=_search_parameters(index, nprobe))
    short = short[rows[short, least - 1] < 0]
  return scores, rows


def _search_parameters(index: faiss.Index, nprobe: int):
  """Per-call parameters: the served index itself is never changed."""
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    return faiss.SearchParametersPreTransform(
        index_params=_search_parameters(index.index, nprobe))
  if isinstance(index, faiss.IndexRefine):
    return faiss.IndexRefineSearchParameters(
        k_factor=index.k_factor,
        base_index_params=_search_parameters(index.base_index, nprobe))
  if isinstance(index, faiss.IndexIVFPQ):
    return faiss.IVFPQSearchParameters(nprobe=nprobe)
  return faiss.SearchParametersIVF(nprobe=nprobe)


def exact_scores(
    embeddings: np.ndarray,
    queries: np.ndarray,
    rows: np.ndarray,
    pool: concurrent.futures.Executor | None = None,
) -> np.ndarray:
  """Inner products with stored vectors, in float32.

  One query at a time: its candidates stay in the processor's cache, and its
  scores do not depend, to the last bit, on the rest of the batch or on the
  number of threads (BLAS would make them).

  Args:
    embeddings: [count, dim] float16, may be memory-mapped.
    queries: [batch, dim] float32.
    rows: [batch, num] int64; -1 is padding.
    pool: Shares the queries among its threads.

  Returns:
    [batch, num] float32, minus infinity at padding.
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
    embeddings: np.ndarray, queries: np.ndarray, k: int,
    *, chunk_rows: int = 16384,
) -> tuple[np.ndarray, np.ndarray]:
  """Brute force over all rows: scores [batch, k] float32, rows int64."""
  scores = np.empty((len(queries), 0), np.float32)
  rows = np.empty((len(queries), 0), np.int64)
  for begin in range(0, len(embeddings), chunk_rows):
    chunk = np.asarray(embeddings[begin:begin + chunk_rows], np.float32)
    scores = np.concatenate([scores, queries @ chunk.T], axis=1)
    rows = np.concatenate([rows, np.broadcast_to(
        np.arange(begin, begin + len(chunk)), (len(queries), len(chunk)))], 1)
    best = np.lexsort((rows, -scores))[:, :k]
    scores = np.take_along_axis(scores, best, axis=1)
    rows = np.take_along_axis(rows, best, axis=1)
  return scores, rows
