"""Files that are either whole or not there."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import secrets
from typing import Any

PathLike = str | os.PathLike[str]

# Unfinished files are named so, with the writer's process id and random letters
# behind: hosts, containers and threads that share a folder may share an id.
UNFINISHED = '.unfinished-'


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[pathlib.Path]:
  """Yields a path to write to; `path` has all of that, on disk, when all went well, or stays."""
  path = pathlib.Path(path)
  aside = path.with_name(f'{path.name}{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}')
  try:
    yield aside
    move(aside, path)
  finally:
    aside.unlink(missing_ok=True)


def write(path: PathLike, content: bytes | str) -> None:
  """Writes a whole file at once, a text as UTF-8."""
  with replacing(path) as aside:
    aside.write_bytes(content.encode('utf-8') if isinstance(content, str) else content)


def write_json(path: PathLike, value: Any, **options: Any) -> None:
  """Writes one JSON value and a line end; `options` are those of `json.dumps`.

  Raises ValueError for NaN and infinity, which are no JSON.
  """
  write(path, json.dumps(value, allow_nan=False, **options) + '\n')


def move(source: PathLike, path: PathLike) -> None:
  """Gives a whole file its name in place of another: content first, then the name."""
  synchronise(source)
  os.replace(source, path)
  synchronise(pathlib.Path(path).parent)


def remove_unfinished(directory: PathLike) -> None:
  """Removes what writers that were killed left behind."""
  for path in pathlib.Path(directory).glob(f'*{UNFINISHED}*'):
    path.unlink(missing_ok=True)


def synchronise(path: PathLike) -> None:
  """Waits until a file's content, or the names in a folder, are on the disk."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
