"""Building FAISS indexes of row numbers 0..n-1: options resolved, trained, filled."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import logging
import math

import faiss
import numpy as np
import tqdm

from retrieval_service import faiss_index
from retrieval_service.options import IndexOptions

logger = logging.getLogger(__name__)

# An 8-bit codebook has 256 entries and FAISS refuses to train it on fewer.
PQ_CENTROIDS = 256
# FAISS's own rule for a sound k-means.
POINTS_PER_LIST = 39
# FAISS samples no more than this for a product quantiser.
PQ_TRAIN_SIZE = PQ_CENTROIDS * 256


@dataclasses.dataclass(frozen=True)
class IndexPlan:
  """What the options come to for one corpus."""

  factory: str
  train_size: int  #: vectors to train on
  #: whether the corpus is too small for the index asked for, so that a flat one stands in
  fallback: bool = False


def plan_index(options: IndexOptions, dim: int, count: int) -> IndexPlan:
  """Turns options into a factory string, or ValueError where they do not fit."""
  if count < 1:
    raise ValueError('an index needs at least 1 vector, found 0')
  kind = options.index_type
  train_size = min(count, options.train_size or count)
  if kind == 'flat':
    return IndexPlan('Flat', 0)
  if not options.is_friendly:
    return IndexPlan(kind, min(train_size, options.train_size or max(PQ_TRAIN_SIZE, 256 * 1024)))
  if kind in ('pq', 'ivf_pq') and train_size < PQ_CENTROIDS:
    logger.warning(
      f'index type {kind} needs at least {PQ_CENTROIDS} training vectors and has {train_size}: an '
      'exact flat index stands in'
    )
    return IndexPlan('Flat', 0, fallback=True)
  parts = []
  codes = 'Flat'
  if kind in ('pq', 'ivf_pq'):
    # `np`: no polysemous training, which costs 30 times the time for no recall.
    codes = f'PQ{options.bytes_per_vector}np'
    if options.opq:
      parts.append(_rotation(options.bytes_per_vector, dim))
    elif dim % options.bytes_per_vector:
      divisors = [str(n) for n in range(1, min(dim, 256) + 1) if dim % n == 0]
      raise ValueError(
        f'bytes_per_vector={options.bytes_per_vector} does not divide the '
        f'dimension {dim}; use one of {", ".join(divisors)}, or opq=True'
      )
  wanted = PQ_TRAIN_SIZE
  if kind in ('ivf_flat', 'ivf_pq'):
    nlist = options.nlist or max(1, min(round(4 * math.sqrt(count)), train_size // POINTS_PER_LIST))
    if nlist > train_size:
      raise ValueError(
        f'nlist={nlist} needs at least as many training vectors and there are {train_size}; use '
        f'nlist <= {max(1, train_size // POINTS_PER_LIST)}'
      )
    wanted = max(wanted, 64 * nlist)
    parts.append(f'IVF{nlist}')
  return IndexPlan(','.join(parts + [codes]), min(train_size, options.train_size or wanted))


def _rotation(num_bytes: int, dim: int) -> str:
  if num_bytes > dim:
    raise ValueError(f'bytes_per_vector={num_bytes} exceeds the dimension {dim}')
  reduced = num_bytes * min(4, dim // num_bytes)
  return f'OPQ{num_bytes}_{reduced}'


def new_index(factory: str, dim: int) -> faiss.Index:
  """An empty, untrained inner-product index, or ValueError where FAISS has none."""
  try:
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
  except RuntimeError as error:
    raise ValueError(
      f'index_type {factory!r} is not a FAISS factory string for inner '
      f'product over {dim} dimensions: {_reason(error)}'
    ) from error
  _quieten(index)
  return index


def _reason(error: RuntimeError) -> str:
  """The end of a FAISS message, where the cause stands."""
  return str(error).splitlines()[0].rsplit('.cpp:', 1)[-1].partition(': ')[2]


def _quieten(index: faiss.Index) -> None:
  """Stops FAISS from printing a line for each small k-means; `_train` logs the shortage once."""
  index = faiss.downcast_index(index)
  if isinstance(index, faiss.IndexPreTransform):
    for position in range(index.chain.size()):
      transform = faiss.downcast_VectorTransform(index.chain.at(position))
      if isinstance(transform, faiss.OPQMatrix):
        quantizer = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
        quantizer.cp.min_points_per_centroid = 1
        transform.pq = quantizer
        transform.referenced_objects = [quantizer]  # FAISS keeps no reference
        index.referenced_objects = getattr(index, 'referenced_objects', []) + [quantizer]
    index = faiss.downcast_index(index.index)
  for holder in (index, getattr(index, 'pq', None)):
    if (clustering := getattr(holder, 'cp', None)) is not None:
      clustering.min_points_per_centroid = 1


def build_index(
  embeddings: np.ndarray,
  options: IndexOptions,
  *,
  chunk_rows: int = 8192,
  progress: bool = False,
  check: Callable[[], None] = lambda: None,
) -> tuple[faiss.Index, IndexPlan]:
  """Trains an index and adds every row, a chunk at a time.

  Embeddings [count, d] of float16 or float32 may be memory-mapped. `check` is called between chunks
  and raises to end the build. Options that do not fit the vectors are a ValueError.
  """
  count, dim = embeddings.shape
  plan = plan_index(options, dim, count)
  index = new_index(plan.factory, dim)
  if not index.is_trained:
    _train(index, embeddings, plan)
  check()
  steps = range(0, count, chunk_rows)
  if progress:  # even a silent bar starts a thread
    steps = tqdm.tqdm(
      steps, 'adding vectors', unit_scale=chunk_rows, unit=' vectors', leave=False, disable=None
    )
  for begin in steps:
    check()
    index.add(np.asarray(embeddings[begin : begin + chunk_rows], np.float32))
  return index, plan


def _train(index: faiss.Index, embeddings: np.ndarray, plan: IndexPlan) -> None:
  """Trains on an evenly drawn sample, the same one every time."""
  count = len(embeddings)
  rows = np.arange(count)
  if plan.train_size < count:
    rows = np.sort(np.random.default_rng(0).choice(count, plan.train_size, replace=False))
  ivf = faiss_index.inverted_lists(index)
  if ivf is not None and ivf.nlist * POINTS_PER_LIST > len(rows):
    logger.warning(
      f'{len(rows)} training vectors are few for {ivf.nlist} inverted lists ({POINTS_PER_LIST} a '
      'list are sound): recall may suffer'
    )
  if 'PQ' in plan.factory and len(rows) < POINTS_PER_LIST * PQ_CENTROIDS:
    logger.warning(
      f'{len(rows)} training vectors are few for a product quantiser '
      f'({POINTS_PER_LIST * PQ_CENTROIDS} are sound): recall without re-ranking may suffer'
    )
  logger.info('training %s on %d of %d vectors', plan.factory, len(rows), count)
  try:
    index.train(np.asarray(embeddings[rows], dtype=np.float32))
  except RuntimeError as error:
    raise ValueError(
      f'{len(rows)} vectors cannot train the index {plan.factory!r}: {_reason(error)}. Use more '
      "vectors, a smaller index or index_type='flat'"
    ) from error
