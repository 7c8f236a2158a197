"""SearchBackend: what holds an index and searches it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from retrieval_service.options import IndexOptions
from retrieval_service.results import EditResult, SearchResult, ServerStatus


class SearchBackend(Protocol):
  """An index that is searched, edited and built anew by its id.

  `retrieval_service.client.RetrievalClient` is one, and
  `ralm_jax.retrieval.device.index.DeviceIndex`. May be shared among threads. What a call says of
  its arguments holds for both; a process that cannot be reached is a ConnectionError besides.
  """

  address: str  #: what this is, for messages

  @property
  def needs_strict_order(self) -> bool:
    """Whether processes search together, as often and in the same order.

    A search is then a collective program of all processes, as deep on each and with as many
    queries. It must not overlap other work of the devices: beside a train step it could come before
    the step on one host and after it on another, and both would wait forever. Retrieve without
    look-ahead then (`retrieval_lookahead=0`).
    """

  def search(
    self,
    query_embeddings: np.ndarray,
    k: int,
    *,
    return_embeddings: bool = False,
    generation: int | None = None,
    index_id: str = '',
  ) -> SearchResult:
    """The k passages of largest inner product for each query [batch, d].

    One generation in one state of its edits answers. Equal scores are ordered by id.

    Args:
      return_embeddings: also brings the stored float16 embeddings.
      generation: an older generation's number; None: the current one.
      index_id: the index it must be; '': any.

    Raises:
      ValueError: wrong shape or dimension, values not finite, or more passages than there are.
      LookupError: the generation does not exist any more.
      IndexSwappedError: another index is served.
      RuntimeError: the index is empty, or the process failed.
    """

  def build(
    self,
    chunks: Iterable[tuple[np.ndarray | None, np.ndarray]],
    *,
    dim: int,
    options: IndexOptions | None = None,
    metadata: dict[str, Any] | None = None,
    build_id: str | None = None,
    edits_applied: int | None = None,
    forget_edits: bool = False,
  ) -> int:
    """Writes a generation, which is searched from then on; gives its number.

    Passages that edits deleted stay deleted in it, until their ids are put again; vectors that
    edits put stay where it has no such id.

    Args:
      chunks: pairs of ids ([rows] int64, or None for row numbers throughout) and embeddings
        [rows, dim]; of any size.
      options: the FAISS index to build; None: a flat one.
      metadata: JSON that stays with the generation.
      build_id: a name of one's own: a whole generation on disk of that name is searched again
        instead, whatever the chunks are.
      edits_applied: the last edit that the vectors know of (`status().edits` when their making
        began): later ones hold in place of what it has. None: all there are when the build begins.
      forget_edits: those edits do not hold in it, nor in later generations: for another corpus,
        whose ids mean other passages.

    Raises:
      ValueError: vectors or options that cannot be.
      OSError, RuntimeError: the build failed, on a full disk for one.
    """

  def compact(self) -> int:
    """Builds a generation with all edits folded in; gives its number.

    Raises:
      ValueError: all passages are deleted.
      RuntimeError: the index is empty, or the build failed.
    """

  def edit(
    self,
    ids: np.ndarray | Sequence[int] | None = None,
    embeddings: np.ndarray | None = None,
    *,
    delete_ids: np.ndarray | Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
    delete_absent: bool = False,
  ) -> EditResult:
    """Puts and deletes passages by id, without a rebuild: all or nothing.

    When it returns, the edit is on the disk, and every search that starts later sees it, of older
    generations too. It lasts, through later generations as well (see `build`).

    Args:
      ids: [rows] int64 to put the vectors under, in place of what is there; None: on from
        `status().next_id`.
      embeddings: [rows, d]; None: nothing is put.
      metadata: JSON merged over that of the index.
      delete_absent: whether passages may be deleted that the current generation has not; they are
        then out of all others, and of those built later.

    Raises:
      ValueError: vectors or ids that cannot be, or one id in both.
      LookupError: a passage to delete does not exist, without `delete_absent`.
      OSError, RuntimeError: the index is empty, or the disk is full.
      In each case nothing has changed.
    """

  def add(
    self,
    ids: np.ndarray | Sequence[int] | None,
    embeddings: np.ndarray,
    metadata: dict[str, Any] | None = None,
  ) -> EditResult:
    """As `edit`, of ids that the index does not have, or ValueError."""

  def delete(self, ids: np.ndarray | Sequence[int]) -> EditResult:
    """Deletes passages by id; see `edit`."""

  def missing(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Those of `ids`, [n] int64, that the current generation has not."""

  def status(self) -> ServerStatus:
    """What is searched."""

  def pin(self, owner: str, generations: Sequence[int]) -> None:
    """Says which generations `owner` needs from now on; LookupError if one does not exist."""

  def reload(self) -> int:
    """Turns to what the folder holds now, other programs' edits too: a generation's number or 0.

    A damaged one is a ValueError; the former one stays.
    """

  def wait_until_ready(self, timeout_s: float = 60.0) -> ServerStatus:
    """Waits until it can be searched."""

  def close(self) -> None:
    """Frees what it holds: the connection, or the devices' memory."""
