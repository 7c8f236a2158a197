"""Live edits, and the records that hold them in a log.

    'EDIT', crc32 of the length (uint32), length of the body (uint64)
    body: length of its JSON (uint32), the JSON, deleted ids int64, ids int64,
          vectors float16
    blake2b checksum of the body (16 bytes)

All little-endian. The checksum stands last, so that a record cut short by a
crash has none, and is told from one that was damaged later.
"""

import dataclasses
import hashlib
import json
import os
import struct
from typing import Any, BinaryIO
import zlib

import numpy as np

_MAGIC = b'EDIT'
_HEAD = struct.Struct('<4sIQ')
_JSON_LENGTH = struct.Struct('<I')
_CHECKSUM_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Edit:
  """Vectors put and deleted by id, all of them or none.

  Attributes:
    ids: [rows] int64, each put in place of what the id had; None: not yet
      known, the ids that follow on.
    embeddings: [rows, dim] float16.
    delete_ids: [deletes] int64.
    metadata: JSON to merge over that of the index.
    edit_id: What its maker called it; a repeat is recognised by it.
    generation: Which one was served when it was made.
    sequence: Its number in the log, rising; 0: not yet there.
  """

  ids: np.ndarray | None
  embeddings: np.ndarray
  delete_ids: np.ndarray
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  edit_id: str = ''
  generation: int = 0
  sequence: int = 0

  @property
  def dim(self) -> int:
    return self.embeddings.shape[1]


def prepare_edit(edit: Edit, dim: int, next_id: int) -> Edit:
  """Checks an edit on its own and puts it in its final form.

  Args:
    edit: What was asked for: floating vectors of any type, deletes in any
      order.
    dim: Of the index.
    next_id: Where ids begin that were left open.

  Raises:
    ValueError: What is wrong with it.
  """
  rows = len(edit.embeddings)
  if edit.embeddings.ndim != 2 or (rows and edit.dim != dim):
    raise ValueError(
      f'the vectors have dimension {edit.embeddings.shape[-1]} and the index has dimension {dim}'
    )
  ids = np.arange(next_id, next_id + rows) if edit.ids is None else (np.asarray(edit.ids, np.int64))
  if ids.shape != (rows,):
    raise ValueError(f'{rows} embeddings came with ids of shape {list(ids.shape)}')
  delete_ids = np.unique(np.asarray(edit.delete_ids, np.int64))
  if not (rows or len(delete_ids) or edit.metadata):
    raise ValueError('no vectors to put or delete')
  if rows and ids.min() < 0:
    raise ValueError(f'passage ids must not be negative, found {ids.min()}')
  rising = np.sort(ids)
  repeats = rising[1:][rising[1:] == rising[:-1]]
  if len(repeats):
    raise ValueError(
      f'passage id {repeats[0]} occurs more than once ({len(repeats)} repeats in all)'
    )
  both = np.intersect1d(ids, delete_ids)
  if len(both):
    raise ValueError(f'passage id {both[0]} is both put and deleted by one edit')
  with np.errstate(over='ignore'):
    embeddings = np.ascontiguousarray(edit.embeddings, np.float16)
  bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
  if len(bad):
    raise ValueError(
      f'the embedding of passage {ids[bad[0]]} holds a value that float16 '
      'cannot: not a number, or beyond 65504; check the passage encoder'
    )
  return dataclasses.replace(edit, ids=ids, embeddings=embeddings, delete_ids=delete_ids)


@dataclasses.dataclass(frozen=True)
class Record:
  """An edit as read, the vectors' place in the file, and where it ends."""

  edit: Edit
  vectors_at: int
  end: int


def write_record(edit: Edit) -> bytes:
  """An edit as its log holds it."""
  fields = json.dumps(
    {
      'sequence': edit.sequence,
      'edit_id': edit.edit_id,
      'generation': edit.generation,
      'deletes': len(edit.delete_ids),
      'rows': len(edit.ids),
      'dim': edit.dim,
      'metadata': edit.metadata,
    }
  ).encode()
  body = b''.join(
    (
      _JSON_LENGTH.pack(len(fields)),
      fields,
      edit.delete_ids.astype('<i8').tobytes(),
      edit.ids.astype('<i8').tobytes(),
      edit.embeddings.astype('<f2').tobytes(),
    )
  )
  length = struct.pack('<Q', len(body))
  return b''.join((_MAGIC, struct.pack('<I', zlib.crc32(length)), length, body, _checksum(body)))


def read_record(file: BinaryIO, position: int, size: int) -> Record | None:
  """The record at a position; None where the log ends, maybe in mid-record.

  Args:
    file: The log, open for reading.
    position: Where a record should begin.
    size: Of the log.

  Raises:
    ValueError: What stands there was whole once and is not now.
  """
  head = _read(file, position, min(_HEAD.size, size - position))
  if len(head) < _HEAD.size:
    return None
  magic, crc, length = _HEAD.unpack(head)
  if magic != _MAGIC or crc != zlib.crc32(head[8:]):
    if not any(_read(file, position + _HEAD.size, size)):
      return None  # room that the file system made and a crash left empty
    raise ValueError('no edit begins there')
  end = position + _HEAD.size + length + _CHECKSUM_BYTES
  if end > size:
    return None
  body = _read(file, position + _HEAD.size, length)
  checksum = _read(file, end - _CHECKSUM_BYTES, _CHECKSUM_BYTES)
  if _checksum(body) != checksum:
    if end == size and not any(checksum):
      return None
    raise ValueError('its checksum is another')
  edit, vectors_at = _decode(body)
  return Record(edit, position + _HEAD.size + vectors_at, end)


def _decode(body: bytes) -> tuple[Edit, int]:
  """An edit, and where in the body its vectors begin."""
  (length,) = _JSON_LENGTH.unpack_from(body)
  at = _JSON_LENGTH.size + length
  fields = json.loads(body[_JSON_LENGTH.size : at])
  deletes, rows, dim = fields['deletes'], fields['rows'], fields['dim']
  delete_ids = np.frombuffer(body, '<i8', deletes, at)
  ids = np.frombuffer(body, '<i8', rows, at + 8 * deletes)
  at += 8 * (deletes + rows)
  embeddings = np.frombuffer(body, '<f2', rows * dim, at).reshape(rows, dim)
  return Edit(
    ids,
    embeddings,
    delete_ids,
    fields['metadata'],
    fields['edit_id'],
    fields['generation'],
    fields['sequence'],
  ), at


def _read(file: BinaryIO, position: int, length: int) -> bytes:
  """Past any buffer, which would keep what others have cut off since."""
  parts = []
  while length and (part := os.pread(file.fileno(), length, position)):
    parts.append(part)
    position += len(part)
    length -= len(part)
  return b''.join(parts)


def _checksum(body: bytes) -> bytes:
  return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
