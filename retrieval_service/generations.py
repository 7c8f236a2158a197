"""Versions of an index on disk.

    INDEX/CURRENT                       the name of the generation to serve
    INDEX/INDEX_ID                      tells the index from others: see index_id.py
    INDEX/generation-00000001/          manifest.json, index.faiss,
                                        embeddings.float16, ids.int64
    INDEX/edits.log                     live edits: see edits.py
    INDEX/pins/<owner>.json             generations that someone still needs

A generation's number is never used twice. `ids.int64` is left out when row i has id i.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile

from retrieval_service import files, index_id, manifest
from retrieval_service.edit_log import EditLog
from retrieval_service.files import PathLike
from retrieval_service.generation import Generation
from retrieval_service.live import LiveGeneration, LiveView
from retrieval_service.manifest import Manifest

logger = logging.getLogger(__name__)

_CURRENT = 'CURRENT'
_PINS = 'pins'
_LOCK = '.lock'
_NAME = re.compile(r'generation-(\d{8,})')


def generation_name(number: int) -> str:
  return f'generation-{number:08d}'


class GenerationStore:
  """The generations of one index folder.

  Several processes may use one folder: writers take turns by a lock file, readers need none. What a
  killed process left half-written is removed when a store is opened.
  """

  def __init__(self, directory: PathLike):
    """Opens a folder; one that does not exist is an empty index."""
    self.directory = os.path.abspath(os.fspath(directory))
    if os.path.exists(self.directory) and not os.path.isdir(self.directory):
      raise NotADirectoryError(f'{self.directory} is a file; an index is a folder')
    try:
      self._recover()
    except OSError as error:
      logger.warning('%s cannot be tidied up (%s); going on reading it', self.directory, error)

  def index_id(self) -> str:
    """Tells the index from all others, its copies excepted; '' for a folder that has none yet.

    A copy that goes its own way, with edits or generations that the original does not get, should
    have its file INDEX_ID removed: it is given another.
    """
    found = index_id.read(self.directory)
    if found or not os.path.isdir(self.directory):
      return found
    with contextlib.suppress(OSError), self.lock():
      return self.ensure_index_id()
    return index_id.derive(map(self.folder, self.numbers()))

  def ensure_index_id(self, wanted: str = '') -> str:
    """`index_id`, or `wanted`, or a new one; the caller holds the lock."""
    return index_id.ensure(self.directory, wanted)

  def numbers(self) -> list[int]:
    """Generations on disk, ascending; damaged ones among them."""
    if not os.path.isdir(self.directory):
      return []
    matches = map(_NAME.fullmatch, os.listdir(self.directory))
    return sorted(int(match[1]) for match in matches if match)

  def folder(self, number: int) -> str:
    return os.path.join(self.directory, generation_name(number))

  def manifest(self, number: int) -> Manifest:
    return Manifest.read(self.folder(number))

  def current(self) -> int | None:
    """The number of the generation to serve, None for an empty index; ValueError if damaged."""
    path = os.path.join(self.directory, _CURRENT)
    numbers = self.numbers()
    try:
      with open(path, encoding='utf-8', errors='replace') as file:
        text = file.read()
    except FileNotFoundError:
      if not numbers:
        return None
      raise ValueError(f'{path} is missing.{self._way_out()}') from None
    match = _NAME.fullmatch(text.strip())
    if not match:
      raise ValueError(
        f'{path} is damaged: expected a name like {generation_name(1)}, found '
        f'{text[:60]!r}.{self._way_out()}'
      )
    number = int(match[1])
    if not os.path.isdir(self.folder(number)):  # it may be newer than `numbers`
      raise ValueError(
        f'{path} names {generation_name(number)}, which does not exist.{self._way_out()}'
      )
    return number

  def open(self, number: int, **options) -> Generation:
    """Opens a generation with the options of `Generation`; LookupError if none, or ValueError."""
    if number not in self.numbers():
      raise self._lacks(number, '. A generation is kept while it is current, recent or pinned')
    try:
      return Generation(self.folder(number), **options)
    except (ValueError, FileNotFoundError) as error:
      raise ValueError(f'{error}.{self._way_out(but=number)}') from error

  def open_current(self, **options) -> Generation | None:
    """Opens what CURRENT names; None where the index is empty."""
    number = self.current()
    return None if number is None else self.open(number, **options)

  def open_live(self, number: int | None = None, **options) -> LiveView | None:
    """A generation, the current one by default, with all edits made so far; None if empty.

    `live_index.LiveIndex` is for those who edit, or follow edits.
    """
    number = number or self.current()
    if number is None:
      return None
    generation = self.open(number, **options)
    with self.lock_if_possible():
      return LiveGeneration(generation, self.edit_log()).view

  def edit_log(self) -> EditLog:
    """Reads the log of edits; a damaged one is a ValueError."""
    floor = max((one.edits_applied for one in self._manifests()), default=0)
    return EditLog(self.directory, floor=floor)

  def next_id(self) -> int:
    """One past the largest id that generations were recorded to have had."""
    return max((one.next_id for one in self._manifests()), default=0)

  def find_build(self, build_id: str) -> int | None:
    """The newest whole generation of that build, None where there is none."""
    for number in reversed(self._whole() if build_id else []):
      if self.manifest(number).build_id == build_id:
        return number
    return None

  def make_current(self, number: int) -> None:
    """Points CURRENT at a generation, whole as far as its sizes tell."""
    with self.lock():
      if number not in self.numbers():
        raise self._lacks(number)
      self.manifest(number).check_files(self.folder(number), checksums=False)
      self.point_at(number)

  def pin(self, owner: str, numbers: Sequence[int]) -> None:
    """Replaces the list of generations `owner` still needs; LookupError if one is not on disk."""
    path = os.path.join(self.directory, _PINS, f'{_file_name(owner)}.json')
    numbers = sorted({int(number) for number in numbers})
    if not numbers and not os.path.exists(path):
      return
    with self.lock():
      missing = sorted(set(numbers) - set(self.numbers()))
      if missing:
        raise LookupError(
          f'{self.directory} holds no generation {missing[0]} to pin; it holds {self.numbers()}'
        )
      os.makedirs(os.path.dirname(path), exist_ok=True)
      if numbers:
        files.write_text(path, json.dumps({'owner': owner, 'generations': numbers}) + '\n')
      else:
        os.remove(path)

  def pinned(self) -> dict[str, list[int]]:
    """Every owner's generations; ValueError for a damaged file, where guessing could delete."""
    pins = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(self.directory), _PINS, '*.json'))):
      try:
        with open(path, encoding='utf-8') as file:
          fields = json.load(file)
        pins[fields['owner']] = [int(n) for n in fields['generations']]
      except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
          f'{path} is damaged ({error}): delete it if its owner needs no generation any more'
        ) from error
    return pins

  def prune(self, keep: int = 2) -> list[int]:
    """Removes all but the newest so many, the current and pinned ones; says which."""
    if keep < 1:
      raise ValueError(f'keep must be at least 1, found {keep}')
    asides = []
    with self.lock():
      needed = {self.current(), *self.numbers()[-keep:]}
      needed.update(*self.pinned().values())
      removed = [n for n in self.numbers() if n not in needed]
      for number in removed:
        # Out of sight in one step: never seen half-deleted.
        aside = tempfile.mkdtemp(prefix='.tmp-removed-', dir=self.directory)
        os.rename(self.folder(number), os.path.join(aside, 'generation'))
        asides.append(aside)
    for aside in asides:  # large files: edits need not wait for it
      shutil.rmtree(aside, ignore_errors=True)
    return removed

  @contextlib.contextmanager
  def lock(self) -> Iterator[None]:
    """One process at a time changes what the folder holds."""
    os.makedirs(self.directory, exist_ok=True)
    with files.lock(os.path.join(self.directory, _LOCK)):
      yield

  @contextlib.contextmanager
  def lock_if_possible(self) -> Iterator[bool]:
    """The lock, or none in a folder that can only be read; says which."""
    with contextlib.ExitStack() as stack:
      locked = False
      with contextlib.suppress(OSError):
        stack.enter_context(self.lock())
        locked = True
      yield locked

  def point_at(self, number: int) -> None:
    """Rewrites CURRENT; the caller holds the lock."""
    files.write_text(os.path.join(self.directory, _CURRENT), generation_name(number) + '\n')

  def _recover(self) -> None:
    """Removes leftovers of dead writers; finishes a first commit cut short."""
    root = glob.escape(self.directory)
    places = ((root, '.tmp-*'), (root, _PINS, '.tmp-*'))
    leftovers = [path for place in places for path in glob.glob(os.path.join(*place))]
    unnamed = self.numbers() and not os.path.exists(os.path.join(self.directory, _CURRENT))
    if not leftovers and not unnamed:
      return
    with self.lock():
      for path in leftovers:
        if not files.is_locked(os.path.join(path, manifest.WRITER_LOCK)):
          logger.warning('removing %s, which a killed process left', path)
          if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
          else:
            os.remove(path)
      if unnamed and not os.path.exists(os.path.join(self.directory, _CURRENT)):
        good = [n for n in self._whole() if self.manifest(n).make_current]
        if good:
          logger.warning('CURRENT was never written; serving %s', generation_name(good[-1]))
          self.point_at(good[-1])

  def _manifests(self) -> Iterator[Manifest]:
    """Of all generations that have a readable one."""
    for number in self.numbers():
      with contextlib.suppress(ValueError, OSError):
        yield self.manifest(number)

  def _whole(self, but: int | None = None) -> list[int]:
    """Generations whose files have the sizes of their manifests."""
    whole = []
    for number in self.numbers():
      with contextlib.suppress(ValueError, OSError):
        self.manifest(number).check_files(self.folder(number), checksums=False)
        if number != but:
          whole.append(number)
    return whole

  def _lacks(self, number: int, advice: str = '') -> LookupError:
    held = self.numbers() or 'none'
    return LookupError(f'{self.directory} holds no generation {number}; it holds {held}{advice}')

  def _way_out(self, but: int | None = None) -> str:
    """What an error about a damaged index tells the reader to do."""
    whole = self._whole(but)
    if not whole:
      return ' No other whole generation exists: build the index again'
    name = generation_name(whole[-1])
    return (
      f' An older whole generation exists; to serve it: '
      f'echo {name} > {os.path.join(self.directory, _CURRENT)}'
    )


def _file_name(owner: str) -> str:
  """A file name for an owner; distinct owners get distinct names."""
  if not owner:
    raise ValueError('pin: the owner must have a name')
  name = re.sub(r'[^A-Za-z0-9_-]', '_', owner)[:80]
  if name != owner:
    name += '-' + hashlib.blake2b(owner.encode(), digest_size=6).hexdigest()
  return name
