"""Add: put a passage into a corpus and its index, without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import hashlib
import os

from ralm_jax.data.corpus import passages as passages_lib
from ralm_jax.data.corpus.passages import Passage
from ralm_jax.runs import live_edits
from ralm_jax.runs.live_edits import Edited


def add(
  passages: Sequence[Passage], *, replace: bool = False, **options: str | float | None
) -> Edited:
  """Adds passages to a corpus and its served index; see `live_edits.put`.

  Args:
    passages: with ids that the corpus does not have.
    replace: whether they may take the place of others of their ids.
    **options: `checkpoint`, and `index` or `retrieval_address`.
  """
  return live_edits.put(passages, replace=replace, **options)


def add_index_flags(parser: argparse.ArgumentParser) -> None:
  """Flags that say which index is edited."""
  parser.add_argument('--index', metavar='INDEX')
  parser.add_argument(
    '--retrieval_address',
    metavar='HOST:PORT',
    help='a running retrieval process, instead of --index',
  )
  parser.add_argument('--corpus', metavar='CORPUS', help="where the index's corpus is now")
  parser.add_argument(
    '--retry_for_s',
    type=float,
    default=30.0,
    metavar='SECONDS',
    help='how long an unreachable retrieval process is waited for',
  )


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Flags of adding and replacing."""
  parser.add_argument('--checkpoint', required=True, metavar='CKPT')
  add_index_flags(parser)
  parser.add_argument('--title', help='of one passage')
  parser.add_argument('--text', help='of one passage')
  parser.add_argument('--section', default='')
  parser.add_argument('--id')
  parser.add_argument(
    '--document', default='', help='names the source document (default: the title)'
  )
  parser.add_argument('--date', default='', help='YYYY, YYYY-MM or YYYY-MM-DD')
  parser.add_argument(
    '--input', nargs='+', metavar='FILE', help='or files of passages, as for `ralm corpus`'
  )


def read_passages(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Passage]:
  """The passages that flags describe."""
  if bool(arguments.input) == bool(arguments.text):
    parser.error('give either --text (with --title) or --input')
  if arguments.input:
    return list(passages_lib.iterate_passages(arguments.input))
  title = arguments.title or ''
  digest = hashlib.sha256(f'{title}\n{arguments.text}'.encode()).hexdigest()
  passage = Passage(
    arguments.id or f'added-{digest[:12]}',
    title,
    arguments.section,
    arguments.text,
    document=arguments.document,
    date=arguments.date,
  )
  _ = passage.last_day  # Bad dates are complained of here.
  return [passage]


def index_options(arguments: argparse.Namespace) -> dict[str, str | float | None]:
  """What `add_index_flags` read."""
  return {
    name: getattr(arguments, name)
    for name in ('index', 'retrieval_address', 'corpus', 'retry_for_s')
  }


def report(arguments: argparse.Namespace, count: int, done: str, edited: Edited) -> None:
  """Prints what happened to `count` passages."""
  where = arguments.retrieval_address or os.path.normpath(arguments.index)
  print(f'{where}: {count} {done}; {edited.count:,} passages in generation {edited.generation}')


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Adds from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  add_flags(parser)
  parser.add_argument(
    '--replace', action='store_true', help='passages may take the place of others of their ids'
  )
  arguments = parser.parse_args(argv)
  passages = read_passages(parser, arguments)
  edited = add(
    passages, checkpoint=arguments.checkpoint, replace=arguments.replace, **index_options(arguments)
  )
  report(arguments, len(passages), 'added or replaced' if arguments.replace else 'added', edited)
