"""The log of live edits, INDEX/edits.log: what makes them durable.

One line that names the format, then a record for each edit, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import errno
import io
import logging
import mmap
import os
from typing import Any, BinaryIO

import numpy as np

from retrieval_service import edits, files
from retrieval_service.edits import Edit, Record

logger = logging.getLogger(__name__)

LOG = 'edits.log'
_FORMAT = b'ralm-edits 1\n'
# Below so many bytes a log is not worth rewriting.
_REWRITE_BYTES = 4 << 20
# So many last edits are recognised when a client repeats them.
_RECENT = 1024


@dataclasses.dataclass(frozen=True)
class LastEdits:
  """The edit that last concerned each id, and the size of the vector put (0: deleted)."""

  ids: np.ndarray
  sequences: np.ndarray
  dims: np.ndarray


class EditLog:
  """The log of one index folder, and what it comes to for each id.

  Several processes may append, each with the folder's lock held, and having caught up with the
  others before. Not to be shared among threads unguarded.
  """

  def __init__(self, directory: str, *, floor: int = 0):
    """Reads the log, as far as it is whole; a damaged one is a ValueError.

    New edits get larger numbers than `floor`, which generations know of though the log may be gone.
    """
    self.path = os.path.join(directory, LOG)  #: made by the first edit
    self._floor = floor
    self._opened: BinaryIO | None = None
    self._forget()
    self.catch_up()

  @property
  def last(self) -> int:
    """The last edit's sequence number; 0 where there never was one."""
    return max(self._last, self._floor)

  @property
  def _file(self) -> BinaryIO:
    """The log, which has edits."""
    assert self._opened is not None
    return self._opened

  def _forget(self) -> None:
    self._end = self._count = self._last = self._needed_bytes = 0
    self._seen = (0, 0)  # inode and size
    self._rewrite_at = _REWRITE_BYTES
    self.next_id = 0  #: one past the largest id in it
    self.metadata: dict[str, tuple[int, Any]] = {}  #: the edit that set a key last, and its value
    # id -> sequence, where its vector lies (0: deleted), dimension.
    self._operations: dict[int, tuple[int, int, int]] = {}
    self._recent: dict[str, Edit] = {}

  def catch_up(self, *, repair: bool = False) -> list[Edit] | None:
    """The edits appended since, None where all had to be read again; ValueError if damaged.

    Only with the lock held can it `repair`, cut off an incomplete last record: else that might be
    one that is being written.
    """
    try:
      status = os.stat(self.path)
    except FileNotFoundError:
      if self._opened is None:
        return []
      raise ValueError(
        f'{self.path} was removed while in use: put it back, or '
        'start the process again to go on without'
      ) from None
    anew = (
      self._opened is None
      or status.st_size < self._end
      or os.fstat(self._opened.fileno()).st_ino != status.st_ino
    )
    if anew:
      self._open()
    new = []
    found = os.fstat(self._file.fileno())
    size = found.st_size
    while (record := self._read(self._end, size)) is not None:
      self._take(record)
      if not anew:
        new.append(record.edit)
    if repair and self._end < size:
      logger.warning(
        f'{self.path} ends in an edit that was never completed, and so never acknowledged: its '
        f'{size - self._end} bytes are cut off'
      )
      os.truncate(self.path, self._end)
    self._seen = (found.st_ino, size)
    return None if anew else new

  def has_more(self) -> bool:
    """Whether the file is not what was last read of it; cheap, for any thread."""
    try:
      status = os.stat(self.path)
    except FileNotFoundError:
      return False
    return (status.st_ino, status.st_size) != self._seen

  def find(self, edit_id: str) -> Edit | None:
    """A recent edit by the name its maker gave it; without its vectors."""
    return self._recent.get(edit_id) if edit_id else None

  def last_edits(self) -> LastEdits:
    """What holds for each id."""
    ids = np.fromiter(self._operations, np.int64, len(self._operations))
    fields = np.array(list(self._operations.values()), np.int64).reshape(-1, 3)
    return LastEdits(ids, fields[:, 0], fields[:, 2])

  def vectors(self, ids: np.ndarray, dim: int) -> np.ndarray:
    """The vectors last put under ids: [n, dim] float32, of float16 values."""
    found = np.empty((len(ids), dim), np.float32)
    if len(ids):
      with mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        for row, passage in enumerate(ids.tolist()):
          found[row] = np.frombuffer(mapped, '<f2', dim, self._operations[passage][1])
    return found

  def append(self, edit: Edit) -> Edit:
    """Writes an edit, numbers it and waits for the disk; all of it is there or none (OSError).

    The caller holds the folder's lock and has caught up.
    """
    edit = dataclasses.replace(edit, sequence=self.last + 1)
    try:
      if self._opened is None:
        self._write_anew([])
      with open(self.path, 'r+b', buffering=0) as file:
        try:
          file.seek(self._end)
          _write(file, edits.write_record(edit))
          os.fsync(file.fileno())
        except OSError:
          with contextlib.suppress(OSError):
            file.truncate(self._end)
            os.fsync(file.fileno())
          raise
    except OSError as error:
      reason = 'no space left' if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
      raise OSError(
        error.errno,
        f'{reason} for an edit of {len(edit.embeddings)} vectors in {self.path}. Nothing of it '
        'holds, former edits do: free space and edit again',
      ) from error
    self._take(self._whole_record(self._end, os.path.getsize(self.path)))
    self._seen = (self._seen[0], self._end)
    return edit

  def tidy(self) -> bool:
    """Rewrites the log where later edits made most of it void; whether it did.

    What every id last underwent stays, and the last edits whole; so the log grows with the number
    of ids edited, not of edits. The caller holds the folder's lock and has caught up.
    """
    if self._end < self._rewrite_at or 2 * self._needed_bytes > self._end:
      return False
    try:
      self._write_anew(self._still_needed())
    except OSError as error:
      logger.warning('%s cannot be made smaller: %s', self.path, error)
      self._rewrite_at = 2 * self._end
      return False
    self.catch_up()
    self._rewrite_at = max(_REWRITE_BYTES, 2 * self._end)
    return True

  def _still_needed(self) -> Iterator[Edit]:
    """The log's edits, without what later ones made void."""
    position = len(_FORMAT)
    for number in range(self._count):
      record = self._whole_record(position, self._end)
      position, edit = record.end, record.edit
      if number < self._count - _RECENT:
        put, deleted = (
          np.array([self._operations[i][0] == edit.sequence for i in ids.tolist()], np.bool_)
          for ids in (edit.ids, edit.delete_ids)
        )
        last_set = [key for key in edit.metadata if self.metadata[key][0] == edit.sequence]
        edit = dataclasses.replace(
          edit,
          ids=edit.ids[put],
          embeddings=edit.embeddings[put],
          delete_ids=edit.delete_ids[deleted],
          metadata={key: edit.metadata[key] for key in last_set},
        )
        if not (len(edit.ids) or len(edit.delete_ids) or edit.metadata):
          continue
      yield edit

  def _write_anew(self, needed: Iterable[Edit]) -> None:
    """Replaces the file in one step."""
    with files.replacing(self.path) as file:
      file.write(_FORMAT)
      for edit in needed:
        file.write(edits.write_record(edit))
    if self._opened is None:
      self._open()

  def _open(self) -> None:
    if self._opened is not None:
      self._opened.close()
    self._opened = open(self.path, 'rb')
    self._forget()
    found = self._opened.read(len(_FORMAT))
    if found != _FORMAT:
      raise ValueError(
        f'{self.path} is no log of edits this program reads: it '
        f'begins with {found!r}, expected {_FORMAT!r}'
      )
    self._end = len(_FORMAT)

  def _read(self, position: int, size: int) -> Record | None:
    """As `edits.read_record`, with an error that tells what to do."""
    try:
      record = edits.read_record(self._file, position, size)
      if record and position >= self._end and record.edit.sequence <= self._last:
        raise ValueError(f'edit {record.edit.sequence} comes after edit {self._last}')
    except ValueError as error:
      raise ValueError(
        f'{self.path} is damaged at byte {position}: {error}. Restore the file from a copy; to go '
        f'on without that edit and all later ones: truncate -s {position} {self.path}'
      ) from error
    return record

  def _whole_record(self, position: int, size: int) -> Record:
    """A record that was written or read before."""
    record = self._read(position, size)
    if record is None:
      raise ValueError(f'{self.path} was cut off at byte {position} while in use')
    return record

  def _take(self, record: Record) -> None:
    edit = record.edit
    self._end = record.end
    self._count += 1
    self._last = edit.sequence
    for key, value in edit.metadata.items():
      self.metadata[key] = (edit.sequence, value)
    for passage in edit.delete_ids.tolist():
      self._set(passage, (edit.sequence, 0, 0))
    for row, passage in enumerate(edit.ids.tolist()):
      self._set(passage, (edit.sequence, record.vectors_at + 2 * edit.dim * row, edit.dim))
    for ids in (edit.ids, edit.delete_ids):
      if len(ids):
        self.next_id = max(self.next_id, int(ids.max()) + 1)
    if edit.edit_id:
      vectors, deleted = edit.embeddings[:0].copy(), edit.delete_ids[:0].copy()
      self._recent[edit.edit_id] = dataclasses.replace(
        edit, embeddings=vectors, ids=edit.ids.copy(), delete_ids=deleted
      )
      if len(self._recent) > _RECENT:
        del self._recent[next(iter(self._recent))]

  def _set(self, passage: int, operation: tuple[int, int, int]) -> None:
    former = self._operations.get(passage)
    if former is not None:
      self._needed_bytes -= 8 + 2 * former[2]
    self._needed_bytes += 8 + 2 * operation[2]
    self._operations[passage] = operation


def _write(file: io.FileIO, data: bytes) -> None:
  """Writes all of it; an unbuffered file may take a part at a time."""
  rest = memoryview(data)
  while len(rest):
    rest = rest[file.write(rest) :]
