"""A generation together with the edits made since: what searches see."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import logging
from typing import Any

import numpy as np

from retrieval_service import faiss_index
from retrieval_service.edit_log import EditLog
from retrieval_service.edits import Edit
from retrieval_service.generation import Generation
from retrieval_service.overlay import Overlay, OverlayWriter
from retrieval_service.results import SearchResult

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LiveView:
  """One state of a generation and its edits; it never changes."""

  generation: Generation
  overlay: Overlay
  edits: int  #: the number of the last one
  metadata: dict[str, Any]  #: the generation's with the edits' merged over

  @property
  def number(self) -> int:
    return self.generation.number

  @property
  def dim(self) -> int:
    return self.generation.dim

  @property
  def count(self) -> int:
    """Passages that a search can find."""
    return self.generation.count - len(self.overlay.dead_rows) + self.overlay.count

  def search(self, queries: np.ndarray, k: int, return_embeddings: bool = False) -> SearchResult:
    """As `Generation.search`, of what the edits left and put."""
    found = self.generation.search(queries, k, return_embeddings, overlay=self.overlay)
    return dataclasses.replace(found, edits=self.edits)

  def chunks(self, chunk_rows: int = 16384) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All passages: ids [rows] int64 and embeddings [rows, d] float16.

    In the generation's order, a replaced one in its former place, then those added, by id.
    """
    overlay = self.overlay
    slots = overlay.live_slots()
    slots = slots[np.argsort(overlay.ids[slots])]
    rows = self.generation.rows_of(overlay.ids[slots])
    replaced, replacing = rows[rows >= 0], slots[rows >= 0]
    order = np.argsort(replaced)
    replaced, replacing = replaced[order], replacing[order]
    gone = overlay.dead_rows[~faiss_index.is_among(replaced, overlay.dead_rows)]
    for begin in range(0, self.generation.count, chunk_rows):
      end = min(begin + chunk_rows, self.generation.count)
      ids = np.arange(begin, end) if self.generation.ids is None else self.generation.ids[begin:end]
      embeddings = self.generation.embeddings[begin:end].copy()
      within = slice(*np.searchsorted(replaced, (begin, end)))
      embeddings[replaced[within] - begin] = overlay.vectors[replacing[within]]
      keep = ~faiss_index.is_among(gone, np.arange(begin, end))
      if keep.any():
        yield ids[keep], embeddings[keep]
    added = slots[rows < 0]
    for begin in range(0, len(added), chunk_rows):
      chosen = added[begin : begin + chunk_rows]
      yield overlay.ids[chosen], overlay.vectors[chosen].astype(np.float16)


class LiveGeneration:
  """A generation that follows the edits; one thread at a time moves it on.

  Deletes hold in every generation until the id is put again. A vector put
  holds unless the generation has the id and knows of the edit
  (`Manifest.edits_applied`). The view is replaced whole.
  """

  def __init__(self, generation: Generation, log: EditLog):
    """Brings a generation up to the end of the log."""
    self.generation = generation
    self.view: LiveView
    self._log = log
    self.rebuild()

  def rebuild(self) -> None:
    """Starts again from what the log comes to."""
    log = self._log
    manifest = self.generation.manifest
    writer = OverlayWriter(self.generation.dim)
    last = log.last_edits()
    hold = last.sequences > manifest.edits_forgotten
    ids, sequences, dims = last.ids[hold], last.sequences[hold], last.dims[hold]
    rows = self.generation.rows_of(ids)
    put = (dims > 0) & ((sequences > manifest.edits_applied) | (rows < 0))
    alien = put & (dims != self.generation.dim)
    if alien.any():
      logger.warning(
        f'{alien.sum()} vectors put by edits have dimension {dims[alien][0]} or another and '
        f'generation {self.generation.number} has {self.generation.dim}: they are left out of it'
      )
      put &= ~alien
    dead = rows[(put | (dims == 0)) & (rows >= 0)]
    put_ids = ids[put]
    writer.apply(dead, put_ids, log.vectors(put_ids, self.generation.dim), ids[:0])
    metadata = dict(manifest.metadata)
    for key, (sequence, value) in log.metadata.items():
      if sequence > manifest.edits_applied:
        metadata[key] = value
    self._writer = writer
    self.view = LiveView(self.generation, writer.overlay, log.last, metadata)

  def apply(self, edit: Edit) -> None:
    """Moves on by the log's last edit, the one after those of the view."""
    if len(edit.ids) and edit.dim != self.generation.dim:
      return self.rebuild()
    rows = self.generation.rows_of(np.concatenate([edit.ids, edit.delete_ids]))
    vectors = edit.embeddings.reshape(len(edit.ids), self.generation.dim)
    self._writer.apply(rows[rows >= 0], edit.ids, vectors, edit.delete_ids)
    metadata = self.view.metadata | edit.metadata
    self.view = LiveView(self.generation, self._writer.overlay, edit.sequence, metadata)

  def missing(self, ids: np.ndarray) -> np.ndarray:
    """Those of `ids` that no search can find."""
    rows = self.generation.rows_of(ids)
    held = (rows >= 0) & ~faiss_index.is_among(self.view.overlay.dead_rows, rows)
    held |= np.fromiter(map(self._writer.has, ids.tolist()), bool, len(ids))
    return ids[~held]
