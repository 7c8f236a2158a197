"""DeviceIndex: exact search on the mesh behind RetrievalClient's interface.

For those who have the memory: the embeddings of a generation lie on all devices of the mesh
together, and a search needs no other process. Generations and edits are kept in the INDEX folder
exactly as the retrieval process keeps them; either can serve a folder that the other has written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import os
import threading
from typing import Any

import jax
import numpy as np

from ralm_jax.retrieval.device import view
from ralm_jax.retrieval.device.lead import Lead, State
from ralm_jax.retrieval.device.residency import Residency
from ralm_jax.retrieval.device.search import DeviceOptions, DeviceSearch
from ralm_jax.training.partitioning import Partitioner
from retrieval_service import checks
from retrieval_service.editing import Editing
from retrieval_service.edits import WantedEdit
from retrieval_service.generations import GenerationStore
from retrieval_service.index_builder import IndexBuilder
from retrieval_service.live import LiveView
from retrieval_service.live_index import LiveIndex
from retrieval_service.options import IndexOptions
from retrieval_service.results import EditResult, IndexSwappedError, SearchResult, ServerStatus


class DeviceIndex(Editing):
  """Searches an INDEX folder on the devices: a `SearchBackend`.

  A search is answered by exactly one generation in exactly one state of its edits. A generation is
  put on the devices when it is first searched, and at most two stay there, those searched last.

  Programs are compiled for a batch size, a k, and a number of rows. The first two are rounded up to
  powers of two and the room for added vectors doubles, so that a run needs a handful.

  On a mesh of several processes a search is an act of all: every process makes the same searches in
  the same order, with as many queries each, and gets the answers to its own. The first process
  alone builds and edits, in a folder that all can read, and the others follow it at the next
  search. An error of one stops them all. See `needs_strict_order`.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    partitioner: Partitioner,
    options: DeviceOptions = DeviceOptions(),
    *,
    keep_generations: int = 2,
    verify_checksums: bool = True,
  ):
    """Opens the folder, which may be empty or missing; nothing is put on the devices yet.

    The rows are to lie over both axes of the partitioner's mesh. After a build `keep_generations`
    stay on disk, beside pinned ones. Unless told not to, every byte of a generation is read and
    checked before its first use. A damaged folder is a ValueError.
    """
    self.device_search = DeviceSearch(partitioner, options)
    self._approximate = options.approximate
    self._lead = Lead() if self.needs_strict_order else None
    self._index = LiveIndex(
      GenerationStore(directory), verify_checksums=verify_checksums and self._leads
    )
    self._builder = IndexBuilder(self._index, keep_generations=keep_generations)
    self._store = self._index.store
    self.address = f'the devices, of {self._store.directory}'
    self.residency = Residency(self.device_search)
    self._turning = threading.Lock()
    current = self._index.current
    self._current = current.number if current else 0

  def __enter__(self) -> DeviceIndex:
    return self

  def __exit__(self, *unused_exception) -> None:
    self.close()

  def close(self) -> None:
    """Frees the devices' memory; a later search takes it again."""
    self.residency.free()

  @property
  def needs_strict_order(self) -> bool:
    """See `SearchBackend`: on several processes a search is a collective program.

    Within one, threads may search while they dispatch programs of `Partitioner.partition`.
    """
    return self.device_search.spans_processes

  @property
  def _leads(self) -> bool:
    return self._lead is None or self._lead.leads

  def search(
    self,
    query_embeddings: np.ndarray,
    k: int,
    *,
    return_embeddings: bool = False,
    generation: int | None = None,
    index_id: str = '',
  ) -> SearchResult:
    """The k passages of largest inner product for each query.

    Of many that tie for the last places, those that come first in the index are taken. An older
    generation is put on the devices for this search and those that follow.
    """
    if index_id and index_id != self._index.index_id:
      raise IndexSwappedError.of(
        'this program', self._store.directory, self._index.index_id, index_id
      )
    queries = np.ascontiguousarray(query_embeddings, np.float32)
    if self._lead is None:
      checks.check_queries(queries, k)
    else:
      generation = self._prepare_together(self._lead, queries, k, generation)
    padded = view.pad_batch(queries)
    live = self._live(generation)
    started = self.residency.start(live, padded, k, self._approximate)
    if self._approximate and not started.is_full(k):
      # Few live rows, several of them in one bin of the approximation.
      started = self.residency.start(live, padded, k, False)
    return started.result(len(queries), k, return_embeddings)

  def _live(self, number: int | None) -> LiveView:
    """A generation by its number, or the current one."""
    while True:
      wanted = number or self._current
      try:
        return self._index.view(wanted)
      except LookupError:
        if wanted != self._current and not number:
          continue  # removed since it was the current one
        raise

  def _prepare_together(
    self, lead: Lead, queries: np.ndarray, k: int, generation: int | None
  ) -> int:
    """The generation to search, the first process's; fails unless all can search it."""
    with lead.agreement.together():
      wanted = lead.follow(State(generation or self._current, self._index.edits))
      checks.check_queries(queries, k)
      if self._index.edits != wanted.edits:
        self._index.reload()
      if self._index.edits != wanted.edits:
        raise RuntimeError(
          f'the first process has seen edit {wanted.edits} of {self._store.directory} and process '
          f'{jax.process_index()} edit {self._index.edits}: let the first process alone edit it, '
          'or reload it on all'
        )
      if generation is None:
        self._current = wanted.generation
      searched = self.residency.put(self._index.view(wanted.generation))
    searched.check(queries, k)  # fails on all alike, and may be tried again
    return wanted.generation

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
    """Writes a generation, which is searched from then on.

    The FAISS index of `options` is for the retrieval process, which can serve the folder; this
    class has no use for it. A flat one is held in memory while it is written ('pq' takes less than
    a twentieth). The first process alone builds and edits, or RuntimeError.
    """
    self._check_leads('build')
    built = self._builder.build(
      chunks,
      dim,
      options or IndexOptions(),
      metadata,
      build_id=build_id or '',
      edits_applied=edits_applied,
      forget_edits=forget_edits,
    )
    self._turn()
    return built.number

  def compact(self) -> int:
    """Writes a generation with the edits folded in; returns its number."""
    self._check_leads('compact')
    built = self._builder.compact()
    self._turn()
    return built.number

  def reload(self) -> int:
    """Turns to what the folder holds now, edits of other programs included."""
    self._index.reload()
    return self._turn()

  def _turn(self) -> int:
    """Searches the folder's generation, put on the devices first if it can be."""
    with self._turning:
      live = self._index.current
      if live is None:
        return 0
      in_use = self._current in self.residency.numbers
      if in_use and self.residency.room(live) > 1:
        self.residency.put(live)  # the former one is searched meanwhile
      self._current = live.number
      return live.number

  def missing(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
    """Those of `ids`, [n] int64, that the current generation has not."""
    return self._index.missing(np.asarray(ids, np.int64))

  def _edit(
    self, wanted: WantedEdit, *, only_new_ids: bool = False, delete_absent: bool = False
  ) -> EditResult:
    self._check_leads('edit')
    return self._index.edit(wanted, only_new_ids=only_new_ids, delete_absent=delete_absent)

  def status(self) -> ServerStatus:
    """What is searched; `dim` and the like are empty where nothing is."""
    live = self._live(None) if self._current else None
    return self._index.status(live, building=self._builder.building)

  def pin(self, owner: str, generations: Sequence[int]) -> None:
    """Says which generations `owner` needs from now on; [] for none."""
    if self._leads:
      self._index.check_folder()
      self._store.pin(owner, generations)

  def wait_until_ready(self, timeout_s: float = 60.0) -> ServerStatus:
    """The status; there is nothing to wait for."""
    del timeout_s
    return self.status()

  def _check_leads(self, what: str) -> None:
    if not self._leads:
      raise RuntimeError(
        f'{what}: the first process alone writes {self._store.directory}; the others follow it'
      )
