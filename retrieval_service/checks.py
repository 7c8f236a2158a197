"""What queries, ids and vectors must be; an error names the first that is not."""

from __future__ import annotations

import numpy as np


def check_queries(queries: np.ndarray, k: int) -> None:
  """Raises ValueError for queries that no index can answer."""
  if queries.ndim != 2:
    raise ValueError(f'query_embeddings must be [batch, dim], found shape {list(queries.shape)}')
  if k < 1:
    raise ValueError(f'k must be at least 1, found {k}')
  finite = np.isfinite(queries).all(axis=1)
  if not finite.all():
    raise ValueError(
      f'query {np.argmin(finite)} of {len(queries)} holds a value that is not finite: '
      'check the query encoder'
    )


def check_search(queries: np.ndarray, k: int, *, number: int, dim: int, count: int) -> None:
  """Raises ValueError for a search that this generation cannot answer."""
  if queries.shape[1] != dim:
    raise ValueError(
      f'the queries have dimension {queries.shape[1]} and generation {number} of the index has '
      f'dimension {dim}: they must be embedded by the encoder that embedded the passages'
    )
  if k > count:
    raise ValueError(
      f'k={k} passages wanted and generation {number} of '
      f'the index holds {count}: lower k or add passages'
    )


def passage_ids(ids: np.ndarray, rows: int) -> np.ndarray:
  """The ids of so many embeddings, as int64; ValueError for others or negative ones."""
  ids = np.asarray(ids, np.int64)
  check_paired(ids, rows)
  if rows and ids.min() < 0:
    raise ValueError(f'passage ids must not be negative, found {ids.min()}')
  return ids


def check_paired(ids: np.ndarray, rows: int) -> None:
  """Raises ValueError unless there is one id for each embedding."""
  if ids.shape != (rows,):
    raise ValueError(f'{rows} embeddings came with ids of shape {list(ids.shape)}')


def check_distinct(ids: np.ndarray) -> None:
  """Raises ValueError where an id occurs twice."""
  rising = np.sort(ids)
  repeats = rising[1:][rising[1:] == rising[:-1]]
  if len(repeats):
    raise ValueError(
      f'passage id {repeats[0]} occurs more than once ({len(repeats)} repeats in all)'
    )


def as_float16(embeddings: np.ndarray, ids: np.ndarray) -> np.ndarray:
  """[rows, d] as an index stores it; ValueError where float16 cannot hold it."""
  with np.errstate(over='ignore'):
    stored = np.ascontiguousarray(embeddings, np.float16)
  finite = np.isfinite(stored).all(axis=1)
  if not finite.all():
    raise ValueError(
      f'the embedding of passage {ids[np.argmin(finite)]} holds a value that float16 '
      'cannot: not a number, or beyond 65504; check the passage encoder'
    )
  return stored
