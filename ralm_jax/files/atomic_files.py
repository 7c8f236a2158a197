"""Files that are either whole or not there."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets

# Unfinished files are named so, with the writer's process id and random letters
# behind: hosts, containers and threads that share a folder may share an id.
UNFINISHED = '.unfinished-'


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a path to write to, and moves it to `path` when all went well.

  The content is on disk before the name is, so that a crash leaves the old
  file or the new one. On an error nothing is left.

  Args:
    path: the file to make or replace.
  """
  path = pathlib.Path(path)
  aside = path.with_name(f'{path.name}{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}')
  try:
    yield aside
    _synchronise(aside)
    os.replace(aside, path)
    _synchronise(path.parent)
  finally:
    aside.unlink(missing_ok=True)


def write(path: str | pathlib.Path, content: bytes) -> None:
  """Writes a whole file at once."""
  with replacing(path) as aside:
    aside.write_bytes(content)


def remove_unfinished(directory: str | pathlib.Path) -> None:
  """Removes what writers that were killed left behind."""
  for path in pathlib.Path(directory).glob(f'*{UNFINISHED}*'):
    path.unlink(missing_ok=True)


def _synchronise(path: pathlib.Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
