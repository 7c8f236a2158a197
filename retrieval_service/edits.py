"""Live edits, and the records that hold them in a log.

    'EDIT', crc32 of the length (uint32), length of the body (uint64)
    body: length of its JSON (uint32), the JSON, deleted ids int64, ids int64,
          vectors float16
    blake2b checksum of the body (16 bytes)

All little-endian. The checksum stands last, so that a record cut short by a
crash has none, and is told from one that was damaged later.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from typing import Any, BinaryIO
import zlib

import numpy as np

from retrieval_service import checks, files

_MAGIC = b'EDIT'
_HEAD = struct.Struct('<4sIQ')
_JSON_LENGTH = struct.Struct('<I')
_CHECKSUM_BYTES = 16


@dataclasses.dataclass(frozen=True)
class WantedEdit:
  """Vectors to put and to delete by id, all of them or none."""

  #: [rows] int64, each put in place of what the id had; None: the ids that follow on
  ids: np.ndarray | None
  embeddings: np.ndarray
  delete_ids: np.ndarray
  #: JSON to merge over that of the index
  metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
  edit_id: str = ''  #: what its maker called it; a repeat is recognised by it

  @property
  def dim(self) -> int:
    return self.embeddings.shape[1]


@dataclasses.dataclass(frozen=True)
class Edit(WantedEdit):
  """An edit in its final form: all ids known, the embeddings float16."""

  ids: np.ndarray
  generation: int = 0  #: which one was served when it was made
  sequence: int = 0  #: its number in the log, rising; 0: not yet there


def prepare_edit(wanted: WantedEdit, dim: int, next_id: int, generation: int = 0) -> Edit:
  """An edit in its final form, or ValueError; ids that were left open begin at `next_id`."""
  rows = len(wanted.embeddings)
  if wanted.embeddings.ndim != 2 or (rows and wanted.dim != dim):
    raise ValueError(
      f'the vectors have dimension {wanted.embeddings.shape[-1]} and the index has dimension {dim}'
    )
  ids = wanted.ids
  ids = checks.passage_ids(np.arange(next_id, next_id + rows) if ids is None else ids, rows)
  delete_ids = np.unique(np.asarray(wanted.delete_ids, np.int64))
  if not (rows or len(delete_ids) or wanted.metadata):
    raise ValueError('no vectors to put or delete')
  checks.check_distinct(ids)
  both = np.intersect1d(ids, delete_ids)
  if len(both):
    raise ValueError(f'passage id {both[0]} is both put and deleted by one edit')
  stored = checks.as_float16(wanted.embeddings, ids)
  return Edit(ids, stored, delete_ids, wanted.metadata, wanted.edit_id, generation)


@dataclasses.dataclass(frozen=True)
class Record:
  """An edit as read, the vectors' place in the file, and where it ends."""

  edit: Edit
  vectors_at: int
  end: int


def write_record(edit: Edit) -> bytes:
  """An edit as its log holds it."""
  values = {
    'sequence': edit.sequence,
    'edit_id': edit.edit_id,
    'generation': edit.generation,
    'deletes': len(edit.delete_ids),
    'rows': len(edit.ids),
    'dim': edit.dim,
    'metadata': edit.metadata,
  }
  fields = json.dumps(values).encode()
  arrays = ((edit.delete_ids, '<i8'), (edit.ids, '<i8'), (edit.embeddings, '<f2'))
  parts = [_JSON_LENGTH.pack(len(fields)), fields]
  body = b''.join(parts + [array.astype(kind).tobytes() for array, kind in arrays])
  length = struct.pack('<Q', len(body))
  head = _HEAD.pack(_MAGIC, zlib.crc32(length), len(body))
  return b''.join((head, body, files.digest(body).digest()))


def read_record(file: BinaryIO, position: int, size: int) -> Record | None:
  """The record at a position; None where the log ends in mid-record, ValueError if damaged."""
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
  if files.digest(body).digest() != checksum:
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
  edit = Edit(
    ids,
    np.frombuffer(body, '<f2', rows * dim, at).reshape(rows, dim),
    delete_ids,
    **{name: fields[name] for name in ('metadata', 'edit_id', 'generation', 'sequence')},
  )
  return edit, at


def _read(file: BinaryIO, position: int, length: int) -> bytes:
  """Past any buffer, which would keep what others have cut off since."""
  parts = []
  while length and (part := os.pread(file.fileno(), length, position)):
    parts.append(part)
    position += len(part)
    length -= len(part)
  return b''.join(parts)
