"""An index folder in use: searched, edited and swapped at the same time.

Free of gRPC: the retrieval process serves one, an index on other devices holds one.
"""

from __future__ import annotations

import collections
import concurrent.futures
import logging
import threading

import numpy as np

from retrieval_service import edits, index_id
from retrieval_service.edits import Edit, WantedEdit
from retrieval_service.generations import GenerationStore
from retrieval_service.live import LiveGeneration, LiveView
from retrieval_service.results import EditResult, ServerStatus

logger = logging.getLogger(__name__)

# Scanning so many takes a search longer than most indexes do.
_MANY = 16384
# Older generations that stay open for searches by number.
_OLDER_OPEN = 2


class EmptyIndexError(RuntimeError):
  """Nothing has been built yet."""


class LiveIndex:
  """The current generation and some older ones, each with its edits.

  May be shared among threads. Searches take a view, which never changes, and
  wait for nobody; edits wait for each other. Another process's edits are seen
  by the searches that start after them, its generations after `reload`.

      index = LiveIndex(GenerationStore(directory))
      result = index.view().search(queries, k)
  """

  def __init__(self, store: GenerationStore, *, verify_checksums: bool = True, **open_options):
    """Opens the current generation, if any, with options of `Generation`; ValueError if damaged."""
    self.store = store
    self._verify_checksums = verify_checksums
    self._open_options = open_options
    self._swap_lock = threading.Lock()
    # Held while the log or any view moves on. The next one is taken within it.
    self._edit_lock = threading.RLock()
    self._older_lock = threading.Lock()
    self._older: collections.OrderedDict[int, LiveGeneration] = collections.OrderedDict()
    self._opening: dict[int, concurrent.futures.Future[LiveGeneration]] = {}
    # Read once a search; replaced whole.
    self._current: LiveGeneration | None = None
    self._next_id = 0
    self._index_id = store.index_id()
    # An id that could not be written is no file's; another program's may come.
    self._id_is_made_up = not index_id.read(store.directory)
    self._fingerprint = ''
    with store.lock_if_possible():
      self._log = store.edit_log()
    self.reload()

  @property
  def index_id(self) -> str:
    """See `GenerationStore.index_id`; the same for as long as this lives."""
    if not self._index_id:  # there was no folder yet
      self._index_id = self.store.index_id()
    return self._index_id

  @property
  def current(self) -> LiveView | None:
    """What is served now; None: the index is empty."""
    current = self._current
    return current.view if current else None

  @property
  def edits(self) -> int:
    """The sequence number of the last edit that searches see."""
    current = self._current
    return current.view.edits if current else self._log.last

  @property
  def next_id(self) -> int:
    """One past the largest id there ever was."""
    return max(self._log.next_id, self._next_id)

  def view(self, number: int = 0) -> LiveView:
    """What to search: the current generation, or an older one by its number.

    Raises:
      EmptyIndexError: there is none yet.
      LookupError: that generation is no longer on disk.
      ValueError: it is damaged, or the folder holds another index now.
    """
    if self._log.has_more():  # another process has edited the same folder
      with self._edit_lock:
        # Not those of an index that was built anew in the same place.
        if self._holds_ours():
          self._follow(repair=False)
    if number == 0:
      return self._present().view
    current = self._current
    if current is not None and current.generation.number == number:
      return current.view
    with self._older_lock:
      older = self._older.get(number)
      if older is not None:
        self._older.move_to_end(number)
        return older.view
      opening = self._opening.get(number)
      future = opening or self._opening.setdefault(number, concurrent.futures.Future())
    if opening is None:
      self._open_older(number, future)
    return future.result().view

  def _present(self) -> LiveGeneration:
    """The current generation, or EmptyIndexError."""
    current = self._current
    if current is None:
      raise EmptyIndexError(
        f'the index in {self.store.directory} is empty: '
        'build it first, or reload once it is written'
      )
    return current

  def _open_older(self, number: int, future: concurrent.futures.Future[LiveGeneration]) -> None:
    """Opens a generation for all who asked for it, and nobody else waits."""
    try:
      self.check_folder()
      generation = self.store.open(
        number, verify_checksums=self._verify_checksums, **self._open_options
      )
      with self._edit_lock:  # no edit comes between the log's end and its place
        older = LiveGeneration(generation, self._log)
        with self._older_lock:
          self._remember(older)
          del self._opening[number]
    except BaseException as error:
      with self._older_lock:
        self._opening.pop(number, None)
      future.set_exception(error)
    else:
      future.set_result(older)

  def _remember(self, older: LiveGeneration) -> None:
    """Keeps an older generation open; the caller holds its lock."""
    self._older[older.generation.number] = older
    self._older.move_to_end(older.generation.number)
    while len(self._older) > _OLDER_OPEN:
      self._older.popitem(last=False)

  def status(self, view: LiveView | None, *, building: bool) -> ServerStatus:
    """What is to be said of the index while `view` of it is served."""
    manifest = view.generation.manifest if view else None
    return ServerStatus(
      generation=view.number if view else 0,
      count=view.count if view else 0,
      dim=view.dim if view else 0,
      options=manifest.options if manifest else None,
      factory=manifest.factory if manifest else '',
      metadata=dict(view.metadata) if view else {},
      generations=tuple(self.store.numbers()),
      building=building,
      index_directory=self.store.directory,
      edits=self.edits,
      next_id=self.next_id,
      index_id=self.index_id,
    )

  def reload(self, *, verify_checksums: bool | None = None) -> LiveView | None:
    """Turns to what the folder holds now; ValueError if damaged or another index: no change."""
    if verify_checksums is None:
      verify_checksums = self._verify_checksums
    with self._swap_lock:
      with self._edit_lock, self.store.lock_if_possible() as locked:
        self.check_folder()
        self._follow(repair=locked)
      number = self.store.current()
      former = self._current
      if number is None or (former is not None and former.generation.number == number):
        return self.current
      generation = self.store.open(number, verify_checksums=verify_checksums, **self._open_options)
      next_id = max(generation.next_id, self.store.next_id())
      with self._edit_lock:
        current = LiveGeneration(generation, self._log)
        self._next_id = max(self._next_id, next_id)
        with self._older_lock:
          if former is not None:  # for those who still name it
            self._remember(former)
        self._current = current
        self._fingerprint = index_id.fingerprint(self.store.folder(number))
        with self._older_lock:
          self._older.pop(number, None)
      logger.info('serving generation %d, %d vectors', number, current.view.count)
      return current.view

  def check_folder(self) -> None:
    """Raises ValueError where another index has taken this one's place."""
    if not self._holds_ours():
      raise ValueError(
        f'{self.store.directory} holds another index now (id '
        f'{index_id.read(self.store.directory)}) than the one in use (id {self.index_id}); swap to '
        'it (ralm swap) or start the process again'
      )

  def keep_id(self) -> None:
    """`check_folder`, and puts a lost id back; the caller holds the lock."""
    self.check_folder()
    if self._index_id:
      self.store.ensure_index_id(self._index_id)

  def _holds_ours(self) -> bool:
    """Whether the folder's id is ours, as far as it has one."""
    found = index_id.read(self.store.directory)
    if not found or found == self.index_id:
      return True
    current = self._current
    if not self._id_is_made_up or current is None:
      return False
    # Somebody with write access gave it its own: the same index, if what is
    # served still lies there.
    folder = self.store.folder(current.generation.number)
    return index_id.fingerprint(folder) in ('', self._fingerprint)

  def missing(self, ids: np.ndarray) -> np.ndarray:
    """Those of `ids` that no search of the current generation can find."""
    self.view()
    with self._edit_lock:
      return self._present().missing(np.asarray(ids, np.int64))

  def edit(
    self, wanted: WantedEdit, *, only_new_ids: bool = False, delete_absent: bool = False
  ) -> EditResult:
    """Puts and deletes vectors; see `SearchBackend.edit`, also for errors.

    What was done already, by its `edit_id`, is answered only. With `only_new_ids` putting what
    exists is a ValueError, as is a folder that holds another index now.
    """
    with self._edit_lock, self.store.lock():
      self.keep_id()
      self._follow(repair=True)
      done = self._log.find(wanted.edit_id)
      absent = np.zeros(0, np.int64)
      if done is None:
        former = self._log.last
        edit, absent = self._checked(wanted, only_new_ids, delete_absent)
        done = self._log.append(edit)
        self._advance(former, [done])
        if self._log.tidy():
          logger.info('the log of edits was rewritten without void ones')
      view = self.view()
    above = len(view.overlay.ids)
    if above >= _MANY > above - len(done.ids):
      logger.warning(
        f'{above} vectors lie on top of generation {view.number}, and every search scans them: '
        'compact the index'
      )
    return EditResult(view.number, done.sequence, view.count, done.ids, absent)

  def _checked(
    self, wanted: WantedEdit, only_new_ids: bool, delete_absent: bool
  ) -> tuple[Edit, np.ndarray]:
    """The edit in its final form, and what of its deletes is absent; both locks are held."""
    view = self.view()
    edit = edits.prepare_edit(wanted, view.dim, self.next_id, view.number)
    if only_new_ids:
      known = np.setdiff1d(edit.ids, self._present().missing(edit.ids))
      if len(known):
        raise ValueError(
          f'passage id {known[0]} exists already ({len(known)} '
          'such in all): give new passages new ids'
        )
    unknown = self._present().missing(edit.delete_ids)
    if len(unknown) and not delete_absent:
      raise LookupError(
        f'the index has no passage of id {unknown[0]} '
        f'({len(unknown)} such in all): nothing was deleted'
      )
    return edit, unknown

  def _follow(self, *, repair: bool) -> None:
    """Takes in other processes' edits; the caller holds the edit lock."""
    self._advance(self._log.last, self._log.catch_up(repair=repair))

  def _advance(self, former: int, new: list[Edit] | None) -> None:
    """Moves all views on from one edit by those that follow."""
    with self._older_lock:
      older = list(self._older.values())
    for live in older if self._current is None else [self._current, *older]:
      if new is None or live.view.edits != former:
        live.rebuild()  # or an earlier edit failed half-way, out of memory
      else:
        for edit in new:
          live.apply(edit)
