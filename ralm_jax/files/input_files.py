"""The files that users name: paths and globs."""

from collections.abc import Iterable
import glob
import os
import pathlib

Path = str | pathlib.Path | os.PathLike


def expand_inputs(inputs: Path | Iterable[Path]) -> list[str]:
  """Files named by paths and globs, where `~` is the home folder.

  They come in the order given, a glob's sorted by name; a file that is named twice, be it by a
  link, comes once. A file whose name only looks like a glob is a file.

  Raises:
    FileNotFoundError: a glob that matches no file, or a missing file.
    ValueError: no inputs, or a folder.
  """
  named = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
  paths: dict[str, str] = {}  # By real path.
  for item in (os.path.expanduser(str(os.fspath(one))) for one in named):
    if os.path.isdir(item):
      raise ValueError(f'{item}: a folder; write {item.rstrip("/")}/*.jsonl for its files')
    if os.path.exists(item):
      matches = [item]
    elif glob.has_magic(item):
      matches = sorted(p for p in glob.glob(item, recursive=True) if not os.path.isdir(p))
      if not matches:
        raise FileNotFoundError(f'{item}: no file matches')
    else:
      raise FileNotFoundError(f'{item}: no such file')
    for path in matches:
      paths.setdefault(os.path.realpath(path), path)
  if not paths:
    raise ValueError('no file was named: give at least one path or glob')
  return list(paths.values())
