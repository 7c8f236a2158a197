"""Replace: give passages of a corpus and its index a new text."""
from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from ralm_jax import add as add_lib
from ralm_jax import live_edits
from ralm_jax.data import passages as passages_lib


def replace(
    passages: Sequence[passages_lib.Passage],
    **options: str | float | None,
) -> live_edits.Edited:
  """Replaces passages of a served index; see `live_edits.put`.

  A search finds a passage as it was or as it is, never both nor neither.

  Args:
    passages: with ids that the corpus has.
    **options: `checkpoint`, and `index` or `retrieval_address`.
  """
  return live_edits.put(passages, replace=True, known=True, **options)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
  """Replaces from command-line flags."""
  parser = argparse.ArgumentParser(prog=prog, description=__doc__)
  add_lib.add_flags(parser)
  arguments = parser.parse_args(argv)
  if arguments.text and not arguments.id:
    parser.error('give the --id of the passage to replace')
  passages = add_lib.read_passages(parser, arguments)
  edited = replace(
      passages, checkpoint=arguments.checkpoint,
      **add_lib.index_options(arguments),
  )
  add_lib.report(arguments, len(passages), 'replaced', edited)


if __name__ == '__main__':
  from ralm_jax import cli

  sys.exit(cli.main(['replace', *sys.argv[1:]]))
