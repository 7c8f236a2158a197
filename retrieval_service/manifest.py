"""A generation's manifest, and its files compared with it."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from retrieval_service import files
from retrieval_service.files import FileRecord
from retrieval_service.options import IndexOptions

FORMAT_VERSION = 1
MANIFEST = 'manifest.json'
INDEX = 'index.faiss'
EMBEDDINGS = 'embeddings.float16'
IDS = 'ids.int64'
WRITER_LOCK = 'writer.lock'


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What a generation is."""

  generation: int
  dim: int
  count: int
  options: IndexOptions
  factory: str  #: the FAISS factory string that the options came to
  fallback: bool  #: whether a flat index stands in because the corpus is tiny
  files: dict[str, FileRecord]  #: size and checksum of each file beside the manifest
  created: str  #: UTC time, ISO 8601
  metadata: dict[str, Any]  #: the builder's own JSON: corpus, fingerprint, checkpoint...
  build_id: str = ''  #: what the builder called this build; a repeat is recognised by it
  make_current: bool = True  #: whether it was built to be served at once
  #: the last edit its vectors know of: vectors put by this edit or an earlier one give way to those
  #: of the generation
  edits_applied: int = 0
  edits_forgotten: int = 0  #: this edit and earlier ones do not hold in it at all
  next_id: int = 0  #: one past the largest id of this and earlier generations; 0: not recorded
  format_version: int = FORMAT_VERSION

  def to_json(self) -> str:
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'

  @classmethod
  def read(cls, folder: str) -> Manifest:
    """Reads a folder's manifest; ValueError where it is damaged or not one of ours."""
    path = os.path.join(folder, MANIFEST)
    with open(path, encoding='utf-8') as file:
      text = file.read()
    try:
      fields = json.loads(text)
      if fields['format_version'] != FORMAT_VERSION:
        raise ValueError(
          f'format version {fields["format_version"]}, and this program reads {FORMAT_VERSION}'
        )
      fields['options'] = IndexOptions.from_dict(fields['options'])
      fields['files'] = {name: FileRecord(**record) for name, record in fields['files'].items()}
      return cls(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f'{path} is not a readable manifest ({len(text)} characters): {error}'
      ) from error

  def check_files(self, folder: str, *, checksums: bool) -> None:
    """Compares the generation's files with what is said of them, or ValueError."""
    remedy = (
      'This generation is damaged and is not served: restore the file, or build the index again'
    )
    for name, record in self.files.items():
      path = os.path.join(folder, name)
      if not os.path.exists(path):
        raise ValueError(f'{path} is missing; expected {record.bytes} bytes. {remedy}')
      found = os.path.getsize(path)
      if found != record.bytes:
        raise ValueError(f'{path} has {found} bytes; expected {record.bytes}. {remedy}')
      if checksums and (digest := files.checksum(path)) != record.checksum:
        raise ValueError(
          f'{path} has checksum {digest}; expected '
          f'{record.checksum} over {record.bytes} bytes. {remedy}'
        )
