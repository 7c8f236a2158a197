"""Contriever's and DPR's files of passage embeddings, by the ids of a corpus.

Contriever pickles a pair of ids and one array [n, dim] a file (`passages_00`),
DPR a list of pairs of id and vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.interop.files import restricted_pickle
from ralm_jax.retrieval import embedding

# Embeddings at a time.
PIECE = 65_536


class RowFinder:
  """Ids of embeddings to rows of the corpus, each row once."""

  def __init__(self, store: PassageStore, prefix: str, allow_unused: bool):
    self._store, self._prefix, self._allow_unused = store, prefix, allow_unused
    self._file_of = np.full(len(store), -1, np.int32)
    self._files: list[str] = []

  def rows(self, file: str, ids: list[str]) -> np.ndarray:
    """int64 [n], -1 for what is left out; ValueError names file and id."""
    shortened = [id_.removeprefix(self._prefix) for id_ in ids]
    rows = self._store.rows_of(shortened, unknown=-1)
    known = rows >= 0
    if not known.all() and not self._allow_unused:
      absent = np.flatnonzero(~known)
      hint = self._store.passage(0).id
      raise ValueError(
        f'{file}: the corpus {self._store.directory} has no passage {ids[absent[0]]!r} (and '
        f'{len(absent) - 1} others of this file); its first is {hint!r}. Is it another corpus, or '
        'do the ids begin with something else (--id_prefix)? --allow_unused leaves them out.'
      )
    if file not in self._files[-1:]:
      self._files.append(file)
    found, counts = np.unique(rows[known], return_counts=True)
    twice = found[(counts > 1) | (self._file_of[found] >= 0)]
    if len(twice):
      before = self._file_of[twice[0]]
      raise ValueError(
        f'{file}: the embedding of {self._store.passage(int(twice[0])).id!r} '
        f'comes twice, first in {self._files[before]}'
        + (f' (and so do {len(twice) - 1} others).' if len(twice) > 1 else '.')
      )
    self._file_of[found] = len(self._files) - 1
    return rows

  def check_complete(self) -> None:
    """Raises ValueError where a passage has no embedding."""
    live = embedding.live_rows(self._store)
    missing = live[self._file_of[live] < 0]
    if len(missing):
      raise ValueError(
        f'{len(missing):,} of {len(live):,} passages of {self._store.directory} have no embedding '
        f'in {len(self._files)} files, the first of them '
        f'{self._store.passage(int(missing[0])).id!r}; is a file missing, or were long passages '
        'cut (max_words)? --allow_missing goes without.'
      )


def read_files(paths: list[str], finder: RowFinder) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
  """(file, embeddings [n, dim], rows [n]) of those that are used."""
  dim = None
  for path in paths:
    for ids, embeddings in _read_file(path):
      if dim is not None and embeddings.shape[1] != dim:
        raise ValueError(
          f'{path} has embeddings of size {embeddings.shape[1]}, {paths[0]} of size {dim}.'
        )
      dim = embeddings.shape[1]
      rows = finder.rows(path, ids)
      if (rows < 0).any():
        embeddings, rows = embeddings[rows >= 0], rows[rows >= 0]
      if len(rows):
        yield path, embeddings, rows
    # Views keep the file in memory, while the next one is read.
    del ids, embeddings, rows


def _read_file(path: str) -> Iterator[tuple[list[str], np.ndarray]]:
  """Ids [n] and embeddings [n, dim] of a file in one of the two layouts."""
  value = restricted_pickle.load_arrays(path)
  pair = isinstance(value, (tuple, list)) and len(value) == 2
  if pair and isinstance(value[1], np.ndarray):
    ids, vectors = value  # Contriever.
    if not isinstance(ids, (list, tuple, np.ndarray)) or (
      np.ndim(vectors) != 2 or len(ids) != len(vectors)
    ):
      raise _layout_error(path, f'{_count(ids)} and an array {vectors.shape}')
  elif isinstance(value, (list, tuple)) and all(
    isinstance(item, (tuple, list)) and len(item) >= 2 and isinstance(item[1], np.ndarray)
    for item in value
  ):
    ids, vectors = [item[0] for item in value], [item[1] for item in value]  # DPR.
    shapes = {vector.shape for vector in vectors}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
      raise _layout_error(path, f'vectors of the shapes {sorted(shapes)[:4]}')
  else:
    raise _layout_error(path, _count(value))
  if not len(ids):
    raise ValueError(f'{path} holds no embedding.')
  if vectors[0].dtype.kind != 'f':
    raise _layout_error(path, f'numbers of type {vectors[0].dtype}')
  for start in range(0, len(ids), PIECE):
    chosen = slice(start, start + PIECE)
    embeddings = vectors[chosen]
    yield (
      [_text(id_, path) for id_ in ids[chosen]],
      embeddings if isinstance(embeddings, np.ndarray) else np.stack(embeddings),
    )


def _count(value: Any) -> str:
  size = f' of {len(value)}' if hasattr(value, '__len__') else ''
  return f'a {type(value).__name__}{size}'


def _layout_error(path: str, found: str) -> ValueError:
  return ValueError(
    f'{path} holds {found}; expected a pair of ids and an array [n, dim] '
    '(Contriever), or a list of (id, vector) (DPR).'
  )


def _text(value: Any, path: str) -> str:
  if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
    return str(value)
  if not isinstance(value, str):
    raise ValueError(f'{path}: expected ids as strings, found {value!r:.40}.')
  return str(value)
