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
  """The best passages of each query, best first."""

  ids: np.ndarray  #: [b, k] int64
  scores: np.ndarray  #: [b, k] float32 inner products
  generation: int  #: which generation of the index answered
  embeddings: np.ndarray | None = None  #: [b, k, d] float16, or None where not asked for
  edits: int = 0  #: the sequence number of the last edit that the answer has seen
  index_id: str = ''  #: of which index it is a generation; see `GenerationStore.index_id`.


@dataclasses.dataclass(frozen=True)
class EditResult:
  """An edit that is on the disk and in every search from now on."""

  generation: int  #: the one served, of which it is a part
  edits: int  #: its sequence number
  count: int  #: passages there are now
  ids: np.ndarray  #: [rows] int64 of the vectors put
  absent_ids: np.ndarray  #: int64, those deleted that the served generation had not


@dataclasses.dataclass(frozen=True)
class SwapResult:
  """Another index, of so many passages, is served from now on."""

  index_id: str
  generation: int
  count: int
  former_index_id: str
  former_directory: str  #: on the server's machine
  #: owners who have pinned generations of the former: training runs, finished ones among them
  pinned_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ServerStatus:
  """What the process serves."""

  generation: int  #: its number; 0 when the index is empty
  count: int  #: passages in it, with all edits
  dim: int
  options: IndexOptions | None  #: those asked for; None when empty
  factory: str  #: the FAISS factory string in use
  metadata: dict[str, Any]  #: what the builder said of it
  generations: tuple[int, ...]  #: all on disk
  building: bool  #: whether a new one is in the making
  index_directory: str  #: on the server's machine
  edits: int = 0  #: the last edit's sequence number; 0 where there never was one
  next_id: int = 0  #: one past the largest passage id there ever was
  index_id: str = ''  #: which index this is, wherever its folder lies
