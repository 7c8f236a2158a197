"""What tells one index from all others: INDEX/INDEX_ID.

32 hexadecimal digits that lie in the folder, so that they outlast restarts and are the same in a
copy. Generation numbers alone are not enough: every index begins with 1.

Copies are one index only if the file exists before they are made: where an
index is copied to several hosts that each serve their own, start a process
(or open the folder) once with write access first, or each copy makes up an id.
"""

from __future__ import annotations

from collections.abc import Iterable
import contextlib
import logging
import os
import re
import uuid

from retrieval_service import files, manifest

logger = logging.getLogger(__name__)

_FILE = 'INDEX_ID'
_ID = re.compile(r'[0-9a-f]{32}')


def read(directory: str) -> str:
  """The id of an index folder; '' where it has none yet, ValueError where damaged."""
  path = os.path.join(directory, _FILE)
  try:
    with open(path, encoding='utf-8', errors='replace') as file:
      text = file.read()
  except (FileNotFoundError, NotADirectoryError):
    return ''
  if not _ID.fullmatch(text.strip()):
    raise ValueError(
      f'{path} is damaged: expected 32 hexadecimal digits, found {text[:60]!r}. Restore it from a '
      'copy of the index, or remove it for the index to be known by another id'
    )
  return text.strip()


def ensure(directory: str, wanted: str = '') -> str:
  """The id of a folder, or `wanted`, or a new one; the caller holds its lock."""
  found = read(directory)
  if not found:
    found = wanted or uuid.uuid4().hex
    files.write_text(os.path.join(directory, _FILE), found + '\n')
  return found


def derive(folders: Iterable[str]) -> str:
  """A substitute where none can be written, of the generations' folders, oldest first; or ''."""
  for folder in folders:
    if found := fingerprint(folder):
      directory = os.path.dirname(os.path.abspath(folder))
      logger.warning(
        f'{directory} has no {_FILE} and none can be written: it goes by the id {found}, made of '
        'its oldest generation, which changes once somebody publishes there. Start the process '
        'once with write access to the folder'
      )
      return found
  return ''


def fingerprint(folder: str) -> str:
  """Of a generation's manifest; '' where there is none."""
  path = os.path.join(folder, manifest.MANIFEST)
  with contextlib.suppress(OSError), open(path, 'rb') as file:
    return files.digest(file.read()).hexdigest()
  return ''
