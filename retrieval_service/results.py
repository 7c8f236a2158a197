"""What the retrieval process answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from retrieval_service.options import IndexOptions


class IndexSwappedError(RuntimeError):
  """The process serves another index than the one that a call is meant for."""

  @classmethod
  def of(cls, process: str, directory: str, found: str, wanted: str) -> IndexSwappedError:
    """The error of `process`, which serves a folder of another id."""
    return cls(
      f'{process} serves {directory} (id {found}) now, in place of the index '
      f'of id {wanted} that this program began with. Swap that back (ralm '
      'swap) and start again, or begin anew with the one that is served'
    )


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """The best passages of each query, best first.

  Attributes:
    ids: [b, k] int64.
    scores: [b, k] float32 inner products.
    generation: which generation of the index answered.
    embeddings: [b, k, d] float16, or None where not asked for.
    edits: the sequence number of the last edit that the answer has seen.
    index_id: of which index it is a generation; see `GenerationStore.index_id`.
  """

  ids: np.ndarray
  scores: np.ndarray
  generation: int
  embeddings: np.ndarray | None = None
  edits: int = 0
  index_id: str = ''


@dataclasses.dataclass(frozen=True)
class EditResult:
  """An edit that is on the disk and in every search from now on.

  Attributes:
    generation: the one served, of which it is a part.
    edits: its sequence number.
    count: passages there are now.
    ids: [rows] int64 of the vectors put.
    absent_ids: int64, those deleted that the served generation had not.
  """

  generation: int
  edits: int
  count: int
  ids: np.ndarray
  absent_ids: np.ndarray


@dataclasses.dataclass(frozen=True)
class SwapResult:
  """Another index, of so many passages, is served from now on.

  Attributes:
    former_directory: on the server's machine.
    pinned_by: owners who have pinned generations of the former: training runs,
      finished ones among them.
  """

  index_id: str
  generation: int
  count: int
  former_index_id: str
  former_directory: str
  pinned_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ServerStatus:
  """What the process serves.

  Attributes:
    generation: its number; 0 when the index is empty.
    count: passages in it, with all edits.
    options: those asked for; None when empty.
    factory: the FAISS factory string in use.
    metadata: what the builder said of it.
    generations: all on disk.
    building: whether a new one is in the making.
    index_directory: on the server's machine.
    edits: the last edit's sequence number; 0 where there never was one.
    next_id: one past the largest passage id there ever was.
    index_id: which index this is, wherever its folder lies.
  """

  generation: int
  count: int
  dim: int
  options: IndexOptions | None
  factory: str
  metadata: dict[str, Any]
  generations: tuple[int, ...]
  building: bool
  index_directory: str
  edits: int = 0
  next_id: int = 0
  index_id: str = ''
