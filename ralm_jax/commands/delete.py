"""Delete: take passages out of a served index, by id."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ralm_jax.commands import add
from ralm_jax.runs import live_edits


def read_ids(path: str) -> list[str]:
  """Ids of a file, one a line; blank lines are none.

  Raises:
    ValueError: the file holds none, or is not UTF-8.
  """
  try:
    with open(path, encoding='utf-8-sig') as file:
      ids = [line.rstrip('\r\n') for line in file if line.strip()]
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8: {error}') from error
  if not ids:
    raise ValueError(f'{path}: holds no ids; expected one a line')
  return ids


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Deletes from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  parser.add_argument(
    '--id', action='append', default=[], metavar='ID', help='of a passage; may be repeated'
  )
  parser.add_argument('--input', metavar='FILE', help='a file of ids, one a line')
  add.add_index_flags(parser)
  arguments = parser.parse_args(argv)
  if not arguments.id and not arguments.input:
    parser.error('give --id or --input')
  ids = arguments.id + (read_ids(arguments.input) if arguments.input else [])
  ids = list(dict.fromkeys(ids))
  edited = live_edits.delete(ids, **add.index_options(arguments))
  add.report(arguments, len(ids), 'deleted', edited)
