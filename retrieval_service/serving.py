"""Which index a process serves, and how another takes its place."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
import weakref

from retrieval_service import index_id
from retrieval_service.files import PathLike
from retrieval_service.generations import GenerationStore
from retrieval_service.index_builder import IndexBuilder
from retrieval_service.live_index import LiveIndex
from retrieval_service.options import ServingOptions
from retrieval_service.results import IndexSwappedError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Served:
  """An index in use, and what builds its new generations."""

  index: LiveIndex
  builder: IndexBuilder

  @property
  def directory(self) -> str:
    return self.index.store.directory


@dataclasses.dataclass(frozen=True)
class Swapped:
  """What was served, and what is served since."""

  former: Served
  served: Served


class Serving:
  """The served index; may be shared among threads.

  A call takes it once and stays with it: one that a swap comes between ends on the index that it
  began with, which is closed after the last of them. A build that is under way is published in its
  own folder, and served if that is what is served by then.
  """

  def __init__(self, directory: PathLike, options: ServingOptions):
    """Opens an index folder, which may be empty; a damaged one is a ValueError."""
    self._options = options
    self._swapping = threading.Lock()
    # By real path, what is served and what calls still hold: an index that is
    # swapped back to while it is built is the one that the build turns.
    self._in_use: weakref.WeakValueDictionary[str, Served] = weakref.WeakValueDictionary()
    # Read once a call; replaced whole.
    self._served = self._open(directory)

  def _open(self, directory: PathLike) -> Served:
    names = ('verify_checksums', 'nprobe', 'rerank', 'threads')
    options = {name: getattr(self._options, name) for name in names}
    index = LiveIndex(GenerationStore(directory), **options)
    served = Served(index, IndexBuilder(index, keep_generations=self._options.keep_generations))
    self._in_use[os.path.realpath(directory)] = served
    return served

  def served(self, index_id: str = '') -> Served:
    """What is served now; IndexSwappedError unless it is the index named, if any."""
    served = self._served
    if index_id and served.index.index_id != index_id:
      raise IndexSwappedError.of('the process', served.directory, served.index.index_id, index_id)
    return served

  def swap(self, directory: str) -> Swapped:
    """Serves another index folder, once it is open and found whole; reloads the served one.

    Raises:
      ValueError: there is no index, or it is damaged, of another dimension, or a copy of the served
        one; or the path is relative. What was served goes on being served.
    """
    if not os.path.isabs(directory):
      raise ValueError(
        f'the index folder to serve must be an absolute path, found {directory!r}: the retrieval '
        'process may have been started elsewhere, so write the whole path, as it is on its machine'
      )
    with self._swapping:
      former = self._served
      found = index_id.read(directory)
      if _is_at(former, directory) and found in ('', former.index.index_id):
        former.index.reload()
        return Swapped(former, former)
      # Nothing may be tidied up in a folder that is no index.
      if not os.path.exists(os.path.join(directory, 'CURRENT')):
        raise ValueError(
          f"{directory} holds no index on the retrieval process's machine; {former.directory} goes "
          'on being served'
        )
      served = self._in_use.get(os.path.realpath(directory))
      if served is not None and served.index.index_id == found and _is_at(served, directory):
        served.index.reload()
      else:
        served = self._open(directory)
      self._check(former.index, served.index)
      self._served = served
    logger.info('serving %s in place of %s', served.directory, former.directory)
    return Swapped(former, served)

  def _check(self, former: LiveIndex, index: LiveIndex) -> None:
    """Raises ValueError unless one index may take the other's place."""
    directory = index.store.directory
    dims = [one.current.dim for one in (former, index) if one.current]
    if len(set(dims)) > 1:
      raise ValueError(
        f'{directory} holds vectors of dimension {dims[1]}, and {former.store.directory}, which is '
        f'served, of dimension {dims[0]}: another encoder made them, and searches would fail. '
        'Start a process of its own for it'
      )
    if former.index_id == index.index_id:
      raise ValueError(
        f'{directory} is a copy of {former.store.directory}, which is served '
        f'(id {index.index_id}): nobody could tell their answers apart. If '
        'they differ, remove INDEX_ID from the copy, which gets another'
      )


def _is_at(served: Served, directory: str) -> bool:
  """Whether a path leads to the folder; links may have been turned since."""
  return os.path.realpath(served.directory) == os.path.realpath(directory)
