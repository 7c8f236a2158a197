"""The ways to put and delete passages, for whatever carries out an edit."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval_service.edits import WantedEdit
from retrieval_service.results import EditResult


class Editing(abc.ABC):
  """Of the retrieval process's client, and of an index on devices."""

  def edit(
    self,
    ids: np.ndarray | Sequence[int] | None = None,
    embeddings: np.ndarray | None = None,
    *,
    delete_ids: np.ndarray | Sequence[int] | None = None,
    metadata: dict[str, Any] | None = None,
    delete_absent: bool = False,
  ) -> EditResult:
    """Puts and deletes passages by id: see `SearchBackend.edit`."""
    if embeddings is None:
      if ids is not None and len(ids):
        raise ValueError(
          f'{len(ids)} ids came without embeddings; to delete passages give delete_ids'
        )
      embeddings = np.zeros((0, 1), np.float16)
    wanted = WantedEdit(
      None if ids is None else np.asarray(ids),
      np.asarray(embeddings),
      np.asarray([] if delete_ids is None else delete_ids),
      metadata or {},
    )
    return self._edit(wanted, delete_absent=delete_absent)

  def add(
    self,
    ids: np.ndarray | Sequence[int] | None,
    embeddings: np.ndarray,
    metadata: dict[str, Any] | None = None,
  ) -> EditResult:
    """As `edit`, of ids that the index does not have, or ValueError."""
    given = None if ids is None else np.asarray(ids)
    wanted = WantedEdit(given, np.asarray(embeddings), np.zeros(0, np.int64), metadata or {})
    return self._edit(wanted, only_new_ids=True)

  def delete(self, ids: np.ndarray | Sequence[int]) -> EditResult:
    """Deletes passages by id; see `edit`."""
    return self.edit(delete_ids=ids)

  @abc.abstractmethod
  def _edit(
    self, wanted: WantedEdit, *, only_new_ids: bool = False, delete_absent: bool = False
  ) -> EditResult:
    """Carries it out: see `LiveIndex.edit`."""
