"""What edits make of one generation: rows that are dead, vectors put on top.

An `Overlay` never changes; the writer makes the next one without copying what it holds.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses

import numpy as np

from retrieval_service import faiss_index

# Slots in which a later edit left nothing are given up when they dominate.
_LEAST_REBUILD = 1024


@dataclasses.dataclass(frozen=True)
class Overlay:
  """One state of the edits of a generation."""

  dead_rows: np.ndarray  #: rising: rows of the generation that are deleted or replaced
  ids: np.ndarray  #: [slots] of the vectors put
  vectors: np.ndarray  #: [slots, d] float32, of float16 values
  dead_slots: np.ndarray  #: rising: slots that a later edit deleted or replaced

  @classmethod
  def empty(cls, dim: int) -> Overlay:
    nothing = np.zeros(0, np.int64)
    return cls(nothing, nothing, np.zeros((0, dim), np.float32), nothing)

  @property
  def count(self) -> int:
    """Vectors that hold."""
    return len(self.ids) - len(self.dead_slots)

  def live_slots(self) -> np.ndarray:
    """[count] int64, rising."""
    return np.delete(np.arange(len(self.ids)), self.dead_slots)

  def candidates(
    self, queries: np.ndarray, k: int, pool: concurrent.futures.Executor | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """Slots and scores [b, n] by exact search: k and a margin for near-ties, or all."""
    num = min(k + faiss_index.EXACT_MARGIN, self.count)
    _, slots = faiss_index.exact_search(self.vectors, queries, num, dead=self.dead_slots)
    return slots, faiss_index.exact_scores(self.vectors, queries, slots, pool)


class OverlayWriter:
  """Makes one `overlay` after another; not to be shared among threads.

  An overlay is a view of the beginning of a buffer, beyond which alone anything is written.
  """

  def __init__(self, dim: int):
    self._ids = np.empty(0, np.int64)
    self._vectors = np.empty((0, dim), np.float32)
    self._slots: dict[int, int] = {}  # of the vectors that hold
    self.overlay = Overlay.empty(dim)

  def has(self, passage: int) -> bool:
    """Whether a vector put under this id holds."""
    return passage in self._slots

  def apply(
    self, dead_rows: np.ndarray, ids: np.ndarray, vectors: np.ndarray, delete_ids: np.ndarray
  ) -> None:
    """Moves on to the next state.

    Some of the `dead_rows`, in any order, may be dead already. The vectors put are float16 values
    in any floating type, under ids without repeats, of which none is deleted as well.
    """
    former = self.overlay
    begin, end = len(former.ids), len(former.ids) + len(ids)
    # Made ready before anything is changed, for memory may run out.
    rows = _merged(former.dead_rows, dead_rows)
    concerned = (*ids.tolist(), *delete_ids.tolist())
    gone = [self._slots[passage] for passage in concerned if passage in self._slots]
    slots = _merged(former.dead_slots, np.array(gone, np.int64))
    if end > len(self._ids):
      room = max(2 * len(self._ids), end, 64)
      self._ids = _longer(former.ids, room)
      self._vectors = _longer(former.vectors, room)
    self._ids[begin:end] = ids
    self._vectors[begin:end] = vectors
    for passage in delete_ids.tolist():
      self._slots.pop(passage, None)
    self._slots.update(zip(ids.tolist(), range(begin, end)))
    self.overlay = Overlay(rows, self._ids[:end], self._vectors[:end], slots)
    if len(slots) > max(_LEAST_REBUILD, self.overlay.count):
      self._rebuild()

  def _rebuild(self) -> None:
    """Into a new buffer: earlier overlays keep the old one."""
    former = self.overlay
    live = former.live_slots()
    self._ids = former.ids[live]
    self._vectors = former.vectors[live]
    self._slots = {passage: slot for slot, passage in enumerate(self._ids.tolist())}
    self.overlay = Overlay(former.dead_rows, self._ids, self._vectors, np.zeros(0, np.int64))


def _merged(rising: np.ndarray, more: np.ndarray) -> np.ndarray:
  more = np.unique(more)
  more = more[~faiss_index.is_among(rising, more)]
  return np.insert(rising, np.searchsorted(rising, more), more)


def _longer(array: np.ndarray, rows: int) -> np.ndarray:
  longer = np.empty((rows, *array.shape[1:]), array.dtype)
  longer[: len(array)] = array
  return longer
