"""New generations of an index that is in use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import contextlib
import logging
import threading
from typing import Any

import numpy as np

from retrieval_service import generation_writer
from retrieval_service.generation_writer import EditBounds, GenerationWriter
from retrieval_service.live import LiveView
from retrieval_service.live_index import LiveIndex
from retrieval_service.options import IndexOptions

logger = logging.getLogger(__name__)

Chunks = Iterable[tuple[np.ndarray | None, np.ndarray]]


class IndexBuilder:
  """Builds one generation at a time, while searches and edits go on.

  May be shared among threads. Where searches must not be slowed either, call it through
  `background.run`.
  """

  def __init__(self, index: LiveIndex, *, keep_generations: int = 2):
    """Generations older than the newest so many go after a build, unless pinned."""
    self._index = index
    self._store = index.store
    self._keep_generations = keep_generations
    self._lock = threading.Lock()

  @property
  def building(self) -> bool:
    """Whether a new generation is in the making."""
    return self._lock.locked()

  def build(
    self,
    chunks: Chunks,
    dim: int,
    options: IndexOptions,
    metadata: dict[str, Any] | None = None,
    *,
    build_id: str = '',
    edits_applied: int | None = None,
    forget_edits: bool = False,
    check: Callable[[], None] = lambda: None,
  ) -> LiveView:
    """See `SearchBackend.build`; called now and then, `check` raises to abandon the build."""
    if edits_applied is None:
      edits_applied = self._index.edits
    with self._turn(check):
      if found := self._store.find_build(build_id):  # the answer was lost, not the work
        return self._turn_to(found)
      edits = EditBounds(edits_applied, edits_applied if forget_edits else None)
      writer = generation_writer.begin(
        self._store, options, dim, metadata, build_id=build_id, edits=edits, check=check
      )
      return self._write(writer, chunks, check)

  def compact(self, *, build_id: str = '', check: Callable[[], None] = lambda: None) -> LiveView:
    """Builds a generation of what the current one and its edits come to.

    The options stay, codebooks and lists are trained anew; edits made meanwhile hold in it as well.
    """
    with self._turn(check):
      if found := self._store.find_build(build_id):
        return self._turn_to(found)
      view = self._index.view()
      manifest = view.generation.manifest
      options, edits = manifest.options, EditBounds(view.edits, manifest.edits_forgotten)
      writer = generation_writer.begin(
        self._store, options, view.dim, view.metadata, build_id=build_id, edits=edits, check=check
      )
      return self._write(writer, view.chunks(), check)

  def _write(self, writer: GenerationWriter, chunks: Chunks, check: Callable[[], None]) -> LiveView:
    with writer:
      for ids, embeddings in chunks:
        check()
        writer.append(ids, embeddings)
      check()
      logger.info('building an index of %d vectors', writer.count)
      number = writer.commit()
    # Its bytes have just been written by us: no need to read them again.
    self._index.reload(verify_checksums=False)
    if removed := self._store.prune(self._keep_generations):
      logger.info('removed generations %s', removed)
    logger.info('generation %d is complete', number)
    return self._index.view()

  def _turn_to(self, number: int) -> LiveView:
    self._store.make_current(number)
    self._index.reload()
    return self._index.view()

  @contextlib.contextmanager
  def _turn(self, check: Callable[[], None]) -> Iterator[None]:
    while not self._lock.acquire(timeout=0.5):
      check()
    try:
      with self._store.lock():
        self._index.keep_id()
      yield
    finally:
      self._lock.release()
