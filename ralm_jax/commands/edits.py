"""Add, replace and delete: edits of a served index, by passage, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import hashlib
import os
from typing import TYPE_CHECKING, Any

from ralm_jax.commands import flags
from ralm_jax.commands.flags import Parser

if TYPE_CHECKING:
  from ralm_jax.data.corpus.passages import Passage


def add(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Add: put a passage into a corpus and its index, without training."""
  parser = _put_parser(prog, add.__doc__)
  parser.add_argument(
    '--replace', action='store_true', help='passages may take the place of others of their ids'
  )
  arguments = parser.parse_args(argv)
  done = 'added or replaced' if arguments.replace else 'added'
  _put(parser, arguments, done, replace=arguments.replace)


def replace(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Replace: give passages of a corpus and its index a new text."""
  parser = _put_parser(prog, replace.__doc__)
  arguments = parser.parse_args(argv)
  if arguments.text and not arguments.id:
    parser.error('give the --id of the passage to replace')
  _put(parser, arguments, 'replaced', replace=True, known=True)


def delete(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Delete: take passages out of a served index, by id."""
  parser = Parser(prog, delete.__doc__)
  text = 'of a passage; may be repeated (default: those of --input)'
  parser.add_argument('--id', action='append', default=[], metavar='ID', help=text)
  parser.add_argument(
    '--input', metavar='FILE', help='a file of ids, one a line (default: those of --id)'
  )
  flags.shared(parser, *flags.INDEX)
  arguments = parser.parse_args(argv)
  if not arguments.id and not arguments.input:
    parser.error('give --id or --input')
  from ralm_jax.runs import live_edits

  ids = arguments.id + (read_ids(arguments.input) if arguments.input else [])
  ids = list(dict.fromkeys(ids))
  edited = live_edits.delete(ids, **flags.pick(arguments, flags.INDEX))
  _report(arguments, len(ids), 'deleted', edited)


def _put_parser(prog: str | None, description: str | None) -> Parser:
  """Flags of adding and replacing."""
  parser = Parser(prog, description, compiles=True)
  add = parser.add_argument
  flags.shared(parser, 'checkpoint', required=True)
  flags.shared(parser, *flags.INDEX)
  add('--title', help='of one passage (default: none)')
  add('--text', help='of one passage (default: those of --input)')
  add('--section', default='', help='of one passage (default: none)')
  add('--id', help='of one passage (default: made of its title and text)')
  add('--document', default='', help='names the source document (default: the title)')
  add('--date', default='', help='YYYY, YYYY-MM or YYYY-MM-DD (default: none)')
  text = 'files of passages, as for `ralm corpus` (default: the one of --text)'
  add('--input', nargs='+', metavar='FILE', help=text)
  return parser


def _put(
  parser: Parser, arguments: argparse.Namespace, done: str, *, replace: bool, known: bool = False
) -> None:
  passages = _read_passages(parser, arguments)
  from ralm_jax.runs import live_edits

  edited = live_edits.put(
    passages,
    checkpoint=arguments.checkpoint,
    replace=replace,
    known=known,
    **flags.pick(arguments, flags.INDEX),
  )
  _report(arguments, len(passages), done, edited)


def _read_passages(parser: Parser, arguments: argparse.Namespace) -> list[Passage]:
  if bool(arguments.input) == bool(arguments.text):
    parser.error('give either --text (with --title) or --input')
  from ralm_jax.data.corpus import passages as passages_lib
  from ralm_jax.data.corpus.passages import Passage

  if arguments.input:
    return list(passages_lib.iterate_passages(arguments.input))
  title, text = arguments.title or '', arguments.text
  digest = hashlib.sha256(f'{title}\n{text}'.encode()).hexdigest()
  about = {'document': arguments.document, 'date': arguments.date}
  passage = Passage(arguments.id or f'added-{digest[:12]}', title, arguments.section, text, **about)
  _ = passage.last_day  # Bad dates are complained of here.
  return [passage]


def read_ids(path: str) -> list[str]:
  """Ids of a file, one a line; ValueError where it holds none, or is not UTF-8."""
  from ralm_jax.files import json_records

  ids = [text for _, text in json_records.read_lines(path) if text.strip()]
  if not ids:
    raise ValueError(f'{path}: holds no ids; expected one a line')
  return ids


def _report(arguments: argparse.Namespace, count: int, done: str, edited: Any) -> None:
  where = arguments.retrieval_address or os.path.normpath(arguments.index)
  print(f'{where}: {count} {done}; {edited.count:,} passages in generation {edited.generation}')
