"""What examples name, ids and documents, as a search knows it."""

from __future__ import annotations

from collections.abc import Sequence
import logging
from typing import TYPE_CHECKING

import numpy as np

from ralm_jax.data.corpus import shards
from ralm_jax.data.corpus.passage_store import PassageStore

if TYPE_CHECKING:  # Which would load jax.
  from ralm_jax.losses.array_types import Int

NO_PASSAGE = -1
# Ids remembered at a time: a pre-training task names every passage there is.
_REMEMBERED = 1_000_000


def keys_of_documents(names: Sequence[Sequence[str]]) -> Int[np.ndarray, 'b n'] | None:
  """Keys as `PassageStore.documents` has them, filled with 0; None where no example names any."""
  width = max(map(len, names), default=0)
  if not width:
    return None
  result = np.zeros((len(names), width), np.int64)
  for i, some in enumerate(names):
    result[i, : len(some)] = shards.keys_of(some)
  return result


class RowsOfIds:
  """Finds the rows of the passages that examples name, and remembers them."""

  def __init__(self, store: PassageStore):
    """Looks up nothing yet; the corpus may grow meanwhile (`PassageStore.reload`)."""
    self._store = store
    self._fingerprint = store.fingerprint
    self._known: dict[str, tuple[int, ...]] = {}
    self._warned = False

  def __call__(self, ids: Sequence[Sequence[str]]) -> Int[np.ndarray, 'b n'] | None:
    """Rows of all parts of what each example names, filled with -1; None where none names any."""
    if not any(len(some) for some in ids):
      return None
    if self._fingerprint != self._store.fingerprint:
      self._known, self._fingerprint = {}, self._store.fingerprint
    if len(self._known) > _REMEMBERED:
      self._known = {}
    new = dict.fromkeys(one for some in ids for one in some if one not in self._known)
    self._look_up(list(new))
    rows = [[row for one in some for row in self._known[one]] for some in ids]
    result = np.full((len(ids), max(map(len, rows))), NO_PASSAGE, np.int64)
    for i, some in enumerate(rows):
      result[i, : len(some)] = some
    return result

  def _look_up(self, ids: list[str]) -> None:
    found = self._store.find(ids)
    rows: list[list[int]] = [[] for _ in ids]
    newest = found.is_newest
    for position, row in zip(found.positions[newest].tolist(), found.rows[newest].tolist()):
      rows[position].append(row)
    self._known.update(zip(ids, map(tuple, rows)))
    unknown = [one for one, some in zip(ids, rows) if not some]
    if unknown and not self._warned:
      self._warned = True
      logging.warning(
        f'The examples name passages that the corpus {self._store.directory} does not have, such '
        f'as {unknown[0]!r}; nothing is excluded or gold for these.'
      )
