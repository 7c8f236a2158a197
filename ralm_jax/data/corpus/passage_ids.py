"""What examples name, ids and documents, as a search knows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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

  def __init__(
    self,
    store: PassageStore,
    named_by: str = 'examples',
    lost: str = 'nothing is excluded or gold for these',
  ):
    """Looks up nothing yet; the corpus may grow meanwhile (`PassageStore.reload`).

    Args:
      store: the corpus.
      named_by: what names passages, for the warning of those that are not there.
      lost: what comes of it.
    """
    self._store, self._named_by, self._lost = store, named_by, lost
    self._fingerprint = store.fingerprint
    self._known: dict[str, tuple[int, ...]] = {}
    self._warned = False

  def __call__(self, ids: Sequence[Sequence[str]]) -> Int[np.ndarray, 'b n'] | None:
    """Rows of all parts of what each example names, filled with -1; None where none names any."""
    if not any(len(some) for some in ids):
      return None
    self._remember(one for some in ids for one in some)
    rows = [[row for one in some for row in self._known[one]] for some in ids]
    lacking = sum(any(not self._known[one] for one in some) for some in ids)
    if lacking and not self._warned:
      self._warned = True
      first = next(one for some in ids for one in some if not self._known[one])
      logging.warning(
        f'The {self._named_by} name passages that the corpus {self._store.directory} does not '
        f'have, such as {first!r} ({lacking} of the {len(ids)} {self._named_by} at hand); '
        f'{self._lost}.'
      )
    result = np.full((len(ids), max(map(len, rows))), NO_PASSAGE, np.int64)
    for i, some in enumerate(rows):
      result[i, : len(some)] = some
    return result

  def unknown(self, ids: Sequence[str]) -> tuple[str, ...]:
    """Those of which the corpus has no passage."""
    self._remember(ids)
    return tuple(one for one in ids if not self._known[one])

  def _remember(self, ids: Iterable[str]) -> None:
    if self._fingerprint != self._store.fingerprint:
      self._known, self._fingerprint = {}, self._store.fingerprint
    if len(self._known) > _REMEMBERED:
      self._known = {}
    new = [one for one in dict.fromkeys(ids) if one not in self._known]
    if not new:
      return
    found = self._store.find(new)
    rows: list[list[int]] = [[] for _ in new]
    newest = found.is_newest
    for position, row in zip(found.positions[newest].tolist(), found.rows[newest].tolist()):
      rows[position].append(row)
    self._known.update(zip(new, map(tuple, rows)))
