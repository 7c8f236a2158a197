"""Embeddings taken over from indexes of other states of the same documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ralm_jax.data.corpus import identifiers
from ralm_jax.data.corpus.passage_store import PassageStore
from ralm_jax.losses.array_types import Float, Int
from ralm_jax.retrieval import connect
from ralm_jax.retrieval.embedding import PassageEmbedder
from retrieval_service.generations import GenerationStore

PyTree = Any
_PART = 65_536


class FormerEmbeddings:
  """What indexes hold, by the text that was embedded; the encoder and its formats are the same."""

  def __init__(self, indexes: Sequence[str]):
    """Leaves out indexes that are empty or damaged, or whose corpus is gone."""
    hashes, where = [], []
    self._arrays: list[np.ndarray] = []
    for index in indexes:
      try:
        generation = GenerationStore(index).open_current(verify_checksums=True)
        if generation is None:
          continue
        store = PassageStore.open(connect.find_corpus(generation.manifest.metadata, index))
      except (ValueError, OSError):
        continue
      rows = np.arange(generation.count) if generation.ids is None else generation.ids
      hashes.append(_hashes(store, rows))
      where.append([np.full(len(rows), len(self._arrays)), np.arange(len(rows))])
      self._arrays.append(generation.embeddings)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    self._hashes, first = np.unique(flat, return_index=True)
    self._where = np.concatenate(where, axis=1)[:, first] if where else np.zeros((2, 0), np.int64)

  def of(
    self, store: PassageStore, rows: Int[np.ndarray, ' n']
  ) -> tuple[Int[np.ndarray, ' m'], Float[np.ndarray, 'm d']]:
    """Positions in `rows` of the passages that are known, and their embeddings."""
    if not len(self._hashes):
      return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
    wanted = _hashes(store, rows)
    at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
    known = np.flatnonzero(self._hashes[at] == wanted)
    found = [self._arrays[i][j] for i, j in self._where[:, at[known]].T]
    return known, np.asarray(found, np.float32).reshape(len(known), -1)


class ReusingEmbedder(PassageEmbedder):
  """Encodes only passages that no former index has."""

  def __init__(
    self, *arguments: Any, store: PassageStore, former: FormerEmbeddings, **options: Any
  ):
    super().__init__(*arguments, **options)
    self._store, self._former = store, former

  def embed(self, params: PyTree, rows: np.ndarray) -> np.ndarray:
    known, embeddings = self._former.of(self._store, rows)
    if not len(known):
      return super().embed(params, rows)
    result = np.empty((len(rows), embeddings.shape[1]), np.float32)
    result[known] = embeddings
    new = np.setdiff1d(np.arange(len(rows)), known, assume_unique=True)
    if len(new):
      result[new] = super().embed(params, rows[new])
    return result


def _hashes(store: PassageStore, rows: np.ndarray) -> Int[np.ndarray, ' n']:
  def texts() -> Iterator[str]:
    for first in range(0, len(rows), _PART):
      for passage in store.passages(rows[first : first + _PART]):
        yield f'{passage.merged_title}\0{passage.text}'

  return identifiers.hash_ids(texts())
